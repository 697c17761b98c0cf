"""Which examples go into which split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from glora_jax.data.examples import Part, Split


def deal(labels: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
  """Deals indices at random to disjoint parts, stratified: every part has its share of every class.

  Args:
    labels: the class of every example, int [n].
    shares: the share of each part, summing to at most 1; the last part takes what rounding leaves
      if they sum to 1.
    seed: decides which example goes to which part.

  Returns:
    Ascending indices for each part, int64; every class that has as many examples as there are
    parts is in all of them.

  Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> train, test = deal(labels, shares=(0.75, 0.25), seed=0)
    >>> labels[train].tolist(), labels[test].tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1])
  """
  rng = np.random.default_rng(seed)
  number = len(shares)
  parts = [[] for _ in shares]
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    ends = np.round(np.cumsum(shares) * len(members)).astype(int)
    if len(members) >= number:  # every part has one at least
      ends = np.maximum(ends, np.arange(1, number + 1))
      ends = np.minimum(ends, len(members) - np.arange(number - 1, -1, -1))
    for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
      part.append(members[start:end])
  return [np.sort(np.concatenate(part)).astype(np.int64) for part in parts]


def shots(labels: np.ndarray, per_class: int, seed: int, skip: int = 0) -> np.ndarray:
  """Draws a number of examples of every class.

  Args:
    labels: the class of every example, int [n].
    per_class: examples of each class; fewer where a class has fewer.
    seed: decides which examples are drawn.
    skip: examples of the same draw that are left out first, so that two draws with one seed are
      disjoint.

  Returns:
    Ascending indices.

  Example:
    >>> labels = np.array([0, 1, 0, 1, 0, 1])
    >>> train = shots(labels, per_class=2, seed=0)
    >>> val = shots(labels, per_class=1, seed=0, skip=2)
    >>> labels[train].tolist(), labels[val].tolist(), set(train) & set(val)
    ([0, 1, 0, 1], [0, 1], set())
  """
  rng = np.random.default_rng(seed)
  chosen = [
    rng.permutation(np.flatnonzero(labels == label))[skip : skip + per_class]
    for label in np.unique(labels)
  ]
  return np.sort(np.concatenate(chosen))


@dataclasses.dataclass(frozen=True)
class Shots:
  """A split of a number of examples of every class of another split, drawn as `shots` draws.

  Attributes:
    pool: the split that is drawn from.
    per_class: examples of each class.
    seed: decides which examples are drawn.
    skip: examples of the same draw that are left out first.
  """

  pool: Split
  per_class: int
  seed: int
  skip: int = 0

  def open(self) -> Part:
    """The drawn examples."""
    pool = self.pool.open()
    return Part(pool, shots(pool.labels, self.per_class, self.seed, self.skip))
