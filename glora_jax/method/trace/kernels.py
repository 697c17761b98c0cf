"""What the uses of a parameter make of it: its layout, and the layers in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from glora_jax.method.layout import Layout
from glora_jax.method.trace.events import Role, Use
from glora_jax.method.trace.view import NO_AXIS, Atom, Scope
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
  for use in uses:
    for axis, role in _roles_in(use):
      found[axis].append(role)
  for size, distinct in zip(shape, map(set, found), strict=True):
    if {'in', 'out'} <= distinct and size > 1:
      return 'used in matmuls in two ways, once transposed'
    if len(distinct) > 1 and size > 1:
      return 'used in matmuls in two ways: an axis is a stack in one of them'
  roles: tuple[Role, ...] = tuple(axis[0] if axis else 'stack' for axis in found)
  if 'in' not in roles or 'out' not in roles:
    return 'used in a matmul without an axis of inputs or of outputs'
  return roles


def _roles_in(use: Use) -> Iterator[tuple[int, Role]]:
  """The axes that a use has as a whole, or in parts, with what they are."""
  for dim, role in zip(use.view.dims, use.roles, strict=True):
    yield from ((atom.axis, role) for atom in dim if atom.axis != NO_AXIS)
  yield from ((atom.axis, 'stack') for atom, by in use.view.taken if not isinstance(by, int))


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
  uses: Sequence[Use], stacks: Mapping[Path, Sequence[int]], shapes: Mapping[Path, Shape]
) -> Iterator[tuple[Path, tuple[int, ...]]]:
  """The layers that uses run, in execution order: the kernel's path and the index in its stack.

  Of a scan first the layers in the first place of what it goes over, then those in the second, ...;
  these are also the first that run, unless it is reversed.

  Args:
    uses: uses of kernels, in execution order.
    stacks: the stack axes of every kernel.
    shapes: their shapes.
  """
  for use, counters in _iterations(uses, 0, {}):
    path = use.view.path
    yield from ((path, index) for index in _indices(use, stacks[path], shapes[path], counters))


def _iterations(
  uses: Sequence[Use], level: int, counters: Mapping[Scope, int]
) -> Iterator[tuple[Use, Mapping[Scope, int]]]:
  """Every use in every iteration of the scans around it, with the numbers of the iterations.

  Args:
    uses: uses under the same scans down to a level.
    level: number of scans that are gone into.
    counters: numbers of their iterations, by their scopes.
  """
  for scan, together in itertools.groupby(uses, lambda use: (*use.scans, None)[level]):
    members = list(together)
    if scan is None:
      yield from ((use, counters) for use in members)
      continue
    is_stacked = any(taken.by == scan.scope for use in members for taken in use.view.taken)
    for number in range(scan.length if is_stacked else 1):
      yield from _iterations(members, level + 1, {**counters, scan.scope: number})


def _indices(
  use: Use, stack: Sequence[int], shape: Shape, counters: Mapping[Scope, int]
) -> Iterator[tuple[int, ...]]:
  """The indices in a kernel's stack that a use runs."""
  parts: dict[int, list[range]] = {axis: [] for axis in stack}
  for atom in itertools.chain.from_iterable(use.view.dims):
    if atom.axis in parts:
      parts[atom.axis].append(_places(atom, range(atom.size)))
  for atom, by in use.view.taken:
    if atom.axis in parts:
      number = counters[by] if isinstance(by, tuple) else by
      numbers = range(atom.size) if number is None else range(number, number + 1)
      parts[atom.axis].append(_places(atom, numbers))
  choices = [sorted(map(sum, itertools.product(*parts[axis]))) for axis in stack]
  return itertools.product(*choices)


def _places(atom: Atom, numbers: range) -> range:
  """Where along its axis the given items of an atom lie."""
  first, stop = atom.start + numbers.start, atom.start + numbers.stop
  return range(first * atom.stride, stop * atom.stride, atom.stride)
