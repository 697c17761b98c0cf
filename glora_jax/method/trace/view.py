"""How a program sees a parameter: a `View` has the positions of the parameter's axes in an array.

On its way into a product a parameter is transposed, reshaped, sliced and scanned over. Its view
records, for every dimension of the array, which part of which axis of the parameter lies there. An
axis is made of *atoms*, so that a reshape can split it and merge its parts again. Here axis 1, of
6 items, is split into 2 heads of 3, and the heads come first:

>>> view = View.of(('w',), (4, 6)).reshape((4, 2, 3)).transpose((1, 0, 2))
>>> [[(atom.axis, atom.size, atom.stride) for atom in dim] for dim in view.dims]
[[(1, 2, 3)], [(0, 4, 1)], [(1, 3, 1)]]

One head is the items 3 to 5 of that axis, and the view remembers which it is:

>>> head = view.index((0,), at=1)
>>> head.shape, head.indices[0].at
((4, 3), 1)

Back in the kernel's shape the axis is one dimension of two atoms, row-major:

>>> merged = view.transpose((1, 0, 2)).reshape((4, 6))
>>> [(atom.axis, atom.size, atom.stride) for atom in merged.dims[1]]
[(1, 2, 3), (1, 3, 1)]
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Container, Sequence
from typing import NamedTuple

from glora_jax.tree import KeyPath

# Where in a program something happens: the positions of equations, outermost first.
Scope = tuple[int, ...]
NO_AXIS = -1


class Atom(NamedTuple):
  """Items `stride * start`, `stride * (start + 1)`, ... of an axis of a parameter.

  Attributes:
    axis: the axis; `NO_AXIS` if the parameter has none there: it is repeated, or the dimension is
      one of the activations.
    size: number of items.
    stride: distance of the items along the axis; negative if they run backwards.
    start: the first item's number at that distance.
  """

  axis: int
  size: int
  stride: int = 1
  start: int = 0

  @property
  def is_axis(self) -> bool:
    """Whether the parameter has an axis there."""
    return self.axis != NO_AXIS

  def split(self, size: int) -> tuple[Atom, Atom] | None:
    """The atom as two, the first of the given size; None if it does not divide like this."""
    inner, rest = divmod(self.size, size)
    if rest or self.start % inner:
      return None
    outer = self._replace(size=size, stride=self.stride * inner, start=self.start // inner)
    return outer, self._replace(size=inner, start=0)

  def reverse(self) -> Atom:
    """The same items, the last one first."""
    return self._replace(stride=-self.stride, start=1 - self.start - self.size)


class Index(NamedTuple):
  """One item of an atom was selected, so that the array has this part of the axis no longer.

  Attributes:
    atom: the items that it was selected from.
    at: the number of the item; the scope of the scan that goes through all of them; None for a
      number that is known only when the program runs.
  """

  atom: Atom
  at: int | Scope | None


Dim = tuple[Atom, ...]  # row-major


@dataclasses.dataclass(frozen=True)
class View:
  """Positions of the axes of a parameter in an array.

  Attributes:
    path: path of the parameter.
    dims: the atoms of every dimension of the array.
    indices: the parts of axes from which one item was selected, in the order of selection.
  """

  path: KeyPath
  dims: tuple[Dim, ...]
  indices: tuple[Index, ...] = ()

  @classmethod
  def of(cls, path: KeyPath, shape: Sequence[int]) -> View:
    """The parameter itself."""
    return cls(path, tuple((Atom(axis, size),) for axis, size in enumerate(shape)))

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array."""
    return tuple(map(size_of, self.dims))

  @property
  def indexed_axes(self) -> frozenset[int]:
    """The axes of the parameter from which single items were selected."""
    return frozenset(index.atom.axis for index in self.indices)

  def transpose(self, permutation: Sequence[int]) -> View:
    """The array with its dimensions in another order."""
    return dataclasses.replace(self, dims=tuple(self.dims[dim] for dim in permutation))

  def reshape(self, shape: Sequence[int]) -> View | None:
    """The array in another shape; None if that cuts an axis other than in equal parts."""
    remaining = [atom for dim in self.dims for atom in dim]
    dims = []
    for size in shape:
      dim = _pop(remaining, size)
      if dim is None:
        return None
      dims.append(dim)
    if not dims:
      return self.index(range(len(self.dims)), 0)
    dims[-1] += tuple(remaining)  # of size one
    return dataclasses.replace(self, dims=tuple(dims))

  def reverse(self, places: Sequence[int]) -> View:
    """The array with some dimensions back to front."""
    dims = list(self.dims)
    for place in places:
      dims[place] = tuple(atom.reverse() if atom.is_axis else atom for atom in dims[place])
    return dataclasses.replace(self, dims=tuple(dims))

  def broadcast(self, shape: Sequence[int], places: Sequence[int]) -> View:
    """The array repeated to a shape, in which its dimensions have the given positions."""
    dims: list[Dim] = [(Atom(NO_AXIS, size),) for size in shape]
    for place, dim in zip(places, self.dims, strict=True):
      repeated = (Atom(NO_AXIS, shape[place]),) if size_of(dim) < shape[place] else ()
      dims[place] = dim + repeated
    return dataclasses.replace(self, dims=tuple(dims))

  def slice(self, starts: Sequence[int], stops: Sequence[int]) -> View | None:
    """A slice of the array; None if no view of the parameter is that."""
    dims, indices = [], list(self.indices)
    for dim, start, stop in zip(self.dims, starts, stops, strict=True):
      cut = _slice_dim(dim, start, stop)
      if cut is None:
        return None
      dims.append(cut[0])
      indices += cut[1]
    return dataclasses.replace(self, dims=tuple(dims), indices=tuple(indices))

  def index(self, places: Sequence[int], at: int | Scope | None) -> View:
    """One item along some dimensions, which the result no longer has; see `Index` for `at`."""
    new = [Index(atom, at) for place in places for atom in self.dims[place] if atom.is_axis]
    dims = tuple(dim for place, dim in enumerate(self.dims) if place not in places)
    return View(self.path, dims, (*self.indices, *new))


