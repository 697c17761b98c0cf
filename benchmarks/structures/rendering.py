"""Shapes drawn into small pictures, anti-aliased, over what distracts from them. NumPy alone.

A shape is a signed distance: negative inside, in pixels. A picture is float [28, 28, 3], from 0 to
1. Pixel centers have whole coordinates; y points down, and an angle turns x towards y.
"""

from collections.abc import Callable, Sequence

import numpy as np

SIDE = 28  # pixels
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)
_MOST_TRIES = 2000  # of placing centers apart
_FIELD = 5  # nodes a side of a smooth field

Point = Sequence[float]
Distance = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
  """Distance to an upright box around the origin."""
  outside_x, outside_y = np.abs(x) - half_width, np.abs(y) - half_height
  outside = np.hypot(np.maximum(outside_x, 0), np.maximum(outside_y, 0))
  return outside + np.minimum(np.maximum(outside_x, outside_y), 0)


def disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
  """Distance to a disc."""
  return np.hypot(x, y) - radius


def ring(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
  """Distance to a ring as wide as a disc; its line is at least 1.2 pixels thick."""
  half_line = max(radius / 10, 0.6)
  return np.abs(np.hypot(x, y) - radius + half_line) - half_line


def square(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
  """Distance to a square of about the disc's area."""
  return _box(x, y, 0.87 * radius, 0.87 * radius)


def triangle(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
  """Distance to an equilateral triangle; a corner points along x, at 1.2 radii."""
  angles = np.deg2rad([60, 180, 300])
  sides = [x * np.cos(angle) + y * np.sin(angle) for angle in angles]
  return np.maximum.reduce(sides) - 0.6 * radius


def cross(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
  """Distance to an upright cross with arms as long as the radius."""
  half_line = max(radius / 4, 0.6)
  return np.minimum(_box(x, y, radius, half_line), _box(x, y, half_line, radius))


def bar(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
  """Distance to a bar along x, two radii long and 1.6 pixels wide at least."""
  return _box(x, y, radius, max(radius / 7, 0.8))


def arrow(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
  """Distance to an arrow along x, two radii long."""
  shaft = _box(x + 0.2 * radius, y, 0.8 * radius, max(radius / 8, 0.6))
  head = triangle(x - 0.45 * radius, y, 0.46 * radius)
  return np.minimum(shaft, head)


def coverage(shape: Distance, center: Point, radius: float, angle: float = 0.0) -> np.ndarray:
  """How much of each pixel a shape covers, float [28, 28] from 0 to 1.

  Args:
    shape: a function of this module.
    center: (x, y) in pixels.
    radius: size in pixels.
    angle: in radians, by which the shape is turned.
  """
  x, y = COLUMNS - center[0], ROWS - center[1]
  cosine, sine = np.cos(angle), np.sin(angle)
  distance = shape(cosine * x + sine * y, cosine * y - sine * x, radius)
  return np.clip(0.5 - distance, 0, 1)


def paint(picture: np.ndarray, cover: np.ndarray, color: np.ndarray) -> np.ndarray:
  """A picture with a color laid over it.

  Args:
    picture: float [28, 28, 3].
    cover: float [28, 28] from 0 to 1.
    color: float [3].
  """
  return picture + cover[..., None] * (color - picture)


def stroke(picture: np.ndarray, ends: np.ndarray, color: np.ndarray, width: float) -> np.ndarray:
  """A picture with a line.

  Args:
    picture: float [28, 28, 3].
    ends: (x, y) of both ends, float [2, 2].
    color: float [3].
    width: in pixels; less than one is a fainter line.
  """
  along = ends[1] - ends[0]
  x, y = COLUMNS - ends[0, 0], ROWS - ends[0, 1]
  share = np.clip((x * along[0] + y * along[1]) / (along @ along + 1e-9), 0, 1)
  distance = np.hypot(x - share * along[0], y - share * along[1])
  cover = np.clip(0.5 + width / 2 - distance, 0, min(1, width))
  return paint(picture, cover, color)


def tint(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
  """A color, float [3], of a brightness between two, with a little hue."""
  return np.clip(rng.uniform(low, high) + rng.uniform(-0.1, 0.1, 3), 0, 1)


def gradient(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
  """A picture that goes from one color to another along a random direction."""
  angle = rng.uniform(0, 2 * np.pi)
  share = (COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) / (SIDE * np.sqrt(2))
  share = (share - share.min()) / (share.max() - share.min())
  start, end = tint(rng, low, high), tint(rng, low, high)
  return start + share[..., None] * (end - start)


def smooth_field(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
  """A picture of clouds: few random colors, interpolated linearly."""
  nodes = rng.uniform(low, high, (_FIELD, _FIELD, 1)) + rng.uniform(
    -0.06, 0.06, (_FIELD, _FIELD, 3)
  )
  places = np.linspace(0, _FIELD - 1, SIDE)
  weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(_FIELD)))
  columns = np.tensordot(weights, nodes, (1, 1))  # [x, node, color]
  return np.clip(np.tensordot(weights, columns, (1, 1)), 0, 1)


def spread(
  rng: np.random.Generator, count: int, margin: float, gap: float, taken: Sequence[Point] = ()
) -> np.ndarray:
  """Random centers, float [count, 2], each so far from the border and from one another.

  Args:
    rng: random generator.
    count: number of centers.
    margin: least distance to the border.
    gap: least distance between two.
    taken: centers that are there already, and are not returned.

  Raises:
    ValueError: no place was found; the picture is too small for so many.
  """
  centers = [np.asarray(center) for center in taken]
  for _ in range(_MOST_TRIES):
    if len(centers) == count + len(taken):
      return np.reshape(centers[len(taken) :], (count, 2))
    center = rng.uniform(margin, SIDE - 1 - margin, 2)
    if all(np.hypot(*(center - other)) >= gap for other in centers):
      centers.append(center)
  raise ValueError(
    f'{count} centers do not fit {gap} pixels apart into {SIDE}; lower the number or the gap.'
  )


def pair(
  rng: np.random.Generator, margin: float, apart: float, turn: float | None = None
) -> np.ndarray:
  """Two random centers at a distance from each other, float [2, 2].

  Args:
    rng: random generator.
    margin: least distance to the border.
    apart: distance between the two.
    turn: direction from the first to the second in radians; any without.

  Raises:
    ValueError: no place was found; the distance is too large.
  """
  for _ in range(_MOST_TRIES):
    angle = rng.uniform(0, 2 * np.pi) if turn is None else turn
    first = rng.uniform(margin, SIDE - 1 - margin, 2)
    second = first + apart * np.array([np.cos(angle), np.sin(angle)])
    if (np.abs(second - (SIDE - 1) / 2) <= (SIDE - 1) / 2 - margin).all():
      return np.stack([first, second])
  raise ValueError(f'Two centers {apart} pixels apart do not fit into {SIDE}; lower the distance.')


def finish(rng: np.random.Generator, picture: np.ndarray, noise: float) -> np.ndarray:
  """The picture as uint8 [28, 28, 3], with gray noise of a standard deviation."""
  noisy = picture + rng.normal(0, noise, (SIDE, SIDE, 1))
  return np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
