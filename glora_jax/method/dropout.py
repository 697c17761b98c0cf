"""Dropout of adapters while they are trained: of a LoRA's inputs, or of its rank-one parts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.groups import Group, keys_of_rows
from glora_jax.method.site import over_stack
from glora_jax.method.space import FLAT_FORMS, WEIGHT_TENSORS
from glora_jax.tree import KeyPath, update


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=('key',), meta_fields=('probability', 'layer')
)
@dataclasses.dataclass(frozen=True)
class Dropout:
  """The dropout of a call; a pytree, so that scans and `vmap` accept it.

  Attributes:
    key: random key, or an array of keys: one for each layer of a stack, or each path of a batch.
    probability: at least 0 and below 1.
    layer: name of the layer, or of its stack; '' for all.
  """

  key: jax.Array
  probability: float
  layer: str = ''

  def of_layers(self, group: Group) -> Dropout:
    """That of a stack of layers, with keys [stack...]."""
    keys = keys_of_rows(self.key, np.array(group.rows))
    return Dropout(keys.reshape(group.stack_shape + keys.shape[1:]), self.probability, group.name)

  def of_each(self, shape: tuple[int, ...]) -> Dropout:
    """That of a stack in which a layer may be several times, with other keys for each of them."""
    numbers = jnp.arange(math.prod(shape)).reshape(shape)
    keys = over_stack(jax.random.fold_in, len(shape))(self.key, numbers)
    return dataclasses.replace(self, key=keys)

  def drop(self, inputs: jax.Array, form: jax.Array) -> jax.Array:
    """The inputs of B; those of a LoRA are zeroed at random, and the others scaled up.

    Args:
      inputs: float [..., in]. Each number becomes 0 with the probability, and is otherwise divided
        by one minus it, as in `torch.nn.Dropout`.
      form: form of B, int []; may be traced. Only a LoRA has its inputs dropped.

    Example:
      >>> Dropout(jax.random.key(0), 0.5).drop(jnp.ones((2, 4)), 3).tolist()
      [[0.0, 0.0, 2.0, 2.0], [0.0, 2.0, 2.0, 0.0]]
    """
    kept = jax.random.bernoulli(self.key, 1 - self.probability, inputs.shape)
    dropped = jnp.where(kept, inputs / (1 - self.probability), 0)
    return jnp.where(form < len(FLAT_FORMS['B']), inputs, dropped)


def drop_components(dropout: Dropout, adapter: Any, groups: Sequence[Group], genome: Any) -> Any:
  """Drops rank-one parts of LoRAs at random and scales up the others (MLAE).

  Each rank-one part of a LoRA of A or B, a row of the up factor, becomes zero with the probability,
  and is otherwise divided by one minus it. So the mean over keys is the undropped LoRA. Other forms
  are unchanged, even a vector that shares the storage of an up factor.

  Args:
    dropout: a layer's dropout depends only on the key and the layer's row.
    adapter: the `glora` collection.
    groups: the adapted layers.
    genome: int [layer, 5]; may be traced.

  Returns:
    The adapter in the same shapes and dtypes.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> adapted = glora_jax.adapt(nn.Dense(2), jnp.zeros((1, 3)))
    >>> adapter = {'A_up': jnp.ones((4, 2)), 'B_up': jnp.ones((4, 2))}
    >>> genome = jnp.array([[2, 3, 0, 0, 0]])  # a vector for A, a LoRA for B
    >>> dropout, groups = Dropout(jax.random.key(2), 0.5), adapted.places.groups
    >>> dropped = drop_components(dropout, adapter, groups, genome)
    >>> dropped['A_up'][:, 0].tolist(), dropped['B_up'][:, 0].tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0])
  """
  dropped: dict[KeyPath, Any] = {}
  for group in groups:
    forms, keys = group.forms(genome), dropout.of_layers(group).key
    for column, tensor in enumerate(WEIGHT_TENSORS):
      up = group.arrays(adapter).get(f'{tensor}_up')
      if up is None:
        continue
      draw = functools.partial(
        _factors, column=column, rank=up.shape[-2], probability=dropout.probability
      )
      factors = over_stack(draw, len(group.stack_shape))(keys)
      is_lora = forms[..., column] >= len(FLAT_FORMS[tensor])
      factors = jnp.where(is_lora[..., None], factors, 1).astype(up.dtype)
      dropped[*group.path, f'{tensor}_up'] = up * factors[..., None]
  return update(adapter, dropped)


def _factors(key: jax.Array, column: int, rank: int, probability: float) -> jax.Array:
  """Factors of the rank-one parts of a tensor of a layer, float [rank]."""
  kept = jax.random.bernoulli(jax.random.fold_in(key, column), 1 - probability, (rank,))
  return kept.astype(float) / (1 - probability)
