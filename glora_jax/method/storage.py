"""How many rank-one parts of LoRA are stored: all on offer, or what one genome uses.

In the storage of rank r the LoRA of a lower rank is its first columns, so a fixed subnet's supports
are cut to the largest rank that it uses in each group of layers. Everything that reads supports
takes them in any width, and masks what a genome does not use.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import numpy as np

from glora_jax.method.groups import Group
from glora_jax.method.space import FLAT_FORMS, LORA_TENSORS, TENSORS, Tensor
from glora_jax.method.supports import SUPPORTS
from glora_jax.method.validation import check_supports
from glora_jax.tree import Path, flatten

# The arrays that have an axis of rank-one parts, and where that is from the end.
RANK_AXES: Mapping[str, int] = {
  name: support.axes.index('rank') - len(support.axes)
  for name, support in SUPPORTS.items()
  if 'rank' in support.axes
}


def used_ranks(group: Group, genomes: np.ndarray) -> dict[Tensor, int]:
  """The largest LoRA rank of each tensor in a group; at least 1, where vectors are stored.

  Args:
    group: layers that share arrays.
    genomes: concrete, int [..., rows, 5].
  """
  ranks = {}
  for tensor in LORA_TENSORS:
    codes = genomes[..., np.array(group.rows), TENSORS.index(tensor)]
    level = int(codes.max(initial=0)) - len(FLAT_FORMS[tensor])
    ranks[tensor] = group.space.ranks[level] if level >= 0 else 1
  return ranks


class _Ranked(NamedTuple):
  """An array with an axis of rank-one parts, and how many of them genomes use.

  Attributes:
    path: path in the `glora` collection.
    axis: the axis, counted from the end.
    rank: the largest rank that genomes use in the group.
    tensor: the tensor that the array belongs to.
    layers: name of the group.
  """

  path: Path
  axis: int
  rank: int
  tensor: Tensor
  layers: str


def _ranked(groups: Sequence[Group], flat: Mapping[Path, Any], genomes: Any) -> Iterator[_Ranked]:
  """The arrays among the supports, by path, that have an axis of rank-one parts."""
  for group in groups:
    ranks = used_ranks(group, np.asarray(genomes))
    for name, axis in RANK_AXES.items():
      path, tensor = (*group.path, name), SUPPORTS[name].tensor
      if path in flat:
        yield _Ranked(path, axis, ranks[tensor], tensor, group.name)


def cut(groups: Sequence[Group], supports: Any, genome: np.ndarray) -> dict[str, Any]:
  """Supports of the ranks that a genome uses, as nested dictionaries.

  Args:
    groups: the adapted layers.
    supports: the `glora` collection; an array that needs no cut is returned itself.
    genome: concrete, int [rows, 5].

  Raises:
    ValueError: the supports are of other layers, or of a subnet with lower ranks.
  """
  check_storage(groups, supports, genome)
  flat = flatten(supports)
  for array in _ranked(groups, flat, genome):
    first = functools.partial(first_ranks, axis=array.axis, rank=array.rank)
    flat[array.path] = jax.tree.map(first, flat[array.path])  # in its box, if it is in one
  return flax.traverse_util.unflatten_dict(flat)


def first_ranks(value: Any, axis: int, rank: int) -> Any:
  """The first so many rank-one parts of an array, along an axis that is counted from the end."""
  if value.shape[axis] == rank:
    return value
  return value[(..., slice(rank), *[slice(None)] * (-1 - axis))]


def check_storage(groups: Sequence[Group], supports: Any, genomes: Any) -> None:
  """Checks that supports are those of the layers, and store every rank that genomes use.

  Args:
    groups: the adapted layers.
    supports: the `glora` collection.
    genomes: int [..., rows, 5]; where they are traced, no rank is checked.

  Raises:
    ValueError: the supports are of other layers or of another space, or the storage is that of a
      subnet with lower ranks; the sentence names what differs, or the layer.
  """
  check_supports(groups, supports)
  if isinstance(genomes, jax.core.Tracer):
    return
  flat = flatten(supports)
  for array in _ranked(groups, flat, genomes):
    stored = nn.meta.unbox(flat[array.path]).shape[array.axis]
    if stored < array.rank:
      raise ValueError(
        f'The genome has a LoRA of rank {array.rank} for {array.tensor} in {array.layers}, and '
        f'these variables store rank {stored}: they were cut to a smaller subnet. Take those that '
        'it was split from.'
      )
