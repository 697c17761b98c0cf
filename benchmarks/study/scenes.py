"""Scenes whose label says what is where in them: counts, angles, places, distances, relations.

A scene is a function `(rng, label) -> picture` uint8 [28, 28, 3]. `discs` and `bars` are for
development; their content, background and noise are not those of the others. From `stripes` on they
were written after all methods were fixed, to confirm what the others had shown.

Shapes are drawn anti-aliased over what distracts from them, by NumPy alone. A shape is a signed
distance: negative inside, in pixels. Pixel centers have whole coordinates; y points down, and an
angle turns x towards y.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

SIDE = 28  # pixels
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)
NOISE = 0.03  # standard deviation of that in all but the development scenes
_FIELD = 5  # nodes a side of a smooth field

Rng = np.random.Generator
Array = np.ndarray  # a picture is float [28, 28, 3], from 0 to 1
Point = Sequence[float]
Distance = Callable[[Array, Array, float], Array]
Scene = Callable[[Rng, int], Array]


def _box(x: Array, y: Array, half_width: float, half_height: float) -> Array:
  """Distance to an upright box around the origin."""
  outside_x, outside_y = np.abs(x) - half_width, np.abs(y) - half_height
  outside = np.hypot(np.maximum(outside_x, 0), np.maximum(outside_y, 0))
  return outside + np.minimum(np.maximum(outside_x, outside_y), 0)


def disc(x: Array, y: Array, radius: float) -> Array:
  """Distance to a disc."""
  return np.hypot(x, y) - radius


def ring(x: Array, y: Array, radius: float) -> Array:
  """Distance to a ring as wide as a disc; its line is at least 1.2 pixels thick."""
  half_line = max(radius / 10, 0.6)
  return np.abs(np.hypot(x, y) - radius + half_line) - half_line


def square(x: Array, y: Array, radius: float) -> Array:
  """Distance to a square of about the disc's area."""
  return _box(x, y, 0.87 * radius, 0.87 * radius)


def triangle(x: Array, y: Array, radius: float) -> Array:
  """Distance to an equilateral triangle; a corner points along x, at 1.2 radii."""
  angles = np.deg2rad([60, 180, 300])
  sides = [x * np.cos(angle) + y * np.sin(angle) for angle in angles]
  return np.maximum.reduce(sides) - 0.6 * radius


def cross(x: Array, y: Array, radius: float) -> Array:
  """Distance to an upright cross with arms as long as the radius."""
  half_line = max(radius / 4, 0.6)
  return np.minimum(_box(x, y, radius, half_line), _box(x, y, half_line, radius))


def bar(x: Array, y: Array, radius: float) -> Array:
  """Distance to a bar along x, two radii long and 1.6 pixels wide at least."""
  return _box(x, y, radius, max(radius / 7, 0.8))


def arrow(x: Array, y: Array, radius: float) -> Array:
  """Distance to an arrow along x, two radii long."""
  shaft = _box(x + 0.2 * radius, y, 0.8 * radius, max(radius / 8, 0.6))
  return np.minimum(shaft, triangle(x - 0.45 * radius, y, 0.46 * radius))


def _broken_ring(x: Array, y: Array, radius: float) -> Array:
  """Distance to a ring without what lies within 0.45 of the direction of x, about."""
  wedge = np.hypot(x, y) * (0.45 - np.abs(np.arctan2(y, x)))
  return np.maximum(ring(x, y, radius), wedge)


def _polygon(x: Array, y: Array, radius: float, corners: int) -> Array:
  """Distance to a regular polygon of the disc's area, about."""
  step = 2 * np.pi / corners
  apothem = radius * np.sqrt(step / 2 / np.tan(step / 2))
  angle = (np.arctan2(y, x) + step / 2) % step - step / 2
  return np.hypot(x, y) * np.cos(angle) - apothem


