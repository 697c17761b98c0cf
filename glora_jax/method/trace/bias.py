"""Which parameter is the bias of a kernel, and how its axes lie along the kernel's."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from glora_jax.method.layout import Layout
from glora_jax.method.trace.events import Sum, Use
from glora_jax.method.trace.view import NO_AXIS, Atom, Scope, common_parts, size_of
from glora_jax.tree import Path

Shape = Sequence[int]


class Bias(NamedTuple):
  """A bias, and the layout of its kernel and it."""

  path: Path
  layout: Layout


def bias_of(
  uses: Sequence[Use], sums: Mapping[Scope, Sequence[Sum]], layout: Layout, shapes: Mapping
) -> Bias | None:
  """The parameter that is added to all products of a kernel along exactly its outputs.

  Args:
    uses: the kernel's products.
    sums: what is added to products, by their scope.
    layout: the kernel's layout.
    shapes: shapes of all parameters, by path.
  """
  found: set[Bias | None] = set()
  for use in uses:
    fitting = [
      Bias(added.bias.path, fitted)
      for added in sums.get(use.scope, ())
      if (fitted := _with_bias(layout, added, shapes)) is not None
    ]
    found.add(fitting[0] if fitting else None)
  return found.pop() if len(found) == 1 else None


class _Pair(NamedTuple):
  """A part of an axis of a kernel, and the part of an axis of a bias that lies along it."""

  kernel: Atom
  bias: Atom


def _with_bias(layout: Layout, added: Sum, shapes: Mapping[Path, Shape]) -> Layout | None:
  """A kernel's layout with that of the bias that is added; None if it is no bias of the kernel."""
  pairs = _pairs(added)
  if pairs is None:
    return None
  kernel_shape = shapes[added.product.view.path]
  bias_shape = shapes[added.bias.path]
  wanted = {axis for axis in (*layout.stack, *layout.outputs) if kernel_shape[axis] > 1}
  if not _covers([pair.kernel for pair in pairs], wanted, kernel_shape):
    return None
  if not _covers([pair.bias for pair in pairs], set(range(len(bias_shape))), bias_shape):
    return None
  along = _along_bias(pairs, len(bias_shape))
  stack = _bias_stack(layout.stack, along, bias_shape)
  if stack is None:
    return None
  outputs = [atom for axis, atoms in enumerate(along) if axis not in stack for atom in atoms]
  order = _row_major_axes(outputs)
  if order is None or set(order) - set(layout.outputs):
    return None
  alone = [axis for axis in layout.outputs if axis not in order]  # of size one
  return dataclasses.replace(layout, outputs=(*order, *alone), bias_stack=stack)


def _pairs(added: Sum) -> list[_Pair] | None:
  """The parts of axes that lie along each other; None if one varies where the other does not."""
  kernel, bias = added.product.view, added.bias
  if len(kernel.dims) != len(bias.dims):
    return None
  kernel_items, bias_items = (
    [taken for taken in view.taken if taken.atom.size > 1] for view in (kernel, bias)
  )
  if [taken.by for taken in kernel_items] != [taken.by for taken in bias_items]:
    return None
  kernel_dims = [*kernel.dims, *((taken.atom,) for taken in kernel_items)]
  bias_dims = [*bias.dims, *((taken.atom,) for taken in bias_items)]
  pairs = []
  for kernel_dim, bias_dim in zip(kernel_dims, bias_dims, strict=True):
    if size_of(bias_dim) == 1:  # an addition repeats it
      bias_dim = (Atom(NO_AXIS, size_of(kernel_dim)),)
    parts = common_parts(kernel_dim, bias_dim)
    if parts is None or any(_is_alone(*part) for part in parts):
      return None
    pairs += [_Pair(*part) for part in parts if part[0].axis != NO_AXIS]
  return pairs


def _is_alone(kernel: Atom, bias: Atom) -> bool:
  """Whether one of two arrays varies along their common part, and the other does not."""
  return (kernel.axis == NO_AXIS) != (bias.axis == NO_AXIS)


def _covers(atoms: Sequence[Atom], axes: set[int], shape: Shape) -> bool:
  """Whether atoms make up axes as a whole, and no others."""
  sizes: dict[int, int] = defaultdict(lambda: 1)
  for atom in atoms:
    sizes[atom.axis] *= atom.size
  return set(sizes) <= axes and all(sizes[axis] == shape[axis] for axis in axes)


def _along_bias(pairs: Sequence[_Pair], number: int) -> list[list[Atom]]:
  """For every axis of a bias the parts of the kernel's axes that lie along it, row-major."""
  ordered = sorted(pairs, key=lambda pair: -pair.bias.stride)
  return [[pair.kernel for pair in ordered if pair.bias.axis == axis] for axis in range(number)]


def _bias_stack(
  stack: Sequence[int], along: Sequence[Sequence[Atom]], bias_shape: Shape
) -> tuple[int, ...] | None:
  """The axes of a bias that are a kernel's stack; None if there are none that are just these."""
  free = [axis for axis, atoms in enumerate(along) if not atoms and bias_shape[axis] == 1]
  found = []
  for axis in stack:
    fitting = [number for number, atoms in enumerate(along) if _row_major_axes(atoms) == [axis]]
    if not fitting and free:  # an axis of size one
      fitting = [free.pop(0)]
    if len(fitting) != 1:
      return None
    found += fitting
  return tuple(found)


def _row_major_axes(atoms: Sequence[Atom]) -> list[int] | None:
  """The axes that atoms make up one after another; None where they lie between each other."""
  axes = []
  for axis, parts in itertools.groupby(atoms, lambda atom: atom.axis):
    strides = [atom.stride for atom in parts]
    if axis in axes or strides != sorted(strides, reverse=True):
      return None
    axes.append(axis)
  return axes
