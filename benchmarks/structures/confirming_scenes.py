"""Scenes that were written after all methods were fixed, to confirm what the others had shown.

A scene is a function `(rng, label) -> picture` uint8 [28, 28, 3], as in `scenes`.
"""

import functools
import itertools

import numpy as np

from benchmarks.structures import rendering
from benchmarks.structures.rendering import SIDE
from benchmarks.structures.scenes import NOISE, add_shape, clutter

_ORDERS = list(itertools.permutations((0.45, 0.7, 0.95)))
_BRIGHTEST = (rendering.disc, rendering.ring, rendering.square, rendering.triangle, rendering.cross)


def stripes(rng: np.random.Generator, label: int) -> np.ndarray:
  """A striped disc amid lines and clouds; stripes are 1.5 pixels wide, or 1.2 times that, ..."""
  picture = clutter(rng, lines=3)
  radius = rng.uniform(7, 9)
  center = rng.uniform(radius, SIDE - 1 - radius, 2)
  turn, phase = rng.uniform(0, 2 * np.pi, 2)
  along = rendering.COLUMNS * np.cos(turn) + rendering.ROWS * np.sin(turn)
  width = 1.5 * 1.2 ** (label + rng.uniform(-0.3, 0.3))
  bright = 0.5 + 0.5 * np.sin(np.pi * along / width + phase)
  cover = rendering.coverage(rendering.disc, center, radius) * bright
  return rendering.finish(rng, rendering.paint(picture, cover, rendering.tint(rng, 0.7, 1)), NOISE)


def brightest(rng: np.random.Generator, label: int) -> np.ndarray:
  """A disc, a ring, a square, a triangle and a cross; the label says which is the brightest."""
  picture = clutter(rng, lines=0)
  centers = rendering.spread(rng, len(_BRIGHTEST), 3.2, 7.2)
  for index, (shape, center) in enumerate(zip(_BRIGHTEST, centers, strict=True)):
    color = rendering.tint(rng, *((0.9, 1.0) if index == label else (0.45, 0.65)))
    cover = rendering.coverage(shape, center, rng.uniform(2.6, 3.4))
    picture = rendering.paint(picture, cover, color)
  return rendering.finish(rng, picture, NOISE)


def order(rng: np.random.Generator, label: int) -> np.ndarray:
  """Three discs side by side, dark, medium and bright in one of six orders from left to right."""
  picture = clutter(rng, lines=2)
  for column, brightness in enumerate(_ORDERS[label]):
    center = np.array([4.5 + 9 * column, rng.uniform(4, SIDE - 5)]) + rng.uniform(-0.8, 0.8, 2)
    color = np.clip(brightness + rng.uniform(-0.06, 0.06, 3), 0, 1)
    cover = rendering.coverage(rendering.disc, center, rng.uniform(2.4, 3.4))
    picture = rendering.paint(picture, cover, color)
  return rendering.finish(rng, picture, NOISE)


def mirror(rng: np.random.Generator, label: int) -> np.ndarray:
  """Eight discs, four of them images of the others: mirrored across x, y, or turned, or neither."""
  middle = (SIDE - 1) / 2
  signs = np.array([(-1, 1), (1, -1), (-1, -1)])
  first = rng.uniform(-10.5, 10.5, (4, 2))
  second = first * signs[label] if label < len(signs) else rng.uniform(-10.5, 10.5, (4, 2))
  radii = np.tile(rng.uniform(1.6, 3.2, 4), 2)
  picture = clutter(rng, lines=0)
  for center, radius in zip(np.concatenate([first, second]) + middle, radii, strict=True):
    picture = add_shape(rng, picture, rendering.disc, center, radius)
  return rendering.finish(rng, picture, NOISE)


def bend(rng: np.random.Generator, label: int) -> np.ndarray:
  """An arc of 15 pixels amid lines, turned by one of five ranges of 36 degrees from end to end."""
  picture = clutter(rng, lines=2)
  total = np.deg2rad(36 * (label + rng.uniform(0.1, 0.9)))
  headings = rng.uniform(0, 2 * np.pi) + total * (np.arange(15) - 7) / 14
  points = np.cumsum(np.stack([np.cos(headings), np.sin(headings)], -1), 0)
  points -= (points.min(0) + points.max(0)) / 2
  reach = points.max(0) + 1.5
  points += rng.uniform(reach, SIDE - 1 - reach)
  color = rendering.tint(rng, 0.7, 1)
  for ends in itertools.pairwise(points):
    picture = rendering.stroke(picture, np.array(ends), color, 1.4)
  return rendering.finish(rng, picture, NOISE)


def gap(rng: np.random.Generator, label: int) -> np.ndarray:
  """A ring with a gap in one of eight directions, 45 degrees apart, amid lines and clouds."""
  picture = clutter(rng, lines=3)
  radius = rng.uniform(5, 8)
  center = rng.uniform(radius, SIDE - 1 - radius, 2)
  direction = (label + rng.uniform(-0.35, 0.35)) * np.pi / 4
  broken = functools.partial(_broken_ring, opening=0.45)
  picture = add_shape(rng, picture, broken, center, radius, direction)
  return rendering.finish(rng, picture, NOISE)


def inside(rng: np.random.Generator, label: int) -> np.ndarray:
  """Five discs, as many of them in a large ring as the label says, amid clouds."""
  picture = clutter(rng, lines=0)
  radius = rng.uniform(7.5, 8.5)
  middle = rng.uniform(radius, SIDE - 1 - radius, 2)
  candidates = rng.uniform(1.6, SIDE - 2.6, (1000, 2))
  away = np.hypot(*(candidates - middle).T)
  centers = _apart(candidates[away < radius - 2.4], label, 3.3)
  centers += _apart(candidates[away > radius + 2.0], 5 - label, 3.3)
  picture = add_shape(rng, picture, rendering.ring, middle, radius)
  for center in centers:
    picture = add_shape(rng, picture, rendering.disc, center, rng.uniform(1.2, 1.6))
  return rendering.finish(rng, picture, NOISE)


def corners(rng: np.random.Generator, label: int) -> np.ndarray:
  """A turned regular polygon with three to eight corners, amid lines and clouds."""
  picture = clutter(rng, lines=3)
  radius = rng.uniform(5.5, 9)
  center = rng.uniform(radius, SIDE - 1 - radius, 2)
  shape = functools.partial(_polygon, corners=label + 3)
  picture = add_shape(rng, picture, shape, center, radius, rng.uniform(0, 2 * np.pi))
  return rendering.finish(rng, picture, NOISE)


def _apart(candidates: np.ndarray, count: int, least: float) -> list[np.ndarray]:
  """The first points, at most `count`, that are so far from one another."""
  found: list[np.ndarray] = []
  for point in candidates:
    if len(found) < count and all(np.hypot(*(point - other)) >= least for other in found):
      found.append(point)
  return found


def _broken_ring(x: np.ndarray, y: np.ndarray, radius: float, opening: float) -> np.ndarray:
  """Distance to a ring without what lies within an angle of x, about."""
  wedge = np.hypot(x, y) * (opening - np.abs(np.arctan2(y, x)))
  return np.maximum(rendering.ring(x, y, radius), wedge)


def _polygon(x: np.ndarray, y: np.ndarray, radius: float, corners: int) -> np.ndarray:
  """Distance to a regular polygon of the disc's area, about."""
  step = 2 * np.pi / corners
  apothem = radius * np.sqrt(step / 2 / np.tan(step / 2))
  angle = (np.arctan2(y, x) + step / 2) % step - step / 2
  return np.hypot(x, y) * np.cos(angle) - apothem