def size_of(dim: Dim) -> int:
  """Size of a dimension."""
  return math.prod(atom.size for atom in dim)


def is_matrix(shape: Sequence[int], stack: Container[int] = ()) -> bool:
  """Whether an array has two or more axes, not counting stacks and leading axes of size one."""
  sizes = (size for axis, size in enumerate(shape) if axis not in stack)
  return len([*itertools.dropwhile(lambda size: size == 1, sizes)]) > 1


def _pop(remaining: list[Atom], size: int) -> Dim | None:
  """Removes from a list the first atoms that together have a size, the last one cut if need be.

  The atoms that are left may be lost if there are none of that size, and the result is None.
  """
  dim: Dim = ()
  while remaining and (size_of(dim) < size or (not dim and remaining[0].size == size == 1)):
    wanted, rest = divmod(size, size_of(dim))
    if rest:
      return None
    atom = remaining.pop(0)
    if atom.size > wanted:
      parts = atom.split(wanted)
      if parts is None:
        return None
      atom, inner = parts
      remaining.insert(0, inner)
    dim += (atom,)
  return dim if size_of(dim) == size else None


def _slice_dim(dim: Dim, start: int, stop: int) -> tuple[Dim, list[Index]] | None:
  """A slice of a dimension, and the items that it selects.

  Of a dimension of several atoms, [2, 3] items for instance, a slice is a view if it lies within
  one item of the first atom (4 to 6), which selects that item and goes on with the rest, or if it
  is several whole ones (0 to 3, 3 to 6). Others (2 to 4) are None.
  """
  if (start, stop) == (0, size_of(dim)):
    return dim, []
  atom, *rest = dim
  inner = size_of(tuple(rest))
  number, size = start // inner, (stop - start) // inner
  if start % inner == stop % inner == 0 and size > 1:
    return (atom._replace(size=size, start=atom.start + number), *rest), []
  if (stop - 1) // inner != number:
    return None
  cut = _slice_dim(tuple(rest), start - number * inner, stop - number * inner)
  if cut is None:
    return None
  new = [Index(atom._replace(start=0), atom.start + number)] if atom.is_axis else []
  return (Atom(NO_AXIS, 1), *cut[0]), [*new, *cut[1]]


def common_parts(first: Dim, second: Dim) -> list[tuple[Atom, Atom]] | None:
  """Two dimensions of equal size, cut at the same places, as pairs of atoms; None if impossible.

  Atoms of size one are left out.
  """
  left, right = ([atom for atom in dim if atom.size > 1] for dim in (first, second))
  pairs = []
  while left and right:
    size = math.gcd(left[0].size, right[0].size)
    if size == 1:
      return None
    parts, others = _pop(left, size), _pop(right, size)
    if parts is None or others is None:
      return None
    pairs += zip(parts, others, strict=True)
  return None if left or right else pairs