def coverage(shape: Distance, center: Point, radius: float, angle: float = 0.0) -> Array:
  """How much of each pixel a shape covers, float [28, 28] from 0 to 1.

  Args:
    shape: its distance.
    center: (x, y) in pixels.
    radius: size in pixels.
    angle: in radians, by which the shape is turned.
  """
  x, y = COLUMNS - center[0], ROWS - center[1]
  cosine, sine = np.cos(angle), np.sin(angle)
  distance = shape(cosine * x + sine * y, cosine * y - sine * x, radius)
  return np.clip(0.5 - distance, 0, 1)


def paint(picture: Array, cover: Array, color: Array) -> Array:
  """A picture with a color [3] laid over it, as far as it covers each pixel [28, 28]."""
  return picture + cover[..., None] * (color - picture)


def stroke(picture: Array, ends: Array, color: Array, width: float) -> Array:
  """A picture with a line between two ends (x, y); less than one pixel wide is fainter."""
  along = ends[1] - ends[0]
  x, y = COLUMNS - ends[0, 0], ROWS - ends[0, 1]
  share = np.clip((x * along[0] + y * along[1]) / (along @ along + 1e-9), 0, 1)
  distance = np.hypot(x - share * along[0], y - share * along[1])
  return paint(picture, np.clip(0.5 + width / 2 - distance, 0, min(1, width)), color)


def tint(rng: Rng, low: float, high: float) -> Array:
  """A color, float [3], of a brightness between two, with a little hue."""
  return np.clip(rng.uniform(low, high) + rng.uniform(-0.1, 0.1, 3), 0, 1)


def gradient(rng: Rng, low: float, high: float) -> Array:
  """A picture that goes from one color to another along a random direction."""
  angle = rng.uniform(0, 2 * np.pi)
  share = (COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) / (SIDE * np.sqrt(2))
  share = (share - share.min()) / (share.max() - share.min())
  start, end = tint(rng, low, high), tint(rng, low, high)
  return start + share[..., None] * (end - start)


def smooth_field(rng: Rng, low: float, high: float) -> Array:
  """A picture of clouds: few random colors, interpolated linearly."""
  nodes = rng.uniform(low, high, (_FIELD, _FIELD, 1)) + rng.uniform(
    -0.06, 0.06, (_FIELD, _FIELD, 3)
  )
  places = np.linspace(0, _FIELD - 1, SIDE)
  weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(_FIELD)))
  columns = np.tensordot(weights, nodes, (1, 1))  # [x, node, color]
  return np.clip(np.tensordot(weights, columns, (1, 1)), 0, 1)


def clutter(rng: Rng, lines: int) -> Array:
  """A dark picture of clouds and faint lines."""
  picture = smooth_field(rng, 0.0, 0.2)
  for _ in range(lines):
    ends = rng.uniform(-4, SIDE + 3, (2, 2))
    picture = stroke(picture, ends, tint(rng, 0.2, 0.5), 1.0)
  return picture


def add_shape(
  rng: Rng,
  picture: Array,
  shape: Distance,
  center: Point,
  radius: float,
  turn: float = 0.0,
  bright: tuple[float, float] = (0.7, 1.0),
) -> Array:
  """The picture with a shape of a random color, by default a bright one; see `coverage`."""
  return paint(picture, coverage(shape, center, radius, turn), tint(rng, *bright))


def within(rng: Rng, margin: float) -> Array:
  """A random center, float [2], so far from the border."""
  return rng.uniform(margin, SIDE - 1 - margin, 2)


def spread(
  rng: Rng, count: int, margin: float, gap: float, taken: Sequence[Point] = ()
) -> list[Array]:
  """Random centers, each so far from the border and from one another, and from those taken."""
  centers = [np.asarray(center) for center in taken]
  while len(centers) < count + len(taken):
    center = within(rng, margin)
    if all(np.hypot(*(center - other)) >= gap for other in centers):
      centers.append(center)
  return centers[len(taken) :]


def pair(rng: Rng, margin: float, apart: float, turn: float | None = None) -> Array:
  """Two random centers at a distance from each other, float [2, 2].

  Args:
    rng: random generator.
    margin: least distance to the border.
    apart: distance between the two.
    turn: direction from the first to the second in radians; any without.
  """
  while True:
    angle = rng.uniform(0, 2 * np.pi) if turn is None else turn
    first = within(rng, margin)
    second = first + apart * np.array([np.cos(angle), np.sin(angle)])
    if (np.abs(second - (SIDE - 1) / 2) <= (SIDE - 1) / 2 - margin).all():
      return np.stack([first, second])


