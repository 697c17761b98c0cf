"""Presets of this benchmark alone: LoRA ranks that rise with depth and fill a budget (PriLoRA)."""

import fractions
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glora_jax.method.genomes import canonicalize
from glora_jax.method.presets import block_numbers
from glora_jax.method.space import FLAT_FORMS, TENSORS, Spec, Tensor

RISING: dict[str, Tensor] = {'lora:rising': 'B', 'hira:rising': 'A'}  # the tensor that has LoRAs


class Ladder(NamedTuple):
  """The ranks that a layer may have.

  Attributes:
    block: number of the layer's block, from 0 at the inputs of the model.
    ranks: ranks on offer, ascending.
    prices: trained parameters that each has more than the one before it.
  """

  block: int
  ranks: Sequence[int]
  prices: Sequence[int]


def rising(spec: Spec, name: str, budget: int) -> np.ndarray:
  """The genome of a name in `RISING` within a budget, int8 [layer, 5]."""
  tensor = RISING[name]
  flat = len(FLAT_FORMS[tensor])
  blocks = block_numbers([layer.name for layer in spec])
  ladders = [
    Ladder(block or 0, layer.space.ranks, np.diff(layer.costs(tensor)[flat:], prepend=0).tolist())
    for block, layer in zip(blocks, spec, strict=True)
  ]
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  levels = rising_levels(ladders, budget)
  genome[:, TENSORS.index(tensor)] = [level and flat + level - 1 for level in levels]
  return canonicalize(spec, genome)


def rising_levels(ladders: Sequence[Ladder], budget: int) -> list[int]:
  """Ranks in proportion to the number of a layer's block, as large as fits a budget.

  Ranks are rounded down to those on offer. What is left of the budget goes rank by rank to the
  layers from the last to the first, as long as something fits.

  Returns:
    How many of its ranks every layer climbs; 0 for no LoRA.
  """
  levels = _proportional(ladders, budget)
  left = budget - sum(
    sum(ladder.prices[:level]) for ladder, level in zip(ladders, levels, strict=True)
  )
  last_first = sorted(range(len(ladders)), key=lambda row: (-ladders[row].block, -row))
  risen = True
  while risen:
    risen = False
    for row in last_first:
      ladder, level = ladders[row], levels[row]
      if level < len(ladder.ranks) and ladder.prices[level] <= left:
        left -= ladder.prices[level]
        levels[row] += 1
        risen = True
  return levels


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
    spent += sum(ladders[row].prices[level] for row, level in rows)
    if spent > budget:
      break
    for row, level in rows:
      levels[row] = level + 1
  return levels
