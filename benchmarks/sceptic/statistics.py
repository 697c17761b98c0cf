"""Means, spreads and rank correlations of what was measured, as JSON types."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats


def mean_and_spread(rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
  """Mean and standard deviation of every number over rows with the same fields."""
  summary = {}
  for name in rows[0]:
    values = [row[name] for row in rows]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    summary[name] = {'mean': float(np.mean(values)), 'spread': spread}
  return summary


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, float | None]:
  """Spearman's rho and Kendall's tau with their p-values; None where they do not exist."""
  if len(set(x)) < 2 or len(set(y)) < 2:
    return dict.fromkeys(('spearman', 'spearman_p', 'kendall', 'kendall_p'))
  rho, tau = scipy.stats.spearmanr(x, y), scipy.stats.kendalltau(x, y)
  values: dict[str, Any] = {
    'spearman': rho.statistic,
    'spearman_p': rho.pvalue,
    'kendall': tau.statistic,
    'kendall_p': tau.pvalue,
  }
  return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}


def partial_correlation(xy: float | None, xz: float | None, yz: float | None) -> float | None:
  """The correlation of x and y that is left when z is held still; None where it does not exist."""
  if xy is None or xz is None or yz is None or min(1 - xz**2, 1 - yz**2) < 1e-9:
    return None
  return (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
