"""Values of two losses on one model as one: where a task's own gradient is noise, another helps.

Which layers pay is mostly the backbone's doing: what the gradient of one task names serves others,
too. A task whose examples agree about little may so borrow from one with a clear gradient.
"""

from __future__ import annotations

import numpy as np

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


def _size(values: Values) -> float:
  """The sum of the sizes of all values; noise of both signs counts, too."""
  return float(sum(np.abs(part).sum() for part in values))
