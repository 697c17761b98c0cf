"""LoRA ranks that rise with depth and fill a budget."""

from __future__ import annotations

import fractions
import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Ladder(NamedTuple):
  """The ranks that a layer may have.

  Attributes:
    block: number of the layer's block, from 0 at the inputs of the model.
    ranks: ranks on offer, ascending.
    costs: trained parameters of each.
  """

  block: int
  ranks: Sequence[int]
  costs: Sequence[int]

  def price(self, level: int) -> int:
    """What the step from a level to the next costs; level 0 is no LoRA."""
    return self.costs[level] - (self.costs[level - 1] if level else 0)


def rising_ranks(ladders: Sequence[Ladder], budget: int) -> list[int]:
  """Ranks in proportion to the number of a layer's block, as large as fits a budget.

  Ranks are rounded down to those on offer (as in PriLoRA they rise linearly). What is left of the
  budget goes rank by rank to the layers from the last to the first, as long as something fits.

  Args:
    ladders: the ranks that each layer may have.
    budget: most trained parameters of all layers.

  Returns:
    The rank of every layer; 0 for none.

  Example:
    >>> ladders = [Ladder(block, (1, 2, 3), (10, 20, 30)) for block in range(3)]
    >>> rising_ranks(ladders, budget=60), rising_ranks(ladders, budget=45)
    ([1, 2, 3], [0, 1, 3])
  """
  levels = _proportional(ladders, budget)
  left = budget - sum(
    ladder.costs[level - 1] for ladder, level in zip(ladders, levels, strict=True) if level
  )
  last_first = sorted(range(len(ladders)), key=lambda row: (-ladders[row].block, -row))
  risen = True
  while risen:
    risen = False
    for row in last_first:
      ladder, level = ladders[row], levels[row]
      if level < len(ladder.ranks) and ladder.price(level) <= left:
        left -= ladder.price(level)
        levels[row] += 1
        risen = True
  return [
    ladder.ranks[level - 1] if level else 0 for ladder, level in zip(ladders, levels, strict=True)
  ]


def _proportional(ladders: Sequence[Ladder], budget: int) -> list[int]:
  """The levels at the largest slope of rank by block that fits the budget."""
  steps = sorted(
    # At this slope the layer gets that rank.
    (fractions.Fraction(rank, ladder.block + 1), row, level)
    for row, ladder in enumerate(ladders)
    for level, rank in enumerate(ladder.ranks)
  )
  levels = [0] * len(ladders)
  spent = 0
  for _, together in itertools.groupby(steps, key=lambda step: step[0]):
    rows = [(row, level) for _, row, level in together]
    spent += sum(ladders[row].price(level) for row, level in rows)
    if spent > budget:
      break
    for row, level in rows:
      levels[row] = level + 1
  return levels
