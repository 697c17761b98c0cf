"""Learning rates by kind: down and up factors (LoRA+, arXiv 2402.12354), vectors, heads."""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
import optax

from glora_jax.method.groups import Group
from glora_jax.method.space import FLAT_FORMS, TENSORS
from glora_jax.method.supports import COLLECTION, SUPPORTS
from glora_jax.tree import Path, map_with_path


class Kind(enum.IntEnum):
  """What a trained number is.

  Attributes:
    DOWN: of a LoRA's factor that starts at random: the down factor of A and B, the up factor of C.
    UP: of a LoRA's factor that starts at zero: the up factor of A and B, the down factor of C.
    VECTOR: of a vector or constant.
    HEAD: of a head.
    BASE: of the base, where that is trained.
  """

  DOWN = 0
  UP = 1
  VECTOR = 2
  HEAD = 3
  BASE = 4


def kinds(
  trainable: Any, groups: Sequence[Group], head_paths: Collection[Path], genome: Any = None
) -> Any:
  """The kind of every trained number.

  Where all forms of a tensor share storage, a vector lies in the factor that starts at zero. It is
  a vector in the rows for which the genome says so.

  Args:
    trainable: the first half of a split.
    groups: the adapted layers.
    head_paths: paths of the parameters that are trained in full.
    genome: the genome of a fixed subnet, int [rows, 5]; None for a supernet, whose shared storage
      counts as the factor.

  Returns:
    A tree like `trainable` of `Kind`s, int arrays that broadcast against its leaves.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax, jax.numpy as jnp
    >>> adapted = glora_jax.adapt(nn.Dense(2), jnp.zeros((1, 3)))
    >>> trainable = {'glora': {'A_up': jnp.zeros((4, 2)), 'B_down': jnp.zeros((3, 4))}}
    >>> genome = np.array([[2, 3, 0, 0, 0]])  # a vector for A, a LoRA for B
    >>> found = kinds(trainable, adapted.groups, adapted.head_paths, genome)
    >>> found['glora']['A_up'].tolist(), found['glora']['B_down'].tolist()
    ([[2]], 0)
  """
  by_path = {group.path: group for group in groups}

  def kind_of(whole_path, _):
    collection, *parts = whole_path
    path = tuple(parts)
    if collection != COLLECTION:
      return np.array(Kind.HEAD if path in head_paths else Kind.BASE)
    return _kind_of_support(by_path[path[:-1]], path[-1], genome)

  return map_with_path(kind_of, trainable)


def _kind_of_support(group: Group, name: str, genome: Any) -> np.ndarray:
  """The kind of a support's numbers, an array [] or, with a genome, [stack..., 1, 1]."""
  support = SUPPORTS[name]
  if support.form != 'lora':
    return np.array(Kind.VECTOR)
  if support.drawn:
    return np.array(Kind.DOWN)
  if genome is None:
    return np.array(Kind.UP)
  alleles = group.alleles(genome)[..., TENSORS.index(support.tensor)]
  is_lora = alleles >= len(FLAT_FORMS[support.tensor])
  return np.where(is_lora, Kind.UP, Kind.VECTOR)[..., None, None]


def scaled(inner: optax.GradientTransformation, factors: Any) -> optax.GradientTransformation:
  """Multiplies updates by factors: factors on the learning rate, in which AdamW's are linear.

  Args:
    inner: the inner transformation.
    factors: one factor, an array [], or a tree like the parameters of arrays that broadcast
      against them.

  Returns:
    A transformation with the state of `inner`, which `optax.chain` would nest.

  Example:
    >>> import jax.numpy as jnp
    >>> optimizer = scaled(optax.sgd(0.5), {'w': jnp.float32(4)})
    >>> params = {'w': jnp.ones(2)}
    >>> updates, _ = optimizer.update(params, optimizer.init(params))
    >>> updates['w'].tolist()
    [-2.0, -2.0]
  """

  def update_fn(updates, state, params=None):
    updates, state = inner.update(updates, state, params)
    products = jax.tree.map(
      lambda factor, part: jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, part),
      factors,
      updates,
    )
    return products, state

  return optax.GradientTransformation(inner.init, update_fn)
