"""Means of repeated measurements, with their spread.

An incomplete mean shows how much of it is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Number(NamedTuple):
  """A number of a table: the mean of repeated measurements, with their spread if there are several.

  Attributes:
    repeats: the measurements so far, by run.
    total: how many there will be; 0 for no more.
    digits: format of the number.
    has_spread: whether a spread is meaningful.

  Example:
    >>> str(Number({0: 1, 1: 2, 2: 3})), str(Number({0: 1}, 2)), str(Number({}, 2))
    ('2.0 ± 1.0', '1.0 (1 of 2)', '')
  """

  repeats: Mapping[Any, float]
  total: int = 0
  digits: str = '.1f'
  has_spread: bool = True

  @property
  def value(self) -> float:
    """The mean; nan without measurements."""
    return statistics.fmean(self.repeats.values()) if self.repeats else math.nan

  @property
  def done(self) -> int:
    """How many measurements there are."""
    return len(self.repeats)

  @property
  def complete(self) -> bool:
    """Whether all measurements are there."""
    return 0 < self.done >= self.total

  @property
  def deviation(self) -> float | None:
    """The sample standard deviation; None if it is not meaningful."""
    return statistics.stdev(self.repeats.values()) if self.has_spread and self.done > 1 else None

  def __str__(self) -> str:
    if not self.done:
      return ''
    spread = '' if self.deviation is None else f' ± {self.deviation:{self.digits}}'
    known = '' if self.complete else f' ({self.done} of {self.total})'
    return f'{self.value:{self.digits}}{spread}{known}'


def mean_of(numbers: Sequence[Number]) -> Number:
  """The mean of the numbers that are complete, with its spread over the runs if all of them are.

  Example:
    >>> str(mean_of([Number({0: 1, 1: 3}), Number({0: 2, 1: 4})])), str(mean_of([Number({}, 2)]))
    ('2.5 ± 1.4', '')
  """
  complete = [number for number in numbers if number.complete]
  if len(complete) < len(numbers):
    values = dict(enumerate(number.value for number in complete))
    return Number(values, len(numbers), has_spread=False)
  by_run = zip(*(number.repeats.values() for number in complete), strict=True)
  return Number(dict(enumerate(map(statistics.fmean, by_run))))