def finish(rng: Rng, picture: Array, noise: float = NOISE) -> Array:
  """The picture as uint8 [28, 28, 3], with gray noise of a standard deviation."""
  noisy = picture + rng.normal(0, noise, (SIDE, SIDE, 1))
  return np.round(255 * np.clip(noisy, 0, 1)).astype(np.uint8)


def _dark_or_bright(rng: Rng) -> tuple[Array, tuple[float, float]]:
  """A gradient, and between which brightnesses the colors stand out from it."""
  is_dark = rng.random() < 0.5
  picture = gradient(rng, *((0.0, 0.35) if is_dark else (0.65, 1.0)))
  return picture, (0.55, 1.0) if is_dark else (0.0, 0.45)


def discs(rng: Rng, label: int) -> Array:
  """One to five discs, the label counted from 0, on a gradient."""
  picture, colors = _dark_or_bright(rng)
  radii = rng.uniform(1.8, 3.4, label + 1)
  for center, radius in zip(spread(rng, label + 1, 3.5, 7.5), radii, strict=True):
    picture = add_shape(rng, picture, disc, center, radius, bright=colors)
  return finish(rng, picture, 0.08)


def bars(rng: Rng, label: int) -> Array:
  """A bar in one of eight directions that lie 22.5 degrees apart, on a gradient."""
  picture, colors = _dark_or_bright(rng)
  angle = (label + rng.uniform(-0.4, 0.4)) * np.pi / 8
  radius = rng.uniform(4, 8)
  picture = add_shape(rng, picture, bar, within(rng, radius), radius, angle, colors)
  return finish(rng, picture, 0.12)


def count(rng: Rng, label: int) -> Array:
  """One to six crosses and squares, the label counted from 0, amid lines and clouds."""
  picture = clutter(rng, 2)
  for center in spread(rng, label + 1, 3.0, 7.2):
    shape = (cross, square)[rng.integers(2)]
    picture = add_shape(rng, picture, shape, center, rng.uniform(2.0, 2.7))
  return finish(rng, picture)


def angle(rng: Rng, label: int) -> Array:
  """An arrow that points in one of eight directions, 45 degrees apart, amid lines and clouds."""
  picture = clutter(rng, 3)
  radius = rng.uniform(6, 9)
  center = within(rng, radius)
  direction = (label + rng.uniform(-0.4, 0.4)) * np.pi / 4
  return finish(rng, add_shape(rng, picture, arrow, center, radius, direction))


def position(rng: Rng, label: int) -> Array:
  """A ring beside two squares, amid lines and clouds; the label is its cell of nine, by rows."""
  picture = clutter(rng, 2)
  cell = SIDE / 3
  row, column = divmod(label, 3)
  corner = np.array([column, row]) * cell
  center = np.clip(corner + rng.uniform(0.5, cell - 0.5, 2) - 0.5, 3, SIDE - 4)
  for place in spread(rng, 2, 3.0, 8.0, [center]):
    picture = add_shape(rng, picture, square, place, rng.uniform(2.0, 2.7))
  return finish(rng, add_shape(rng, picture, ring, center, rng.uniform(3.0, 4.0)))


def distance(rng: Rng, label: int) -> Array:
  """Two squares whose distance lies in one of four ranges from 5 to 21 pixels, over clouds."""
  picture = clutter(rng, 0)
  for center in pair(rng, 3.0, 5 + 4.5 * label + rng.uniform(0, 2.5)):
    picture = add_shape(rng, picture, square, center, rng.uniform(2.6, 3.2))
  return finish(rng, picture)


def size(rng: Rng, label: int) -> Array:
  """A turned square, triangle or ring whose radius lies in one of six ranges from 2.5 to 10.3."""
  picture = clutter(rng, 3)
  radius = 2.5 + 1.3 * (label + rng.uniform(0.05, 0.95))
  shape = (square, triangle, ring)[rng.integers(3)]
  center = within(rng, min(radius, 10))
  return finish(rng, add_shape(rng, picture, shape, center, radius, rng.uniform(0, 2 * np.pi)))


