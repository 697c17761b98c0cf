"""Differences between methods with intervals over seeds and over test images."""

import base64
import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


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
    """'win', 'loss' or, if the interval holds 0, 'tie'."""
    if self.low > 0:
      return 'win'
    return 'loss' if self.high < 0 else 'tie'

  def __str__(self) -> str:
    return f'{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]'


def pack(right: Any) -> str:
  """Right answers, bool [number], as text."""
  return base64.b85encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, number: int) -> np.ndarray:
  """Right answers, bool [number], from the text of `pack`."""
  packed = np.frombuffer(base64.b85decode(text), np.uint8)
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
