"""Which examples go into which split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deal(labels: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
  """Splits indices at random into disjoint parts of given shares, stratified: every part has its share of every class.

  Args:
    labels: int [n].
    shares: of the parts, summing to at most 1; the last part takes what rounding leaves if they sum to 1.
    seed: decides who goes where.

  Returns:
    Ascending indices for each part; every class that has as many examples as there are parts is in all of them.
  """
  rng = np.random.default_rng(seed)
  parts = [[] for _ in shares]
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    ends = np.round(np.cumsum(shares) * len(members)).astype(int)
    if len(members) >= len(shares):  # nobody goes without
      ends = np.maximum(ends, np.arange(1, len(shares) + 1))
      ends = np.minimum(ends, len(members) - np.arange(len(shares) - 1, -1, -1))
    for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
      part.append(members[start:end])
  return [np.sort(np.concatenate(part)).astype(np.int64) for part in parts]


def shots(labels: np.ndarray, per_class: int, seed: int, skip: int = 0) -> np.ndarray:
  """Indices of `per_class` random examples of every class, after leaving out the first `skip` of the same draw; ascending."""
  rng = np.random.default_rng(seed)
  chosen = [
    rng.permutation(np.flatnonzero(labels == label))[skip : skip + per_class]
    for label in np.unique(labels)
  ]
  return np.sort(np.concatenate(chosen))
