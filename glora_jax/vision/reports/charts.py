"""Charts as plain numbers for the templates: places in percent of a chart's sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

_INTERVALS = 5  # between values along an axis, at most
_SHOWN = 400  # points of a crowd, at most; more look the same
_DIGITS = 2  # of a place, which is a hundredth of a percent


class Axis(NamedTuple):
  """Where values lie along a side of a chart.

  Attributes:
    label: the quantity.
    values: the ticks, ascending; the first and the last are its ends.
    is_log: whether it is logarithmic.
  """

  label: str
  values: Sequence[float]
  is_log: bool = False

  def place(self, value: Any) -> float:
    """The place of a value, in percent of the axis.

    Example:
      >>> Axis('', [0, 20, 40]).place(10), Axis('', [1, 10, 100], is_log=True).place(10)
      (25.0, 50.0)
    """
    low, high, value = self.values[0], self.values[-1], float(value)
    if self.is_log:
      low, high, value = np.log10([low, high, value])
    return round(100 * float((value - low) / (high - low)), _DIGITS)

  def ticks(self) -> list[tuple[float, str]]:
    """(place, label) of the ticks.

    Example:
      >>> Axis('', [0.5, 2_000_000]).ticks()
      [(0.0, '0.5'), (100.0, '2,000,000')]
    """
    return [(self.place(value), f'{value:,.12g}') for value in self.values]


def axis(
  label: str,
  values: Iterable[float],
  *,
  is_log: bool = False,
  whole: bool = False,
  most: float = math.inf,
) -> Axis:
  """An axis for values, with round ticks.

  Args:
    label: the quantity.
    values: finite numbers; on a logarithmic axis at least one, all positive.
    is_log: whether it is logarithmic.
    whole: whether only whole numbers make sense.
    most: an upper limit for values, such as 100 for a percentage.

  Example:
    >>> axis('accuracy', [81.3, 97.2]).values
    [80.0, 85.0, 90.0, 95.0, 100.0]
    >>> axis('accuracy', [100], most=100).values[-1]
    100.0
  """
  numbers = [float(value) for value in values] or [0.0]
  low, high = min(numbers), max(numbers)
  if is_log:  # powers of ten
    first = math.floor(math.log10(low))
    last = max(math.ceil(math.log10(high)), first + 1)
    return Axis(label, [float(f'1e{power}') for power in range(first, last + 1)], is_log)
  if low == high:
    low, high = max(low - 0.5, min(low, 0)), high + 0.5
  high = min(high, most)
  # Multiples of 1, 2, 2.5 or 5 times a power of ten.
  rounds = (float(f'{factor}e{power}') for power in range(-20, 20) for factor in (1, 2, 2.5, 5))
  least = (high - low) / _INTERVALS * (1 - 1e-9)
  step = next(step for step in rounds if step >= least and not (whole and step % 1))
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return Axis(label, [round(number * step, 9) for number in range(first, last + 1)])


class Line(NamedTuple):
  """A curve, or a crowd of dots.

  Attributes:
    label: its name in the legend; '' for none.
    color: name of a color of the palette, for example 'teal' or 'series-0'.
    points: (x, y).
    kind: how it is drawn.
  """

  label: str
  color: str
  points: Sequence[tuple[Any, Any]]
  kind: Literal['line', 'dashed', 'dots'] = 'line'


class Mark(NamedTuple):
  """A point with a name and its exact numbers.

  Attributes:
    at: (x, y); in a dot plot (x,).
    title: its tooltip.
    color: name of a color of the palette.
    shape: 'dot', 'star', 'diamond' or 'ring'; 'hidden' has only the tooltip.
  """

  at: tuple[Any, ...]
  title: str
  color: str
  shape: str = 'dot'


class Rule(NamedTuple):
  """A line across a chart, at a value of the x axis.

  Attributes:
    x: the value.
    label: its name.
    color: name of a color of the palette.
  """

  x: float
  label: str
  color: str


class Chart(NamedTuple):
  """Curves and points over two axes.

  Attributes:
    title: its caption, also for screen readers.
    x: the axis below.
    y: the axis on the left.
    lines: curves and crowds.
    marks: points with names, those of the legend first.
    rules: lines across.
    legend: (name, color, shape) of everything except lines.
  """

  title: str
  x: Axis
  y: Axis
  lines: Sequence[Line] = ()
  marks: Sequence[Mark] = ()
  rules: Sequence[Rule] = ()
  legend: Sequence[tuple[str, str, str]] = ()

  def places(self, points: Iterable[tuple[Any, ...]]) -> list[tuple[float, float]]:
    """Places of points, from the left and from above, in percent.

    Example:
      >>> Chart('', Axis('', [0, 4]), Axis('', [0, 10])).places([(1, 0), (2, 10)])
      [(25.0, 100.0), (50.0, 0.0)]
    """
    return [(self.x.place(x), round(100 - self.y.place(y), _DIGITS)) for x, y in points]


def steps(points: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
  """Points of a curve that stays constant until the next one.

  Example:
    >>> steps([(0, 5), (10, 2)])
    [(0, 5), (10, 5), (10, 2)]
  """
  pairs = itertools.pairwise(points)
  return [*points[:1], *(to for (_, y), (x, to_y) in pairs for to in ((x, y), (x, to_y)))]


def thin(xs: np.ndarray, ys: np.ndarray) -> list[tuple[float, float]]:
  """Different points in order, evenly thinned if there are very many; both ends stay."""
  points = np.unique(np.stack([xs, ys], axis=1), axis=0)
  kept = np.linspace(0, len(points) - 1, min(len(points), _SHOWN), dtype=int)
  return list(map(tuple, points[kept].tolist()))


class Dots(NamedTuple):
  """A row of a dot plot: a name, its points along a common axis, its numbers.

  Attributes:
    label: its name.
    value: its numbers as text.
    marks: points.
    detail: text after the name.
    ends: of a bar around them; empty for no bar.
    is_strong: whether it stands out.
  """

  label: str
  value: str
  marks: Sequence[Mark]
  detail: str = ''
  ends: Sequence[float] = ()
  is_strong: bool = False


class DotPlot(NamedTuple):
  """Dots above a common axis.

  Attributes:
    title: its caption.
    axis: the axis.
    rows: one below the other.
    legend: (name, color, shape) of the marks.
  """

  title: str
  axis: Axis
  rows: Sequence[Dots]
  legend: Sequence[tuple[str, str, str]] = ()


class Bars(NamedTuple):
  """Bars, the longest of which has the full width.

  Attributes:
    bars: (name, number, number as text).
    color: name of a color of the palette.
  """

  bars: Sequence[tuple[str, float, str]]
  color: str
