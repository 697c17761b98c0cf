"""Arrays that lie beside a kernel and share its stack axes, as NNX's transforms need them.

`nnx.scan` and `nnx.vmap` take an axis off every variable of a module at the same place. So the
stack axes of what lies beside a kernel are where the kernel has them, and the shape of what is left
of a kernel tells which of them are taken off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from glora_jax.method.site import Layout, Site, lay_beside


def put_beside(value: jax.Array, site: Site) -> jax.Array:
  """An array [stack..., rest...] with its stack axes where a site's kernel has them.

  They are first where the kernel's are its first ones. Otherwise it gets as many dimensions as the
  kernel has, so that an axis counts the same from either end.
  """
  stack = site.layout.stack
  return lay_beside(value, stack, value.ndim if _is_first(stack) else len(site.kernel_shape))


def axis_names(names: Any, site: Site, axes: Any) -> tuple:
  """Names of the axes of an array that `put_beside` has laid down.

  Args:
    names: names of the kernel's axes.
    site: where the kernel is.
    axes: what the array's axes after those of the stack are: 'in', 'out', or anything else.
  """
  names, own = site.axis_names(names, axes)
  stack, result = site.layout.stack, list(own)
  if not _is_first(stack):
    result += [None] * (len(names) - len(stack) - len(own))
  for dim in sorted(stack):
    result.insert(dim, names[dim])
  return tuple(result)


def _is_first(stack: Sequence[int]) -> bool:
  """Whether a kernel's stack axes are its first ones, in any order."""
  return _is_in_place(sorted(stack))


def _is_in_place(stack: Sequence[int]) -> bool:
  """Whether a kernel's stack axes are its first ones, in their order."""
  return list(stack) == list(range(len(stack)))


def taken_axes(site: Site, left: Sequence[int]) -> tuple[int, ...]:
  """Which stack axes transforms have taken off a kernel, by their places in the stack.

  Where sizes leave a choice, arrays have the same axes left whatever is chosen.

  Args:
    site: where the kernel is, with its whole shape.
    left: shape of what is left of it.
  """
  whole, stack = site.kernel_shape, site.layout.stack
  for dims in itertools.combinations(sorted(stack), len(whole) - len(left)):
    if [size for dim, size in enumerate(whole) if dim not in dims] == list(left):
      return tuple(map(stack.index, dims))
  raise ValueError(
    f'A kernel of shape {whole} was attached, and what is left of it has the shape {tuple(left)}; '
    f'only its stack axes {stack} can be mapped or scanned over.'
  )


def stack_first(value: jax.Array, layout: Layout, stack: Sequence[int], ndim: int) -> jax.Array:
  """Inverse of `put_beside`, below transforms.

  Args:
    value: what is left of an array that lies beside a kernel.
    layout: layout of what is left of the kernel.
    stack: sizes of its stack axes.
    ndim: number of the array's axes besides those.

  Returns:
    [stack..., rest...].

  Raises:
    ValueError: the transforms took other axes off the array than off the kernel.
  """
  left = [size for dim, size in enumerate(value.shape) if dim in layout.stack]
  rest = [size for dim, size in enumerate(value.shape) if dim not in layout.stack]
  if sorted(left) != sorted(stack) or len(rest) < ndim or math.prod(rest[ndim:]) != 1:
    raise ValueError(
      f'nnx.scan or nnx.vmap takes other axes off an array of shape {value.shape} beside a kernel '
      'than off the kernel; give glora_jax.nnx.Genome and nnx.Param the same axis, '
      'nnx.StateAxes({(nnx.Param, glora_jax.nnx.Genome): 0, ...: None}) for instance.'
    )
  if not _is_in_place(layout.stack):
    value = jnp.moveaxis(value, layout.stack, range(len(layout.stack)))
  return value.reshape((*stack, *rest[:ndim]))
