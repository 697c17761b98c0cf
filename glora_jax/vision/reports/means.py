"""Means of repeated measurements, with their spread.

An incomplete mean shows how much of it is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple


class Number(NamedTuple):
  """A number of a table: the mean of those that are there.

  Attributes:
    value: the mean; nan without values.
    done: how many values there are.
    total: how many there will be.
    deviation: their sample standard deviation; None if that means nothing.
    digits: format of the number.
    repeats: the values, by seed.

  Example:
    >>> str(Number(71.23, 5, 19)), str(Number(71.23, 2, 2, 0.5)), str(Number(math.nan, 0, 19))
    ('71.2 (5 of 19)', '71.2 ± 0.5', '')
  """

  value: float
  done: int = 1
  total: int = 1
  deviation: float | None = None
  digits: str = '.1f'
  repeats: Mapping[Hashable, float] = {}

  @property
  def complete(self) -> bool:
    """Whether all values are there."""
    return 0 < self.done == self.total

  def __str__(self) -> str:
    if not self.done:
      return ''
    spread = '' if self.deviation is None else f' ± {self.deviation:{self.digits}}'
    known = '' if self.complete else f' ({self.done} of {self.total})'
    return f'{self.value:{self.digits}}{spread}{known}'


def mean(repeats: Mapping[Hashable, float], total: int | None = None) -> Number:
  """The mean of repeated measurements, with their spread if there are several.

  Args:
    repeats: the values that are there, by run.
    total: how many there will be; None for as many.

  Example:
    >>> str(mean({0: 1, 1: 2, 2: 3})), str(mean({0: 1}, 2))
    ('2.0 ± 1.0', '1.0 (1 of 2)')
  """
  values = list(repeats.values())
  done = len(values)
  return Number(
    value=statistics.fmean(values) if values else math.nan,
    done=done,
    total=done if total is None else total,
    deviation=statistics.stdev(values) if done > 1 else None,
    repeats=repeats,
  )


def mean_of(numbers: Sequence[Number]) -> Number:
  """The mean of the numbers that are complete, with its spread over the runs if all of them are.

  Example:
    >>> str(mean_of([mean({0: 1, 1: 3}), mean({0: 2, 1: 4})])), str(mean_of([mean({0: 1}, 2)]))
    ('2.5 ± 1.4', '')
  """
  complete = [number for number in numbers if number.complete]
  if len(complete) < len(numbers):
    found = mean(dict(enumerate(number.value for number in complete)), len(numbers))
    return found._replace(deviation=None)
  by_run = zip(*(number.repeats.values() for number in complete), strict=True)
  return mean(dict(enumerate(map(statistics.fmean, by_run))))
