"""Scenes whose label says what is where in them: counts, angles, places, distances, relations.

A scene is a function `(rng, label) -> picture` uint8 [28, 28, 3]. `discs` and `bars` are for
development; their content, background and noise are not those of the others.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.structures import rendering
from benchmarks.structures.rendering import SIDE

Scene = Callable[[np.random.Generator, int], np.ndarray]


def discs(rng: np.random.Generator, label: int) -> np.ndarray:
  """One to five discs, the label counted from 0, on a gradient."""
  is_dark = rng.random() < 0.5
  picture = rendering.gradient(rng, *((0.0, 0.35) if is_dark else (0.65, 1.0)))
  radii = rng.uniform(1.8, 3.4, label + 1)
  for center, radius in zip(rendering.spread(rng, label + 1, 3.5, 7.5), radii, strict=True):
    color = rendering.tint(rng, *((0.55, 1.0) if is_dark else (0.0, 0.45)))
    picture = rendering.paint(picture, rendering.coverage(rendering.disc, center, radius), color)
  return rendering.finish(rng, picture, 0.08)


def bars(rng: np.random.Generator, label: int) -> np.ndarray:
  """A bar in one of eight directions that lie 22.5 degrees apart, on a gradient."""
  is_dark = rng.random() < 0.5
  picture = rendering.gradient(rng, *((0.0, 0.35) if is_dark else (0.65, 1.0)))
  angle = (label + rng.uniform(-0.4, 0.4)) * np.pi / 8
  radius = rng.uniform(4, 8)
  center = rng.uniform(radius, SIDE - 1 - radius, 2)
  cover = rendering.coverage(rendering.bar, center, radius, angle)
  color = rendering.tint(rng, *((0.55, 1.0) if is_dark else (0.0, 0.45)))
  return rendering.finish(rng, rendering.paint(picture, cover, color), 0.12)
