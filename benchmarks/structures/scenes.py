"""Scenes whose label says what is where in them: counts, angles, places, distances, relations.

A scene is a function `(rng, label) -> picture` uint8 [28, 28, 3]. `discs` and `bars` are for
development; their content, background and noise are not those of the others.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.structures import rendering
from benchmarks.structures.rendering import SIDE

NOISE = 0.03  # standard deviation of that in all but the development scenes
_CLOUDS, _LINES, _SHAPES = (0.0, 0.2), (0.2, 0.5), (0.7, 1.0)  # brightness of their parts

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


def count(rng: np.random.Generator, label: int) -> np.ndarray:
  """One to six crosses and squares, the label counted from 0, amid lines and clouds."""
  picture = clutter(rng, lines=2)
  for center in rendering.spread(rng, label + 1, 3.0, 7.2):
    shape = (rendering.cross, rendering.square)[rng.integers(2)]
    picture = add_shape(rng, picture, shape, center, rng.uniform(2.0, 2.7))
  return rendering.finish(rng, picture, NOISE)


def angle(rng: np.random.Generator, label: int) -> np.ndarray:
  """An arrow that points in one of eight directions, 45 degrees apart, amid lines and clouds."""
  picture = clutter(rng, lines=3)
  radius = rng.uniform(6, 9)
  center = rng.uniform(radius, SIDE - 1 - radius, 2)
  direction = (label + rng.uniform(-0.4, 0.4)) * np.pi / 4
  picture = add_shape(rng, picture, rendering.arrow, center, radius, direction)
  return rendering.finish(rng, picture, NOISE)


def position(rng: np.random.Generator, label: int) -> np.ndarray:
  """A ring beside two squares, amid lines and clouds; the label is its cell of nine, by rows."""
  picture = clutter(rng, lines=2)
  cell = SIDE / 3
  row, column = divmod(label, 3)
  corner = np.array([column, row]) * cell
  center = np.clip(corner + rng.uniform(0.5, cell - 0.5, 2) - 0.5, 3, SIDE - 4)
  for place in rendering.spread(rng, 2, 3.0, 8.0, [center]):
    picture = add_shape(rng, picture, rendering.square, place, rng.uniform(2.0, 2.7))
  picture = add_shape(rng, picture, rendering.ring, center, rng.uniform(3.0, 4.0))
  return rendering.finish(rng, picture, NOISE)


def distance(rng: np.random.Generator, label: int) -> np.ndarray:
  """Two squares whose distance lies in one of four ranges from 5 to 21 pixels, over clouds."""
  picture = clutter(rng, lines=0)
  apart = 5 + 4.5 * label + rng.uniform(0, 2.5)
  for center in rendering.pair(rng, 3.0, apart):
    picture = add_shape(rng, picture, rendering.square, center, rng.uniform(2.6, 3.2))
  return rendering.finish(rng, picture, NOISE)


def size(rng: np.random.Generator, label: int) -> np.ndarray:
  """A turned square, triangle or ring whose radius lies in one of six ranges from 2.5 to 10.3."""
  picture = clutter(rng, lines=3)
  radius = 2.5 + 1.3 * (label + rng.uniform(0.05, 0.95))
  shape = (rendering.square, rendering.triangle, rendering.ring)[rng.integers(3)]
  center = rng.uniform(min(radius, 10), SIDE - 1 - min(radius, 10), 2)
  picture = add_shape(rng, picture, shape, center, radius, rng.uniform(0, 2 * np.pi))
  return rendering.finish(rng, picture, NOISE)


def relation(rng: np.random.Generator, label: int) -> np.ndarray:
  """A square left of, above, right of, below or inside a ring, in the order of the labels."""
  picture = clutter(rng, lines=2)
  radius = rng.uniform(4.2, 5.2)
  if label == 4:
    middle = rng.uniform(radius, SIDE - 1 - radius, 2)
    place = middle + rng.uniform(-0.6, 0.6, 2)
  else:
    turn = np.pi + label * np.pi / 2 + rng.uniform(-0.6, 0.6)
    middle, place = rendering.pair(rng, 4.0, rng.uniform(8.5, 14), turn)
  picture = add_shape(rng, picture, rendering.ring, middle, radius)
  picture = add_shape(rng, picture, rendering.square, place, rng.uniform(1.8, 2.4))
  return rendering.finish(rng, picture, NOISE)


def add_shape(
  rng: np.random.Generator,
  picture: np.ndarray,
  shape: rendering.Distance,
  center: rendering.Point,
  radius: float,
  turn: float = 0.0,
) -> np.ndarray:
  """The picture with a bright shape of a random color; see `rendering.coverage`."""
  cover = rendering.coverage(shape, center, radius, turn)
  return rendering.paint(picture, cover, rendering.tint(rng, *_SHAPES))


def clutter(rng: np.random.Generator, lines: int) -> np.ndarray:
  """A dark picture of clouds and faint lines."""
  picture = rendering.smooth_field(rng, *_CLOUDS)
  for _ in range(lines):
    ends = rng.uniform(-4, SIDE + 3, (2, 2))
    picture = rendering.stroke(picture, ends, rendering.tint(rng, *_LINES), 1.0)
  return picture
