"""Rows that have C or E but never both: how genomes of a space with one shift are kept so.

E as a vector reaches every bias that C reaches, so both in a row are parameters spent twice. Where
`SearchSpace.one_shift` says so, the two genes of a row are drawn, mutated and crossed as one.
Functions take NumPy arrays and JAX arrays, traced ones too, and return what they took.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from glora_jax.method.space import TENSORS, Spec

C, E = TENSORS.index('C'), TENSORS.index('E')
_E_FOR_C = np.array([E if column == C else column for column in range(len(TENSORS))])


def num_shifts(spec: Spec) -> np.ndarray:
  """How many choices C and E leave a row that has one of them at most, int64 [rows]."""
  return spec.num_offered[:, C] + spec.num_offered[:, E] - 1


def drawn_apart(spec: Spec, places: Any, shifts: Any) -> Any:
  """Drawn genes in which rows that got C and E are drawn anew, uniformly over what they may have.

  A row that is drawn uniformly and rejected where it has both is then uniform over the others.

  Args:
    spec: the layers.
    places: of each gene its place among the alleles on offer, int [..., rows, 5].
    shifts: a choice for each row, int [..., rows], below `num_shifts`.

  Returns:
    Places like those given, int [..., rows, 5].
  """
  xp = places.__array_namespace__()
  num_c = spec.num_offered[:, C]
  has_both = spec.one_shift & (places[..., C] > 0) & (places[..., E] > 0)
  c = xp.where(has_both, xp.where(shifts < num_c, shifts, 0), places[..., C])
  e = xp.where(has_both, xp.where(shifts < num_c, 0, shifts - num_c + 1), places[..., E])
  columns = [places[..., column] for column in range(len(TENSORS))]
  columns[C], columns[E] = c, e
  return xp.stack(columns, axis=-1)


def linked(spec: Spec, chosen: Any) -> Any:
  """Chosen genes, where C is chosen if and only if E is in rows with one shift.

  Taking C and E of a row from the same genome keeps the row as valid as it was there.

  Args:
    spec: the layers.
    chosen: whether a gene is chosen, bool [..., rows, 5].

  Returns:
    bool [..., rows, 5].
  """
  rows = spec.one_shift[:, None]
  return (chosen & ~rows) | (chosen[..., _E_FOR_C] & rows)


def largest_places(spec: Spec) -> np.ndarray:
  """The last place of every gene; of C and E, where one must give way, the one that costs more.

  Returns:
    int64 [rows, 5].
  """
  places = spec.num_offered - 1
  costs = np.take_along_axis(spec.cost_table, spec.offered_table.astype(np.int64), axis=-1)[..., -1]
  c_gives_way = costs[:, C] <= costs[:, E]
  places[spec.one_shift & c_gives_way, C] = 0
  places[spec.one_shift & ~c_gives_way, E] = 0
  return places


def with_one_shift(spec: Spec, genomes: np.ndarray) -> np.ndarray:
  """Genomes in which no row of a space with one shift has both C and E.

  The one that costs less gives way, and C wherever it is not on offer.

  Args:
    spec: the layers.
    genomes: int8 [..., rows, 5].

  Returns:
    int8 [..., rows, 5].
  """
  rows = np.arange(len(spec))
  c, e = genomes[..., C], genomes[..., E]
  c_costs_more = spec.cost_table[rows, C, c] > spec.cost_table[rows, E, e]
  has_both = spec.one_shift & (c > 0) & (e > 0)
  refused = spec.one_shift & (spec.num_offered[:, C] == 1)
  repaired = genomes.copy()
  repaired[..., C] = np.where((has_both & ~c_costs_more) | refused, 0, c)
  repaired[..., E] = np.where(has_both & c_costs_more & ~refused, 0, e)
  return repaired
