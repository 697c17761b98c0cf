"""Dropout of the rank-one parts of a LoRA (MLAE, Wang et al. 2024, arXiv 2405.18897)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from glora_jax.method.groups import Group
from glora_jax.method.space import FLAT_FORMS, WEIGHT_TENSORS
from glora_jax.tree import replace


def drop_components(
  key: jax.Array, supports: Any, groups: Sequence[Group], genome: Any, probability: float
) -> Any:
  """Supports of which some rank-one parts are missing, and the others count for more.

  Where a genome has a LoRA for A or B, each of its rank-one parts is dropped with the probability,
  by a row of zeros in the up factor, and otherwise divided by one minus it. In the mean over keys
  the weights stay what they are. All other forms are left alone, a vector that is stored in an up
  factor as well.

  Args:
    key: random key. What a layer loses depends on the key and the layer's row alone.
    supports: the `glora` collection.
    groups: the adapted layers.
    genome: int [rows, 5]; may be traced.
    probability: at least 0 and below 1.

  Returns:
    A collection of the same structure, shapes and dtypes.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> adapted = glora_jax.adapt(nn.Dense(2), jnp.zeros((1, 3)))
    >>> supports = {'A_up': jnp.ones((4, 2)), 'B_up': jnp.ones((4, 2))}
    >>> genome = jnp.array([[2, 3, 0, 0, 0]])  # a vector for A, a LoRA for B
    >>> dropped = drop_components(jax.random.key(2), supports, adapted.groups, genome, 0.5)
    >>> dropped['A_up'][:, 0].tolist(), dropped['B_up'][:, 0].tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0])
  """
  for group in groups:
    alleles = group.alleles(genome)
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.array(group.rows))
    for column, tensor in enumerate(WEIGHT_TENSORS):
      if (up := group.own(supports).get(f'{tensor}_up')) is None:
        continue
      draw = functools.partial(_factors, column=column, rank=up.shape[-2], probability=probability)
      factors = jax.vmap(draw)(row_keys).reshape(up.shape[:-1])
      is_lora = alleles[..., column] >= len(FLAT_FORMS[tensor])
      factors = jnp.where(is_lora[..., None], factors, 1).astype(up.dtype)
      supports = replace(supports, (*group.path, f'{tensor}_up'), up * factors[..., None])
  return supports


def _factors(row_key: jax.Array, column: int, rank: int, probability: float) -> jax.Array:
  """What the rank-one parts of one tensor of one layer are multiplied by, float [rank]."""
  kept = jax.random.bernoulli(jax.random.fold_in(row_key, column), 1 - probability, (rank,))
  return kept.astype(float) / (1 - probability)
