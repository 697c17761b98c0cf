"""Differences between methods with intervals over seeds and over test images."""

import base64
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
BROKEN = 0.5  # share of the median accuracy, below which a training has broken down


class Difference(NamedTuple):
  """A mean difference of test accuracies in points, with its interval.

  Attributes:
    mean: of the differences.
    low: lower end of the interval.
    high: upper end.
  """

  mean: float
  low: float
  high: float

  @property
  def verdict(self) -> str:
    """'win', 'loss' or, where the interval holds 0, 'tie'."""
    if self.low > 0:
      return 'win'
    return 'loss' if self.high < 0 else 'tie'


def answers(result: dict[str, Any], number: int) -> np.ndarray:
  """Which test images were right, bool [number]."""
  packed = np.frombuffer(base64.b85decode(result['answers']), np.uint8)
  return np.unpackbits(packed, count=number).astype(bool)


def difference(ours: np.ndarray, theirs: np.ndarray) -> Difference:
  """Compares two methods on the same seeds and images.

  The variance of the mean has two parts: that of the seeds' mean differences, with Student's t, and
  that of the images' differences, averaged over the seeds, with a normal distribution. They are
  added up, as if what an image does and what a seed does were independent.

  Args:
    ours: right answers, bool [seed, image].
    theirs: likewise.

  Returns:
    In points.
  """
  differences = 100 * (ours.astype(float) - theirs.astype(float))
  seeds, images = differences.shape
  tail = (1 + CONFIDENCE) / 2
  squares = (stats.norm.ppf(tail) * differences.mean(0).std(ddof=1)) ** 2 / images
  if seeds > 1:
    by_seed = differences.mean(1).std(ddof=1)
    squares += (stats.t.ppf(tail, seeds - 1) * by_seed) ** 2 / seeds
  half = math.sqrt(squares)
  mean = float(differences.mean())
  return Difference(mean, mean - half, mean + half)


def headroom(accuracies: Sequence[Sequence[float]]) -> float:
  """The spread of structures beyond their seeds' noise, in points.

  Args:
    accuracies: test accuracy by structure and seed, in points; the same seeds for all.

  Returns:
    The root of the variance between structures' means less what seeds alone would make of it; 0
    where they would make more.
  """
  table = np.asarray(accuracies)
  paired = table - table.mean(0)  # what a seed does to all structures is no difference of theirs
  structures, seeds = table.shape
  noise = paired - paired.mean(1, keepdims=True)
  within = (noise**2).sum() / ((structures - 1) * (seeds - 1))
  between = paired.mean(1).var(ddof=1)
  return math.sqrt(max(0.0, between - within / seeds))


def broken_down(accuracies: Sequence[float]) -> np.ndarray:
  """Which trainings of a task broke down, bool, by their test accuracies: see `BROKEN`."""
  found = np.asarray(accuracies)
  return found < BROKEN * np.median(found) if found.size else np.zeros(0, bool)
