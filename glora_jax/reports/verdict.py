"""What a run has come to in one sentence: its accuracy, how sure that is, and what it beats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from glora_jax.reports.markdown import plain

TITLES = {
  'linear': 'linear probe',
  'winner_supernet': 'winner, as searched',
  'winner': 'winner, finetuned',
}
GRADIENT = 'gradient'  # the row of the structure that was read off a gradient
_QUANTILE = 1.959964  # of the normal distribution, for 95%


class Interval(NamedTuple):
  """Where a share lies with a probability of 95%, as far as the images tell.

  Attributes:
    low: lower end.
    high: upper end.
  """

  low: float
  high: float

  def overlaps(self, other: Interval) -> bool:
    """Whether there are shares in both."""
    return self.low <= other.high and other.low <= self.high

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


def subnets(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """The rows of a run's table by name: the linear probe, what stands beside it, the winner.

  Args:
    result: content of `result.json`.
  """
  rows = {
    'linear': result['linear'],
    **result['presets'],
    'winner_supernet': result['winner_supernet'],  # which only a search has
    'winner': result['winner'],
  }
  return {name: row for name, row in rows.items() if row is not None}


def titles(result: Mapping[str, Any]) -> dict[str, str]:
  """What reports call the rows of `subnets`, by name, as Markdown."""
  presets = {name: plain(row.get('label', name)) for name, row in result['presets'].items()}
  structure = result.get('structure')
  winner = {} if structure is None else {'winner': f'winner, {plain(structure)}'}
  return {**presets, **TITLES, **winner}


def tell_verdict(result: Mapping[str, Any]) -> str:
  """The winner's accuracy, and how far it is from the linear probe and the best other row.

  Example:
    >>> result = {
    ...   'linear': {'params': 0, 'test_accuracy': 0.5},
    ...   'winner': {'params': 9, 'test_accuracy': 0.9},
    ...   'winner_supernet': None,
    ...   'presets': {},
    ...   'data': {'images': {'test': 100}},
    ... }
    >>> tell_verdict(result)
    'The winner gets 90.0% of 100 test images right (95% interval 82.6 to 94.5) with 9 trained \
parameters, 40.0 points more than the linear probe.'
  """
  winner, number = result['winner'], result['data']['images']['test']
  accuracy = winner['test_accuracy']
  known = interval(accuracy, number)
  sentence = (
    f'The winner gets {100 * accuracy:.1f}% of {number:,} test images right (95% interval {known}) '
    f'with {winner["params"]:,} trained parameters, '
    f'{_difference(accuracy, result["linear"])} the linear probe'
  )
  presets = result['presets']
  if not presets:
    return f'{sentence}.'
  best = max(presets, key=lambda name: presets[name]['test_accuracy'])
  is_close = known.overlaps(interval(presets[best]['test_accuracy'], number))
  rival = "the gradient's structure" if best == GRADIENT else titles(result)[best]
  doubt = ', too little for these images to tell apart' if is_close else ''
  return (
    f'{sentence} and {_difference(accuracy, presets[best])} {rival}, the best row beside it{doubt}.'
  )


def _difference(accuracy: float, other: Mapping[str, Any]) -> str:
  points = round(100 * (accuracy - other['test_accuracy']), 1)
  if not points:
    return 'as accurate as'
  return f'{abs(points):.1f} points {"less" if points < 0 else "more"} than'
