"""What the uses of a parameter make of it: its layout, the layers in it, and its bias."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

from glora_jax.method.site import Layout, interleaved
from glora_jax.method.trace.events import Role, Use
from glora_jax.method.trace.view import NO_AXIS, Atom, Scope, View, common_parts, size_of
from glora_jax.tree import Path

Shape = Sequence[int]


def axis_roles(uses: Sequence[Use], shape: Shape) -> tuple[Role, ...] | str:
  """What the axes of a parameter are, or why that cannot be said.

  An axis of which single items are taken is a stack, unless it is also used as a whole.

  Args:
    uses: the products that it enters.
    shape: its shape.
  """
  found: list[list[Role]] = [[] for _ in shape]
  for use in uses:  # of an axis as a whole, or in parts
    for dim, role in zip(use.view.dims, use.roles, strict=True):
      for atom in dim:
        if atom.axis != NO_AXIS:
          found[atom.axis].append(role)
    for atom, by in use.view.taken:
      if not isinstance(by, int):
        found[atom.axis].append('stack')
  ways = [set(own) for own, size in zip(found, shape, strict=True) if size > 1]
  if any({'in', 'out'} <= own for own in ways):
    return 'used in matmuls in two ways, once transposed'
  if any(len(own) > 1 for own in ways):
    return 'used in matmuls in two ways: an axis is a stack in one of them'
  roles: tuple[Role, ...] = tuple(axis[0] if axis else 'stack' for axis in found)
  if 'in' not in roles or 'out' not in roles:
    return 'used in a matmul without an axis of inputs or of outputs'
  return roles


def layout_of(use: Use, roles: Sequence[Role]) -> Layout:
  """The layout of a kernel without bias.

  The stack's axes are first those that were taken, in the order in which they were.

  Args:
    use: its first use.
    roles: what its axes are.
  """
  axes: dict[Role, list[int]] = {'stack': [], 'in': [], 'out': []}
  for axis in dict.fromkeys([*(taken.atom.axis for taken in use.view.taken), *range(len(roles))]):
    axes[roles[axis]].append(axis)
  return Layout(tuple(axes['stack']), tuple(sorted(axes['in'])), tuple(sorted(axes['out'])))


def layers(
  uses: Sequence[Use], layouts: Mapping[Path, Layout]
) -> Iterator[tuple[Path, tuple[int, ...]]]:
  """The layers that uses run, in execution order: the kernel's path and the index in its stack.

  Args:
    uses: uses of kernels, in execution order.
    layouts: those of the kernels, by path.
  """
  stacked = {taken.by for use in uses for taken in use.view.taken}  # others have the same layers
  looped = [
    (use, [(scope, length if scope in stacked else 1) for scope, length in use.scans])
    for use in uses
  ]
  for use, numbers in interleaved(looped):
    path = use.view.path
    counters = {scope: number for (scope, _), number in zip(use.scans, numbers, strict=True)}
    yield from ((path, index) for index in _indices(use, layouts[path].stack, counters))


def _indices(
  use: Use, stack: Sequence[int], counters: Mapping[Hashable, int]
) -> Iterator[tuple[int, ...]]:
  """The indices in a kernel's stack that a use runs."""
  parts: dict[int, list[list[int]]] = {axis: [] for axis in stack}
  wholes = ((atom, None) for dim in use.view.dims for atom in dim)
  for atom, by in [*wholes, *use.view.taken]:
    if atom.axis in parts:
      number = counters[by] if isinstance(by, tuple) else by
      numbers = range(atom.size) if number is None else [number]
      parts[atom.axis].append([(atom.start + number) * atom.stride for number in numbers])
  choices = [sorted(map(sum, itertools.product(*parts[axis]))) for axis in stack]
  return itertools.product(*choices)


def bias_of(
  uses: Sequence[Use],
  sums: Mapping[Scope, Sequence[tuple[View, View]]],
  layout: Layout,
  shapes: Mapping[Path, Shape],
) -> tuple[Path, Layout] | None:
  """The parameter that is added to all products of a kernel along exactly its outputs.

  With it comes the layout of both.

  Args:
    uses: the kernel's products.
    sums: what is added to products; see `Events`.
    layout: the kernel's layout.
    shapes: shapes of all parameters, by path.
  """
  found: set[tuple[Path, Layout] | None] = set()
  for use in uses:
    fitting = [
      (bias.path, fitted)
      for product, bias in sums.get(use.scope, ())
      if (fitted := _with_bias(layout, product, bias, shapes)) is not None
    ]
    found.add(fitting[0] if fitting else None)
  return found.pop() if len(found) == 1 else None


# A part of an axis of a kernel, and the part of an axis of a bias that lies along it.
_Pair = tuple[Atom, Atom]


def _with_bias(
  layout: Layout, product: View, added: View, shapes: Mapping[Path, Shape]
) -> Layout | None:
  """A kernel's layout with that of the bias that is added; None if it is no bias of the kernel."""
  pairs = _pairs(product, added)
  if pairs is None:
    return None
  kernel_shape, bias_shape = shapes[product.path], shapes[added.path]
  wanted = {axis for axis in (*layout.stack, *layout.outputs) if kernel_shape[axis] > 1}
  if not _covers([kernel for kernel, _ in pairs], wanted, kernel_shape):
    return None
  if not _covers([bias for _, bias in pairs], set(range(len(bias_shape))), bias_shape):
    return None
  # For every axis of the bias the parts of the kernel's axes that lie along it, row-major.
  ordered = sorted(pairs, key=lambda pair: -pair[1].stride)
  along = [[k for k, bias in ordered if bias.axis == axis] for axis in range(len(bias_shape))]
  stack = _bias_stack(layout.stack, along, bias_shape)
  if stack is None:
    return None
  outputs = [atom for axis, atoms in enumerate(along) if axis not in stack for atom in atoms]
  order = _row_major_axes(outputs)
  if order is None or set(order) - set(layout.outputs):
    return None
  alone = [axis for axis in layout.outputs if axis not in order]  # of size one
  return dataclasses.replace(layout, outputs=(*order, *alone), bias_stack=stack)


def _pairs(kernel: View, bias: View) -> list[_Pair] | None:
  """The parts of axes that lie along each other; None if one varies where the other does not."""
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
    if parts is None or any((k.axis == NO_AXIS) != (b.axis == NO_AXIS) for k, b in parts):
      return None
    pairs += [part for part in parts if part[0].axis != NO_AXIS]
  return pairs


def _covers(atoms: Sequence[Atom], axes: set[int], shape: Shape) -> bool:
  """Whether atoms make up axes as a whole, and no others."""
  sizes: dict[int, int] = defaultdict(lambda: 1)
  for atom in atoms:
    sizes[atom.axis] *= atom.size
  return set(sizes) <= axes and all(sizes[axis] == shape[axis] for axis in axes)


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
