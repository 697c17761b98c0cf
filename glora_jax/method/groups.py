"""One set of supports: for one linear layer, or for several that are tied."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.discover import Site
from glora_jax.method.space import SearchSpace
from glora_jax.tree import Path


@dataclasses.dataclass(frozen=True)
class Group:
  """One set of supports.

  Attributes:
    members: the linear modules that it acts on; one, or those of a tie in the order of their outputs.
    rows: the genome rows of its layers, in the order of the flattened stack.
    space: the alleles on offer.
  """

  members: tuple[Site, ...]
  rows: tuple[int, ...]
  space: SearchSpace

  @property
  def path(self) -> Path:
    """Of the supports in the `glora` collection: the first member's."""
    return self.members[0].path

  @property
  def name(self) -> str:
    return '+'.join([self.members[0].name, *(site.path[-1] for site in self.members[1:])])

  @property
  def stack_shape(self) -> tuple[int, ...]:
    return self.members[0].stack_shape

  @property
  def in_features(self) -> int:
    return self.members[0].in_features

  @property
  def out_features(self) -> int:
    return sum(site.out_features for site in self.members)

  @property
  def has_bias(self) -> bool:
    return self.members[0].bias_shape is not None

  @property
  def dtype(self) -> np.dtype:
    return functools.reduce(jnp.promote_types, (site.dtype for site in self.members))

  def alleles(self, genome: jax.Array) -> jax.Array:
    """The group's rows of a genome, [stack..., 5]."""
    return genome[np.array(self.rows)].reshape((*self.stack_shape, 5))

  def slices(self) -> Iterator[tuple[tuple[int, ...], int]]:
    """(index in the stack, row) of every layer."""
    return zip(np.ndindex(self.stack_shape), self.rows, strict=True)

  def of_members(self, supports: Mapping[str, Any]) -> Iterator[tuple[Site, dict[str, Any]]]:
    """Every member with the supports that make up its part of the outputs."""
    if len(self.members) == 1:
      yield self.members[0], dict(supports)
      return
    # A constant is an element of the whole vector, which a part may not contain: it gets storage of its own here.
    whole = dict(supports)
    whole |= {
      f'{t}_constant': whole.get(f'{t}_constant', whole[f'{t}_up'][..., 0, :1]) for t in 'AB'
    }
    if self.has_bias:
      whole |= {f'{t}_constant': whole.get(f'{t}_constant', whole[t][..., :1]) for t in 'DE'}
    start = 0
    for site in self.members:
      part = slice(start, start + site.out_features)
      start += site.out_features
      yield (
        site,
        {
          name: value[..., part]
          if name in ('A_up', 'B_up', 'A_vector', 'B_vector', 'D', 'E')
          else value
          for name, value in whole.items()
        },
      )


def tie(sites: list[Site], ties: Sequence[Sequence[str]]) -> list[tuple[Site, ...]]:
  """The sites one by one or, where a tie says so, together at the first member's place."""
  by_name, tied = {site.name: site for site in sites}, {}
  for ends in map(tuple, ties):
    heads_of_ties = [
      site for site in sites if site.name == ends[0] or site.name.endswith(f'/{ends[0]}')
    ]
    if len(ends) < 2 or len(set(ends)) < len(ends) or not heads_of_ties:
      raise ValueError(
        f'The tie {ends} must list two or more different path ends of selected layers; there are: {", ".join(by_name)}.'
      )
    for first in heads_of_ties:
      names = [first.name.removesuffix(ends[0]) + end for end in ends]
      if missing := [name for name in names if name not in by_name]:
        raise ValueError(
          f'The tie {ends} finds {first.name}, but beside it no selected layer {", ".join(missing)}.'
        )
      members = tuple(by_name[name] for name in names)
      for site in members[1:]:
        for what, mine, others in (
          ('in', site.in_features, first.in_features),
          ('stack', site.stack_shape, first.stack_shape),
          ('bias', site.bias_shape is not None, first.bias_shape is not None),
          ('input array', site.input_id, first.input_id),
        ):
          if mine != others:
            raise ValueError(
              f'The tie {ends} does not fit: {site.name} and {first.name} do not have the same {what}.'
            )
      for site in members:
        if site.name in tied:
          raise ValueError(f'{site.name} is in two ties; a layer can be in one.')
        tied[site.name] = members
  done, result = set(), []
  for site in sites:
    members = tied.get(site.name, (site,))
    if site.name not in done:
      result.append(members)
      done |= {member.name for member in members}
  return result


def number_rows(groups: list[Group]) -> tuple[Group, ...]:
  """Rows counted among the groups alone, in the same order."""
  earliest = lambda group: [
    min(rows) for rows in zip(*(site.rows for site in group.members), strict=True)
  ]
  order = {
    row: number
    for number, row in enumerate(sorted(row for group in groups for row in earliest(group)))
  }
  return tuple(
    dataclasses.replace(group, rows=tuple(order[row] for row in earliest(group)))
    for group in groups
  )
