"""Values of two losses on one model as one: where a task's own gradient is noise, another helps.

Which layers pay is mostly the backbone's doing: what the gradient of one task names serves others,
too. A task whose examples agree about little may so borrow from one with a clear gradient.
"""

from __future__ import annotations

import numpy as np

from glora_jax.search.allocation import Values


def pooled(own: Values, signal: float, other: Values, other_signal: float) -> Values:
  """Weighted means of two sets of values, each in shares of all that it has.

  Args:
    own: of every row, without an axis of folds.
    signal: share of the folds' squared gradients that folds have in common (`Allocation.signal`);
      values count by it, and not at all where it is 0 or below.
    other: values by another loss, of the same rows and parts.
    other_signal: its signal.

  Returns:
    The pooled values; the own ones in shares where neither has a signal.

  Example:
    >>> shares = Values(*np.eye(5)[:, None])
    >>> pooled(shares, 0.1, Values(*(part[::-1] for part in shares)), -0.02).A_vector
    array([1., 0., 0., 0., 0.])
  """
  weight, other_weight = max(signal, 0.0), max(other_signal, 0.0)
  total = weight + other_weight
  weight = weight / total if total else 1.0
  return Values(
    *(
      weight * mine + (1 - weight) * theirs
      for mine, theirs in zip(_in_shares(own), _in_shares(other), strict=True)
    )
  )


def _in_shares(values: Values) -> Values:
  """Values over the sum of their sizes, so that noise of both signs counts, too."""
  whole = sum(np.abs(part).sum() for part in values) or 1.0
  return Values(*(part / whole for part in values))
