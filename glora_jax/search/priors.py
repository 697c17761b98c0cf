"""Scores of other losses that support those of a noisy gradient.

Which layers matter depends mostly on the backbone, so a task with a noisy gradient gains from the
scores of a task with a clear one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glora_jax.checks import validate
from glora_jax.method.space import Spec
from glora_jax.search.allocation import Allocation
from glora_jax.search.transfer import Transfer, check_layers, check_scores, describe
from glora_jax.search.unit_scores import UnitScores

NOISE = 0.14  # a gradient with this signal has as much weight as its prior
CLEAR = 0.3  # one with this signal needs no prior


def check_priors(spec: Spec, prior: Any, ranks: int) -> tuple[Allocation | Transfer, ...]:
  """The priors, none, one or several, as a tuple.

  Args:
    spec: the layers.
    prior: an allocation, transferred scores, a sequence of them, or None.
    ranks: number of ranks that are considered in a layer.

  Raises:
    TypeError: it is something else.
    ValueError: it has other layers or ranks.
  """
  if prior is None:
    return ()
  is_list = isinstance(prior, Sequence) and not isinstance(prior, str | Transfer)
  priors = tuple(prior) if is_list else (prior,)
  for each in priors:
    validate(each, Allocation | Transfer, 'prior')
    layers = [describe(layer) for layer in each.spec]
    check_layers('The prior', layers, spec, 'allocate it on the same adapted model.')
    check_scores(each.scores, spec)
    scored = each.scores.B_lora.shape[-1]
    if scored != ranks:
      raise ValueError(
        f'The prior has scores of {scored} ranks, but max_rank asks for {ranks}; use the same '
        'max_rank for both.'
      )
  return priors


def prior_weight(signal: float, prior_signal: float) -> float:
  """Weight of a prior in pooled scores, from 0 to 1.

  Args:
    signal: share of the squared mean gradient that is not noise (`Allocation.signal`).
    prior_signal: the prior's.

  Returns:
    0 if the prior has no larger signal; otherwise the smaller, the larger `signal` is.

  Example:
    >>> prior_weight(NOISE, 0.9), prior_weight(-0.01, 0.9), prior_weight(0.5, 0.4)
    (0.5, 1.0, 0.0)
  """
  signal = max(signal, 0.0)  # an estimate, which may be negative
  return NOISE / (signal + NOISE) if prior_signal > signal else 0.0


def pool(scores: UnitScores, prior: UnitScores, weight: float) -> UnitScores:
  """Weighted means of scores and a prior's, on the scale of the scores.

  Args:
    scores: scores of the units.
    prior: scores from another loss, of the same layers and ranks.
    weight: weight of the prior, from 0 to 1; see `prior_weight`.

  Example:
    >>> import numpy as np
    >>> scores, prior = UnitScores(*np.eye(5)[:, :1]), UnitScores(*np.full((5, 1), 4.0))
    >>> [round(float(field[0]), 2) for field in pool(scores, prior, 0.5)]
    [0.6, 0.1, 0.1, 0.1, 0.1]
  """
  total = scores.total()
  return UnitScores(
    *(
      (1 - weight) * score + weight * total * share
      for score, share in zip(scores, prior.shares(), strict=True)
    )
  )
