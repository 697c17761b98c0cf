"""Arrays that lie beside a kernel and share its stack axes, as NNX's transforms need them.

`nnx.scan` and `nnx.vmap` take an axis off every variable of a module at the same place. So the
stack axes of what lies beside a kernel are where the kernel has them, and what is left of a
kernel tells which of them are taken off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from glora_jax.method.layout import Layout


def lay_beside(value: jax.Array, layout: Layout, ndim: int) -> jax.Array:
  """An array with its stack axes where a kernel has them.

  Args:
    value: array [stack..., rest...].
    layout: layout of the kernel.
    ndim: number of dimensions of the kernel.

  Returns:
    The array itself where the kernel's stack axes are its first ones. Otherwise it gets as many
    dimensions as the kernel has, of size one, so that an axis counts the same from either end.
  """
  stack = len(layout.stack)
  if layout.stack == tuple(range(stack)):
    return value
  missing = (1,) * (ndim - value.ndim)
  padded = value.reshape((*value.shape, *missing))
  return jnp.moveaxis(padded, range(stack), layout.stack)


def axis_names(names: Sequence[str | None], layout: Layout, rest: Sequence[str | None]) -> tuple:
  """Names of the axes of an array that `lay_beside` has laid down.

  Args:
    names: names of the kernel's axes.
    layout: layout of the kernel.
    rest: names of the array's axes besides those of its stack.
  """
  stack = [names[dim] for dim in layout.stack]
  if layout.stack == tuple(range(len(stack))):
    return (*stack, *rest)
  padded = [*rest, *[None] * (len(names) - len(stack) - len(rest))]
  for dim, name in sorted(zip(layout.stack, stack, strict=True)):
    padded.insert(dim, name)
  return tuple(padded)


def what_is_left(layout: Layout, taken: int) -> Layout:
  """The layout of a kernel, and of its bias, below transforms that took off stack axes.

  Args:
    layout: layout of the whole kernel.
    taken: number of axes that are taken off, the outermost of the stack.
  """
  lost, bias_lost = layout.stack[:taken], layout.bias_stack[:taken]
  return Layout(
    stack=_renumbered(layout.stack[taken:], lost),
    inputs=_renumbered(layout.inputs, lost),
    outputs=_renumbered(layout.outputs, lost),
    bias_stack=_renumbered(layout.bias_stack[taken:], bias_lost),
  )


def _renumbered(dims: Sequence[int], lost: Sequence[int]) -> tuple[int, ...]:
  """Dimensions counted among those that are not lost."""
  return tuple(dim - sum(other < dim for other in lost) for dim in dims)


def stack_first(
  value: jax.Array, layout: Layout, stack: Sequence[int], shape: Sequence[int]
) -> jax.Array:
  """Inverse of `lay_beside`, below transforms.

  Args:
    value: what is left of an array that lies beside a kernel.
    layout: layout of what is left of the kernel.
    stack: sizes of its stack axes.
    shape: the array's own shape, with -1 for a size that is not known.

  Returns:
    [stack..., shape...].

  Raises:
    ValueError: the transforms took other axes off the array than off the kernel.
  """
  known = math.prod(stack) * math.prod(size for size in shape if size > 0)
  if value.size != known and (-1 not in shape or value.size % known):
    raise ValueError(
      f'nnx.scan or nnx.vmap takes other axes off an array of shape {value.shape} beside a kernel '
      'than off the kernel; give glora_jax.nnx.Genome and nnx.Param the same axis, '
      'nnx.StateAxes({(nnx.Param, glora_jax.nnx.Genome): 0, ...: None}) for instance.'
    )
  moved = jnp.moveaxis(value, layout.stack, range(len(layout.stack)))
  return moved.reshape((*stack, *shape))
