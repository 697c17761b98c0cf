"""Which axes of a kernel are stack, input and output."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
  """Which dimensions of a kernel (and bias) are stack, input and output; the others of the bias are output."""

  stack: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  bias_stack: tuple[int, ...] = ()

  def matrices(self, kernel: jax.Array) -> jax.Array:
    """The kernel as [stack..., in, out]."""
    size = lambda dims: math.prod(kernel.shape[d] for d in dims)
    moved = kernel.transpose(self.stack + self.inputs + self.outputs)
    return moved.reshape((*moved.shape[: len(self.stack)], size(self.inputs), size(self.outputs)))

  def kernel(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `matrices`."""
    order = self.stack + self.inputs + self.outputs
    return matrices.reshape([shape[d] for d in order]).transpose(np.argsort(order))

  def vectors(self, bias: jax.Array) -> jax.Array:
    """The bias as [stack..., out]."""
    moved = bias.transpose(self._bias_order(bias.ndim))
    return moved.reshape(*moved.shape[: len(self.bias_stack)], -1)

  def bias(self, vectors: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `vectors`."""
    order = self._bias_order(len(shape))
    return vectors.reshape([shape[d] for d in order]).transpose(np.argsort(order))

  def _bias_order(self, ndim):
    return self.bias_stack + tuple(d for d in range(ndim) if d not in self.bias_stack)


LINEAR_MODULES = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv)


def linear_layout(module: nn.Module, inputs: Any = None, einsum_str: str | None = None) -> Layout:
  """How the `kernel` and `bias` of a linear module are laid out.

  Args:
    module: one of `LINEAR_MODULES`.
    inputs, einsum_str: what it is called with; of these only `nn.Einsum`'s second matters.

  Raises:
    ValueError: an `nn.Einsum` that is no linear layer.
  """
  if isinstance(module, nn.Dense):
    return Layout((), (0,), (1,))
  if isinstance(module, nn.Conv):
    spatial = 1 if isinstance(module.kernel_size, int) else len(module.kernel_size)
    return Layout((), tuple(range(spatial + 1)), (spatial + 1,))
  if isinstance(module, nn.Einsum):
    return _einsum_layout((einsum_str or module.einsum_str).replace(' ', ''))
  as_tuple = lambda value: (value,) if isinstance(value, int) else tuple(value)
  outputs_from = len(as_tuple(module.batch_dims)) + len(as_tuple(module.axis))
  dims, stack = (
    tuple(range(outputs_from + len(as_tuple(module.features)))),
    len(as_tuple(module.batch_dims)),
  )
  return Layout(dims[:stack], dims[stack:outputs_from], dims[outputs_from:], dims[:stack])


def _einsum_layout(equation: str) -> Layout:
  operands, result = equation.split('->')
  inputs, kernel = operands.split(',')
  roles = {(True, False): 'in', (False, True): 'out', (True, True): 'stack', (False, False): None}
  role = {letter: roles[letter in inputs, letter in result] for letter in kernel}
  if (
    '.' in kernel
    or len(role) != len(kernel)
    or None in role.values()
    or not {'in', 'out'} <= set(role.values())
  ):
    raise ValueError(
      f"nn.Einsum('{equation}') is no linear layer: each letter of its kernel '{kernel}' must stand in the input or the result, "
      'at least one in the input alone and one in the result alone'
    )
  dims = lambda wanted, letters: tuple(
    kernel.index(letter) for letter in letters if role.get(letter) == wanted
  )
  bias = [
    letter for letter in result if letter in role
  ]  # Flax gives the bias the kernel's letters in the result's order
  return Layout(
    dims('stack', kernel),
    dims('in', kernel),
    dims('out', result),
    tuple(bias.index(letter) for letter in kernel if role[letter] == 'stack'),
  )
