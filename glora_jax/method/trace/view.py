"""An array that is a parameter, whole or in part, with its axes rearranged.

On its way into a product a parameter is transposed, reshaped, sliced and scanned over. A `View`
follows it: it says of every dimension of what is left which part of which axis of the parameter
lies there. Axes are made of *atoms*, so that a reshape can split an axis and merge its parts again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from glora_jax.tree import KeyPath

# Where in a program something happens: the positions of equations, outermost first.
Scope = tuple[int, ...]
NO_AXIS = -1


class Atom(NamedTuple):
  """Items of an axis of a parameter, at equal distances.

  Attributes:
    axis: the axis; `NO_AXIS` for what is none of the parameter, a broadcast one for instance.
    size: number of items.
    stride: distance of the items along the axis.
    start: number of items at that distance that lie before the first.
  """

  axis: int
  size: int
  stride: int = 1
  start: int = 0


class Taken(NamedTuple):
  """A part of an axis that is gone, since one item at a time is looked at.

  Attributes:
    atom: the items among which there was a choice.
    by: the index of the item; the scope of the scan that goes through them; None for an index that
      is known only when the program runs.
  """

  atom: Atom
  by: int | Scope | None


Dim = tuple[Atom, ...]  # row-major


@dataclasses.dataclass(frozen=True)
class View:
  """Where the axes of a parameter are in an array.

  Attributes:
    path: path of the parameter.
    dims: the atoms of every dimension of the array.
    taken: the parts of axes that are gone, in the order in which they went.
  """

  path: KeyPath
  dims: tuple[Dim, ...]
  taken: tuple[Taken, ...] = ()

  @classmethod
  def of(cls, path: KeyPath, shape: Sequence[int]) -> View:
    """The parameter itself."""
    return cls(path, tuple((Atom(axis, size),) for axis, size in enumerate(shape)))

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the array."""
    return tuple(map(size_of, self.dims))

  @property
  def stacked(self) -> frozenset[int]:
    """The axes of the parameter of which a part is gone."""
    return frozenset(taken.atom.axis for taken in self.taken)

  def transposed(self, permutation: Sequence[int]) -> View:
    """The array with its dimensions in another order."""
    return dataclasses.replace(self, dims=tuple(self.dims[dim] for dim in permutation))

  def reshaped(self, shape: Sequence[int]) -> View | None:
    """The array in another shape; None where an axis would be cut at no multiple of its parts."""
    remaining = [atom for dim in self.dims for atom in dim]
    dims = []
    for size in shape:
      dim = _drawn(remaining, size)
      if dim is None:
        return None
      dims.append(dim)
    if not dims:
      return self.index(range(len(self.dims)), 0)
    dims[-1] += tuple(remaining)  # of size one
    return dataclasses.replace(self, dims=tuple(dims))

  def broadcast(self, shape: Sequence[int], places: Sequence[int]) -> View:
    """The array repeated to a shape; its own dimensions come to lie at the places."""
    dims: list[Dim] = [(Atom(NO_AXIS, size),) for size in shape]
    for place, dim in zip(places, self.dims, strict=True):
      repeated = (Atom(NO_AXIS, shape[place]),) if size_of(dim) < shape[place] else ()
      dims[place] = dim + repeated
    return dataclasses.replace(self, dims=tuple(dims))

  def sliced(self, starts: Sequence[int], stops: Sequence[int]) -> View | None:
    """A slice of the array; None where it cuts an axis that a reshape has merged with others."""
    dims, taken = [], list(self.taken)
    for dim, start, stop in zip(self.dims, starts, stops, strict=True):
      cut = _sliced(dim, start, stop)
      if cut is None:
        return None
      dims.append(cut[0])
      taken += cut[1]
    return dataclasses.replace(self, dims=tuple(dims), taken=tuple(taken))

  def index(self, places: Sequence[int], by: int | Scope | None) -> View:
    """One item along some dimensions; see `Taken` for how it can be chosen."""
    gone = [Taken(atom, by) for place in places for atom in self.dims[place] if _is_own(atom)]
    dims = tuple(dim for place, dim in enumerate(self.dims) if place not in places)
    return View(self.path, dims, (*self.taken, *gone))


def size_of(dim: Dim) -> int:
  """Size of a dimension."""
  return math.prod(atom.size for atom in dim)


def _is_own(atom: Atom) -> bool:
  return atom.axis != NO_AXIS


def split(atom: Atom, size: int) -> tuple[Atom, Atom] | None:
  """An atom as two, of which the first has the given size; None if it does not divide so."""
  inner, rest = divmod(atom.size, size)
  if rest or atom.start % inner:
    return None
  outer = atom._replace(size=size, stride=atom.stride * inner, start=atom.start // inner)
  return outer, atom._replace(size=inner, start=0)


def _drawn(remaining: list[Atom], size: int) -> Dim | None:
  """The first atoms that together have a size, which are removed from the list."""
  dim: Dim = ()
  while remaining and (size_of(dim) < size or (not dim and remaining[0].size == size == 1)):
    wanted, rest = divmod(size, size_of(dim))
    if rest:
      return None
    atom = remaining.pop(0)
    if atom.size > wanted:
      parts = split(atom, wanted)
      if parts is None:
        return None
      atom, inner = parts
      remaining.insert(0, inner)
    dim += (atom,)
  return dim if size_of(dim) == size else None


def _sliced(dim: Dim, start: int, stop: int) -> tuple[Dim, list[Taken]] | None:
  """A slice of a dimension, and what is gone of it where one item is left."""
  if (start, stop) == (0, size_of(dim)):
    return dim, []
  atom, *rest = dim
  inner = size_of(tuple(rest))
  number, size = start // inner, (stop - start) // inner
  if start % inner == stop % inner == 0 and size > 1:
    return (atom._replace(size=size, start=atom.start + number), *rest), []
  if (stop - 1) // inner != number:
    return None
  cut = _sliced(tuple(rest), start - number * inner, stop - number * inner)
  if cut is None:
    return None
  gone = [Taken(atom._replace(start=0), atom.start + number)] if _is_own(atom) else []
  return (Atom(NO_AXIS, 1), *cut[0]), [*gone, *cut[1]]


def common_parts(first: Dim, second: Dim) -> list[tuple[Atom, Atom]] | None:
  """Two dimensions of equal size cut into atoms at the same places; None where that cannot be.

  Atoms of size one that are no axis are left out.
  """
  left, right = ([atom for atom in dim if atom.size > 1] for dim in (first, second))
  pairs = []
  while left and right:
    size = math.gcd(left[0].size, right[0].size)
    if size == 1:
      return None
    parts, others = _drawn(left, size), _drawn(right, size)
    if parts is None or others is None:
      return None
    pairs += zip(parts, others, strict=True)
  return None if left or right else pairs
