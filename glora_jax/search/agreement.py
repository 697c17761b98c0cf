"""How much structures agree that were chosen on other images, folds and heads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glora_jax.method.space import FLAT_FORMS, TENSORS

LITTLE = 0.5  # of the way from chance to one and the same structure
# Codes from the first LoRA on are one form: ranks differ by degrees.
_FIRST_LORA = np.array([len(FLAT_FORMS[tensor]) for tensor in TENSORS])


class Agreement(NamedTuple):
  """How much structures agree.

  Attributes:
    share: of the tensors that one of two structures trains, the share that both train in the same
      form, whatever its rank; the mean over all pairs.
    chance: the same for pairs of which one has its layers shifted, the mean over all shifts: what
      structures of these forms share without agreeing on where.
  """

  share: float
  chance: float

  @property
  def is_little(self) -> bool:
    """Whether they are nearer to chance than to one and the same structure."""
    return self.share - self.chance < LITTLE * (1 - self.chance)


def agreement(genomes: Sequence[np.ndarray]) -> Agreement:
  """How much structures of one model agree.

  Args:
    genomes: at least two, each int [rows, 5].

  Raises:
    ValueError: there are fewer than two.

  Example:
    >>> first, second = np.zeros((2, 4, 5), np.int8)
    >>> first[:, 1], second[:, 1] = [3, 4, 0, 0], [3, 0, 0, 5]
    >>> found = agreement([first, second])
    >>> print(f'{found.share:.2f} {found.chance:.2f} {found.is_little}')
    0.33 0.44 True
  """
  if len(genomes) < 2:
    raise ValueError(f'{len(genomes)} genome has nothing to agree with; give at least two.')
  forms = [np.minimum(genome, _FIRST_LORA) for genome in genomes]
  pairs = list(itertools.combinations(forms, 2))
  shifts = range(1, len(forms[0]))
  shifted = [_share(first, np.roll(second, by, axis=0)) for first, second in pairs for by in shifts]
  share = np.mean([_share(*pair) for pair in pairs])
  return Agreement(float(share), float(np.mean(shifted)) if shifted else 0.0)


def _share(first: np.ndarray, second: np.ndarray) -> float:
  """Of the tensors that one of two trains, the share that both train in the same form."""
  trained = (first > 0) | (second > 0)
  return float((first == second)[trained].mean()) if trained.any() else 1.0
