"""What a run has come to in one sentence: its accuracy, how sure that is, and what it beats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from scipy import special

from glora_jax.method.presets import GENOME_ENDING, GRADIENT
from glora_jax.reports.markdown import plain

TITLES = {
  'linear': 'linear probe',
  'winner_supernet': 'winner, as searched',
}
PAIRED = 'beside_winner'  # what a row keeps of its answers beside the winner's
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


def mcnemar(winner_only: int, row_only: int) -> float:
  """The p-value of McNemar's exact test: of two subnets that answered the same images.

  Args:
    winner_only: how many images the one alone got right.
    row_only: how many the other alone.

  Example:
    >>> mcnemar(5, 0), mcnemar(3, 3)
    (0.0625, 1.0)
  """
  less, number = min(winner_only, row_only), winner_only + row_only
  return min(1.0, 2 * float(special.bdtr(less, number, 0.5)))


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
  return {**presets, **TITLES, 'winner': f'winner, {plain(winner_title(result))}'}


def winner_title(result: Mapping[str, Any]) -> str:
  """What tables call the winner: how its structure was found, or what a search was followed by.

  Args:
    result: content of `result.json`.

  Example:
    >>> winner_title({'structure': 'gradient'}), winner_title({'finetuned': True})
    ('gradient', 'finetuned')
  """
  return result.get('structure') or ('finetuned' if result['finetuned'] else 'not finetuned')


def is_of_a_file(result: Mapping[str, Any]) -> bool:
  """Whether a file gave the winner's structure, which nobody here saw chosen.

  Example:
    >>> is_of_a_file({'structure': 'runs/x/genome.json'}), is_of_a_file({'structure': 'lora:2'})
    (True, False)
  """
  return result.get('structure', '').endswith(GENOME_ENDING)


def tell_verdict(result: Mapping[str, Any]) -> str:
  """The winner's accuracy, and how far it is from the linear probe and the best other row.

  Example:
    >>> result = {
    ...   'linear': {
    ...     'params': 0,
    ...     'test_accuracy': 0.5,
    ...     PAIRED: {'winner_only': 40, 'row_only': 0},
    ...   },
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
  linear = _beside(winner, result['linear'], 'the linear probe')
  sentence = (
    f'The winner gets {100 * accuracy:.1f}% of {number:,} test images right (95% interval {known}) '
    f'with {winner["params"]:,} trained parameters, '
    f'{linear}'
  )
  presets = result['presets']
  if not presets:
    return f'{sentence}.'
  best = max(presets, key=lambda name: presets[name]['test_accuracy'])
  rival = "the gradient's structure" if best == GRADIENT else titles(result)[best]
  told = _beside(winner, presets[best], f'{rival}, the best row beside it')
  return f'{sentence} and {told}.'


def _beside(winner: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
  """How far the winner is from another row, and whether that may be chance."""
  points = round(100 * (winner['test_accuracy'] - row['test_accuracy']), 1)
  if not points:
    return f'as accurate as {name}'
  told = f'{abs(points):.1f} points {"less" if points < 0 else "more"} than {name}'
  chance = mcnemar(row[PAIRED]['winner_only'], row[PAIRED]['row_only'])
  if chance < _LEVEL:
    return told
  doubt = f"McNemar's exact test, p = {chance:.2g}"
  return f'{told} (too little for these images to tell apart: {doubt})'
