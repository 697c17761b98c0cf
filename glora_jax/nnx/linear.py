"""NNX's own linear layers without a merged kernel, where A is no LoRA.

A training step with a merged kernel computes the gradient of the whole kernel; x W + (x B_down)
B_up needs none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from glora_jax.nnx.adapter import Adapter, gathered, local_layout, thin_output

LINEAR_CALLS = (nnx.Linear.__call__, nnx.LinearGeneral.__call__)


def is_thin(adapter: Adapter, member: int, kernel: jax.Array) -> bool:
  """Whether what is left of a layer's kernel is one layer, and needs no merging."""
  layout = local_layout(adapter, member, kernel)
  in_order = list(layout.outputs) == sorted(layout.outputs)
  return adapter.recipe.occurring.is_thin and not layout.stack and in_order


def make_thin(layer: nnx.Linear | nnx.LinearGeneral, adapter: Adapter, member: int) -> None:
  """Lets a layer add to x W what A and B add to it; its kernel stays the base's.

  Args:
    layer: a copy of a layer for one call.
    adapter: its supports.
    member: its number among the layers that share them.
  """
  product = layer.dot_general
  if getattr(layer, 'dot_general_cls', None) is not None:
    product = layer.dot_general_cls()
    vars(layer)['dot_general_cls'] = None
  product = product or jax.lax.dot_general
  vars(layer)['dot_general'] = functools.partial(_thin_dot_general, product, adapter, member)


def _thin_dot_general(
  product: Callable[..., jax.Array],
  adapter: Adapter,
  member: int,
  inputs: jax.Array,
  kernel: jax.Array,
  dimension_numbers: Any,
  **kwargs: Any,
) -> jax.Array:
  """A `dot_general` of inputs and a kernel with the supports' part added."""
  output = product(inputs, gathered(adapter, kernel), dimension_numbers, **kwargs)
  (contracted, of_kernel), _ = dimension_numbers
  by_dim = dict(zip(of_kernel, contracted, strict=True))
  order = [by_dim[dim] for dim in local_layout(adapter, member, kernel).inputs]
  rows, columns = _as_vectors(inputs, order), output.reshape(*_free(inputs, order), -1)
  precision = kwargs.get('precision')
  return thin_output(adapter, member, kernel, rows, columns, precision).reshape(output.shape)


def _as_vectors(inputs: jax.Array, contracted: Sequence[int]) -> jax.Array:
  """Inputs with their contracted dimensions as one, the last."""
  free = [dim for dim in range(inputs.ndim) if dim not in contracted]
  return inputs.transpose(*free, *contracted).reshape(*_free(inputs, contracted), -1)


def _free(inputs: jax.Array, contracted: Sequence[int]) -> list[int]:
  """Sizes of the dimensions that are not contracted."""
  return [size for dim, size in enumerate(inputs.shape) if dim not in contracted]