def relation(rng: Rng, label: int) -> Array:
  """A square left of, above, right of, below or inside a ring, in the order of the labels."""
  picture = clutter(rng, 2)
  radius = rng.uniform(4.2, 5.2)
  if label == 4:
    middle = within(rng, radius)
    place = middle + rng.uniform(-0.6, 0.6, 2)
  else:
    turn = np.pi + label * np.pi / 2 + rng.uniform(-0.6, 0.6)
    middle, place = pair(rng, 4.0, rng.uniform(8.5, 14), turn)
  picture = add_shape(rng, picture, ring, middle, radius)
  return finish(rng, add_shape(rng, picture, square, place, rng.uniform(1.8, 2.4)))


def stripes(rng: Rng, label: int) -> Array:
  """A striped disc amid lines and clouds; stripes are 1.5 pixels wide, or 1.2 times that, ..."""
  picture = clutter(rng, 3)
  radius = rng.uniform(7, 9)
  center = within(rng, radius)
  turn, phase = rng.uniform(0, 2 * np.pi, 2)
  along = COLUMNS * np.cos(turn) + ROWS * np.sin(turn)
  width = 1.5 * 1.2 ** (label + rng.uniform(-0.3, 0.3))
  bright = 0.5 + 0.5 * np.sin(np.pi * along / width + phase)
  return finish(rng, paint(picture, coverage(disc, center, radius) * bright, tint(rng, 0.7, 1)))


def brightest(rng: Rng, label: int) -> Array:
  """A disc, a ring, a square, a triangle and a cross; the label says which is the brightest."""
  picture = clutter(rng, 0)
  shapes = (disc, ring, square, triangle, cross)
  for index, (shape, center) in enumerate(zip(shapes, spread(rng, 5, 3.2, 7.2), strict=True)):
    color = tint(rng, *((0.9, 1.0) if index == label else (0.45, 0.65)))
    picture = paint(picture, coverage(shape, center, rng.uniform(2.6, 3.4)), color)
  return finish(rng, picture)


def gap(rng: Rng, label: int) -> Array:
  """A ring with a gap in one of eight directions, 45 degrees apart, amid lines and clouds."""
  picture = clutter(rng, 3)
  radius = rng.uniform(5, 8)
  center = within(rng, radius)
  direction = (label + rng.uniform(-0.35, 0.35)) * np.pi / 4
  return finish(rng, add_shape(rng, picture, _broken_ring, center, radius, direction))


def inside(rng: Rng, label: int) -> Array:
  """Five discs, as many of them in a large ring as the label says, amid clouds."""
  picture = clutter(rng, 0)
  radius = rng.uniform(7.5, 8.5)
  middle = within(rng, radius)
  candidates = rng.uniform(1.6, SIDE - 2.6, (1000, 2))
  away = np.hypot(*(candidates - middle).T)
  centers = _apart(candidates[away < radius - 2.4], label)
  centers += _apart(candidates[away > radius + 2.0], 5 - label)
  picture = add_shape(rng, picture, ring, middle, radius)
  for center in centers:
    picture = add_shape(rng, picture, disc, center, rng.uniform(1.2, 1.6))
  return finish(rng, picture)


def _apart(candidates: Array, count: int) -> list[Array]:
  """The first points, at most `count`, that are 3.3 pixels from one another."""
  found: list[Array] = []
  for point in candidates:
    if len(found) < count and all(np.hypot(*(point - other)) >= 3.3 for other in found):
      found.append(point)
  return found


def corners(rng: Rng, label: int) -> Array:
  """A turned regular polygon with three to eight corners, amid lines and clouds."""
  picture = clutter(rng, 3)
  radius = rng.uniform(5.5, 9)
  center = within(rng, radius)
  shape = functools.partial(_polygon, corners=label + 3)
  return finish(rng, add_shape(rng, picture, shape, center, radius, rng.uniform(0, 2 * np.pi)))
