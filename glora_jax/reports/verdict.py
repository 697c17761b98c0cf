"""What a run has come to in one sentence: its accuracy, how sure that is, and what it beats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from scipy import special

from glora_jax.reports.markdown import plain

_QUANTILE = 1.959964  # of the normal distribution, for 95%
_LEVEL = 0.05  # from which on a difference may be chance


class Interval(NamedTuple):
  """Where a share lies with a probability of 95%, as far as the images tell.

  Attributes:
    low: lower end.
    high: upper end.
  """

  low: float
  high: float

  def __str__(self) -> str:
    return f'{100 * self.low:.1f} to {100 * self.high:.1f}'


def interval(share: float, number: int) -> Interval:
  """Wilson's interval of 95% of a share of images.

  Args:
    share: between 0 and 1.
    number: of how many images, at least 1.

  Example:
    >>> str(interval(0.95, 800))
    '93.3 to 96.3'
  """
  spread = _QUANTILE**2 / number
  middle = (share + spread / 2) / (1 + spread)
  half = _QUANTILE * math.sqrt(share * (1 - share) / number + spread / (4 * number)) / (1 + spread)
  return Interval(max(0.0, middle - half), min(1.0, middle + half))


def mcnemar(result_only: int, other_only: int) -> float:
  """The p-value of McNemar's exact test: of two structures that answered the same images.

  Args:
    result_only: how many images the one alone got right.
    other_only: how many the other alone.

  Example:
    >>> mcnemar(5, 0), mcnemar(3, 3)
    (0.0625, 1.0)
  """
  less, number = min(result_only, other_only), result_only + other_only
  return min(1.0, 2 * float(special.bdtr(less, number, 0.5)))


def titles(result: Mapping[str, Any]) -> dict[str, str]:
  """What reports call the structures of a run, by name, as Markdown.

  Args:
    result: content of `result.json`.
  """
  return {name: plain(row['label']) for name, row in result['structures'].items()}


def tell_verdict(result: Mapping[str, Any]) -> str:
  """The result's accuracy, and how far it is from the linear probe and the best other structure.

  Example:
    >>> paired = {'result_only': 40, 'other_only': 0}
    >>> probe = {'params': 0, 'test_accuracy': 0.5, 'against_result': paired}
    >>> tell_verdict(
    ...   {
    ...     'result': 'lora:2',
    ...     'structures': {
    ...       'linear': {'label': 'linear probe', **probe},
    ...       'lora:2': {'label': 'lora:2', 'params': 9, 'test_accuracy': 0.9},
    ...     },
    ...     'data': {'images': {'test': 100}},
    ...   }
    ... )
    'The result gets 90.0% of 100 test images right (95% interval 82.6 to 94.5) with 9 trained \
parameters, 40.0 points more than the linear probe.'
  """
  name, number = result['result'], result['data']['images']['test']
  structures, names = result['structures'], titles(result)
  chosen = structures[name]
  known = interval(chosen['test_accuracy'], number)
  sentence = (
    f'The result gets {100 * chosen["test_accuracy"]:.1f}% of {number:,} test images right '
    f'(95% interval {known}) with {chosen["params"]:,} trained parameters'
  )
  if name != 'linear':
    sentence += f', {_against(chosen, structures["linear"], "the linear probe")}'
  others = structures.keys() - {name, 'linear', 'supernet'}
  if not others:
    return f'{sentence}.'
  best = max(sorted(others), key=lambda other: structures[other]['test_accuracy'])
  return (
    f'{sentence} and {_against(chosen, structures[best], f"{names[best]}, the best other one")}.'
  )


def _against(chosen: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
  """How far the result is from another structure, and whether that may be chance."""
  points = round(100 * (chosen['test_accuracy'] - other['test_accuracy']), 1)
  if not points:
    return f'as accurate as {name}'
  difference = f'{abs(points):.1f} points {"less" if points < 0 else "more"} than {name}'
  chance = mcnemar(**other['against_result'])
  if chance < _LEVEL:
    return difference
  doubt = f"McNemar's exact test, p = {chance:.2g}"
  return f'{difference} (too little for these images to tell apart: {doubt})'
