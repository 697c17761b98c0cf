"""Values of two losses on one model as one: where a task's own gradient is noise, another helps.

Which layers pay is mostly the backbone's doing: what the gradient of one task names serves others,
too. A task whose examples agree about little may so borrow from one with a clear gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from glora_jax.limits import shown
from glora_jax.method.space import Layer, Spec
from glora_jax.search.allocated import Allocation
from glora_jax.search.allocation import Values

NOISE = 0.02  # a signal of this size is trusted by half
CLEAR = 0.05  # one of this size needs no other


def share_of(signal: float, other_signal: float) -> float:
  """How much of the pooled values the other loss says, from 0 to 1.

  Args:
    signal: share of the folds' squared gradients that the folds have in common
      (`Allocation.signal`); 0 in the mean where they have nothing in common, and then below 0 as
      often as above.
    other_signal: the other loss's.

  Returns:
    0 where the other loss has no larger signal; else less, the larger the own one is.

  Example:
    >>> share_of(0.02, 0.3), share_of(-0.01, 0.3), share_of(0.1, 0.05)
    (0.5, 1.0, 0.0)
  """
  if other_signal <= max(signal, 0.0):
    return 0.0
  return NOISE / (max(signal, 0.0) + NOISE)


def pooled(own: Values, other: Values, share: float) -> Values:
  """Weighted means of two sets of values.

  Args:
    own: values with the axis of the folds; see `allocation.Values`.
    other: values by another loss, of the same rows and parts, without that axis.
    share: weight of the other values, from 0 to 1; see `share_of`.

  Returns:
    Values with the axis of the folds, on the scale of the own ones: the sizes of all values add up
    to as much in both.

  Example:
    >>> own = Values(*np.eye(5)[:, None, :1])
    >>> other = Values(*np.full((5, 1), 4.0))
    >>> [round(float(part[0, 0]), 2) for part in pooled(own, other, 0.5)]
    [0.6, 0.1, 0.1, 0.1, 0.1]
  """
  scale = _size(own.mean()) / (_size(other) or 1.0)
  return Values(
    *(
      (1 - share) * first + share * scale * second for first, second in zip(own, other, strict=True)
    )
  )


def mean_of(losses: Sequence[Values]) -> Values:
  """The mean of values by several losses, each of which counts alike.

  Args:
    losses: values by each loss, without the axis of the folds, of the same rows and parts.

  Returns:
    Values whose sizes add up to 1 at most.

  Example:
    >>> mean_of([Values(*np.ones((5, 2))), Values(*np.full((5, 2), 7.0))]).E_vector
    array([0.1, 0.1])
  """
  sizes = [_size(values) or 1.0 for values in losses]
  return Values(
    *(
      np.mean([part / size for part, size in zip(parts, sizes, strict=True)], axis=0)
      for parts in zip(*losses, strict=True)
    )
  )


def check_priors(spec: Spec, prior: Any, number: int) -> tuple[Allocation, ...]:
  """The allocations that a prior is: none, a single one or several.

  Args:
    spec: the layers.
    prior: an allocation, a list of them, or None.
    number: rank-one parts that are considered in a layer.

  Raises:
    ValueError: it is something else, or of other rows or parts.
  """
  if prior is None:
    return ()
  priors = tuple(prior) if isinstance(prior, Sequence) else (prior,)
  for found in priors:
    _check_prior(spec, found, number)
  return priors


def _check_prior(spec: Spec, prior: Any, number: int) -> None:
  """Raises ValueError unless a prior is an allocation with the same rows and parts."""
  if not isinstance(prior, Allocation):
    raise ValueError(
      f'prior={shown(prior)} must be what glora_jax.allocate returned, a list of such, a function '
      'that gives that, or None.'
    )
  theirs, ours = ([_shape(layer) for layer in layers] for layers in (prior.spec, spec))
  if theirs != ours:
    differing = next((pair for pair in zip(theirs, ours, strict=False) if pair[0] != pair[1]), None)
    first = f' (the first is {differing[0]} there, {differing[1]} here)' if differing else ''
    raise ValueError(
      f'The prior has {len(prior.spec)} rows that are not the {len(spec)} rows of this model'
      f'{first}; allocate it on the same adapted model.'
    )
  parts = prior.values.B_lora.shape[-1]
  if parts != number:
    raise ValueError(
      f'The prior has values of {parts} rank-one parts, and max_rank asks for {number}; give both '
      'the same max_rank.'
    )


def _shape(layer: Layer) -> str:
  """What a layer must have in common with another for values of one to mean anything in both."""
  bias = '' if layer.bias else ' without bias'
  return f'{layer.name} {layer.in_features} x {layer.out_features}{bias}'


def _size(values: Values) -> float:
  """The sum of the sizes of all values; noise of both signs counts, too."""
  return float(sum(np.abs(part).sum() for part in values))
