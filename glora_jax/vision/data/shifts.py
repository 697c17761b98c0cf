"""A task for any images: in which direction was this one shifted?"""

from __future__ import annotations

import numpy as np

DIRECTIONS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
SHARE = 6  # of a side, by which an image is shifted


def shifted(
  images: np.ndarray, rng: np.random.Generator, num_classes: int = len(DIRECTIONS)
) -> tuple[np.ndarray, np.ndarray]:
  """Images shifted along a diagonal, cyclically.

  Args:
    images: [n, height, width, channels], any dtype.
    rng: source of the directions.
    num_classes: number of classes of the head; at most as many directions are used.

  Returns:
    The shifted images, and the number of each image's direction, int32 [n].

  Example:
    >>> moved, labels = shifted(np.arange(36).reshape(1, 6, 6, 1), np.random.default_rng(0))
    >>> moved.shape, sorted(moved.flatten().tolist()) == list(range(36))
    ((1, 6, 6, 1), True)
  """
  directions = DIRECTIONS[:num_classes]
  labels = rng.integers(0, len(directions), len(images), dtype=np.int32)
  height, width = images.shape[1:3]
  moved = np.empty_like(images)
  for number, (down, right) in enumerate(directions):
    chosen = labels == number
    steps = (down * (height // SHARE + 1), right * (width // SHARE + 1))
    moved[chosen] = np.roll(images[chosen], steps, (1, 2))
  return moved, labels
