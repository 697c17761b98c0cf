"""The long table as people read it: by structure for one task, by task for several.

An incomplete mean shows how much of it is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from glora_jax.vision.reports.page import SERIES
from glora_jax.vision.reports.table import (
  MEAN_OF_GROUPS,
  Board,
  Row,
  place_of,
  places_of,
  rows_of,
)
from glora_jax.vision.reports.text import PAPER, group_by
from glora_jax.vision.structure_names import FOUND, GRADIENT, SEARCH, SUPERNET, TRANSFER

_STYLES = {
  SEARCH: ('searched', 'red', 'star'),
  GRADIENT: ('gradient', 'teal', 'star'),
  TRANSFER: ('transferred', 'dim', 'star'),
  SUPERNET: ("with the supernet's weights", 'dim', 'dot'),
}
_PUBLISHED = {
  'LoRA': ('LoRA, published', 'purple', 'diamond'),
  'GLoRA': ('GLoRA, published', 'red', 'star'),
}


class Number(NamedTuple):
  """A number of a table: the mean of those that are there.

  Attributes:
    value: the mean; nan without values.
    done: how many values there are.
    total: how many there will be.
    deviation: their sample standard deviation; None if that means nothing.
    digits: format of the number.
    repeats: the values, by seed.

  Example:
    >>> str(Number(71.23, 5, 19)), str(Number(71.23, 2, 2, 0.5)), str(Number(math.nan, 0, 19))
    ('71.2 (5 of 19)', '71.2 ± 0.5', '')
  """

  value: float
  done: int = 1
  total: int = 1
  deviation: float | None = None
  digits: str = '.1f'
  repeats: Mapping[Hashable, float] = {}

  @property
  def complete(self) -> bool:
    """Whether all values are there."""
    return 0 < self.done == self.total

  def __str__(self) -> str:
    if not self.done:
      return ''
    spread = '' if self.deviation is None else f' ± {self.deviation:{self.digits}}'
    known = '' if self.complete else f' ({self.done} of {self.total})'
    return f'{self.value:{self.digits}}{spread}{known}'


def mean(repeats: Mapping[Hashable, float], total: int | None = None) -> Number:
  """The mean of repeated measurements, with their spread if there are several.

  Args:
    repeats: the values that are there, by run.
    total: how many there will be; None for as many.

  Example:
    >>> str(mean({0: 1, 1: 2, 2: 3})), str(mean({0: 1}, 2))
    ('2.0 ± 1.0', '1.0 (1 of 2)')
  """
  values = list(repeats.values())
  done = len(values)
  return Number(
    value=statistics.fmean(values) if values else math.nan,
    done=done,
    total=done if total is None else total,
    deviation=statistics.stdev(values) if done > 1 else None,
    repeats=repeats,
  )


def mean_of(numbers: Sequence[Number]) -> Number:
  """The mean of the numbers that are complete, with its spread over the runs if all of them are.

  Example:
    >>> str(mean_of([mean({0: 1, 1: 3}), mean({0: 2, 1: 4})])), str(mean_of([mean({0: 1}, 2)]))
    ('2.5 ± 1.4', '')
  """
  complete = [number for number in numbers if number.complete]
  by_line = [list(number.repeats.values()) for number in complete]
  if len(complete) < len(numbers) or len(set(map(len, by_line))) > 1:
    found = mean(dict(enumerate(number.value for number in complete)), len(numbers))
    return found._replace(deviation=None)
  by_run = [statistics.fmean(values) for values in zip(*by_line, strict=True)]
  return mean(dict(enumerate(by_run)))._replace(done=len(numbers), total=len(numbers))


class Method(NamedTuple):
  """A structure with all of its measurements, or a published method.

  Attributes:
    label: its name in tables.
    rows: its part of the long table, at least one.
    style: (kind in a legend, color, shape) of its mark.
    is_strong: whether it is a result.
    cells: accuracies in percent, by title.
  """

  label: str
  rows: Sequence[Row]
  style: tuple[str, str, str]
  is_strong: bool = False
  cells: Mapping[str, Number] = {}

  @property
  def is_published(self) -> bool:
    """Whether it was published; the others were measured by our runs."""
    return self.rows[0].is_published

  @property
  def is_fixed(self) -> bool:
    """Whether its structure was given, and not chosen for the task."""
    return self.rows[0].structure not in (*FOUND, SUPERNET)

  def mean(self, field: str, digits: str) -> Number:
    """The mean of another field over its runs: parameters, seconds or the rate."""
    known = {row.run: getattr(row, field) for row in self.rows}
    found = mean({run: value for run, value in known.items() if value is not None})
    return found._replace(deviation=None, digits=digits)

  @property
  def parameters(self) -> Number:
    """How many are trained."""
    return self.mean('parameters', ',.0f')


class Pivot(NamedTuple):
  """A board's methods with their accuracies.

  Attributes:
    board: the board.
    methods: ours, then the published ones; none before a run is tested.
  """

  board: Board
  methods: list[Method]

  @property
  def ours(self) -> list[Method]:
    """The methods that our runs measured."""
    return [method for method in self.methods if not method.is_published]

  @property
  def candidates(self) -> list[Method]:
    """Ours, without those that have the supernet's weights instead of trained ones."""
    return [method for method in self.ours if method.rows[0].structure != SUPERNET]

  @property
  def headline(self) -> str:
    """The title of the numbers that a page begins with; '' as long as no mean is complete."""
    if not self.board.by_task:
      return 'test' if any(method.cells['test'].done for method in self.ours) else 'validation'
    means = [
      title
      for title in self.ours[0].cells
      if is_mean(title) and all(method.cells[title].complete for method in self.ours)
    ]
    return MEAN_OF_GROUPS if MEAN_OF_GROUPS in means else ''.join(means[-1:])

  @property
  def images(self) -> int:
    """How many images the headline's numbers of one task are measured on."""
    counts = self.board.results[self.methods[0].rows[0].run]['data']['images']
    return counts['val' if self.headline == 'validation' else self.headline]

  @property
  def best(self) -> Method:
    """The most accurate structure of a grid, of equal ones the smallest; elsewhere the result."""
    title = self.headline
    if not self.board.is_grid or not title:
      return next((method for method in self.methods if method.is_strong), self.methods[0])
    return max(self.candidates, key=lambda each: (each.cells[title].value, -each.parameters.value))


def is_mean(title: str) -> bool:
  """Whether numbers of this title are means of others."""
  return title.startswith('mean of ')


def pivot_of(board: Board) -> Pivot:
  """The methods of a board with their accuracies.

  Those of one task are by split; those of several by line of papers' tables, with means. If several
  runs choose a result each, the first method is what they chose. Structures of a grid on one task
  are in the order of their parameters.
  """
  methods = [method._replace(cells=_accuracies(board, method)) for method in _methods(board)]
  titles = _titles(board, methods)
  for at, method in enumerate(methods):
    cells: dict[str, Number] = {}
    for title, parts in titles.items():
      # Some means were published.
      cells[title] = method.cells.get(title) or mean_of([cells[part] for part in parts])
    methods[at] = method._replace(cells=cells)
  if board.is_grid and not board.by_task:
    methods.sort(key=lambda method: method.parameters.value)
  return Pivot(board, methods)


def _methods(board: Board) -> list[Method]:
  """The methods, without their accuracies."""
  rows = [row for row in rows_of(board) if row.role != 'rate' and _line_of(board, row)]
  if all(row.is_published for row in rows):
    return []
  # A published method may have several sizes.
  groups = group_by(
    rows, lambda row: (row.structure, row.label, row.is_published and row.parameters)
  )
  methods, chosen = list(groups.values()), [row for row in rows if row.role == 'result']
  is_run = len(board.tested) == 1
  if chosen and not is_run:
    methods = [chosen, *(same for same in methods if _label(same) != _label(chosen))]
  ours = 'ours, ' if rows[-1].is_published else ''
  if board.is_paper and not is_run:
    ours = f'ours ({PAPER}), '
  found = []
  for number, same in enumerate(methods):
    label = _label(same) if same[0].is_published else ours + _label(same)
    is_strong = all(row.role == 'result' for row in same)
    found.append(Method(label, same, _style(board, same[0], label, number), is_strong))
  return found


def _label(rows: Iterable[Row]) -> str:
  return ' or '.join(dict.fromkeys(row.label for row in rows))


def _style(board: Board, row: Row, label: str, number: int) -> tuple[str, str, str]:
  """How a method is drawn: of one task by where its structure is from, of several by its name."""
  if row.is_published:
    return _PUBLISHED.get(label, ('others, published', 'grey', 'ring'))
  if board.by_task:
    return label, f'series-{number % len(SERIES)}', 'dot'
  return _STYLES.get(row.structure, ('fixed', 'purple', 'dot'))


def _titles(board: Board, methods: Sequence[Method]) -> dict[str, Sequence[str]]:
  """The titles of all numbers in order, those of means with what they are the mean of."""
  if not board.by_task:
    found = [title for method in methods for title in method.cells]
    return dict.fromkeys(['validation', 'test', *found], ())
  places = [place for cell in board.tested.values() for place in places_of(cell.task)]
  titles: dict[str, Sequence[str]] = {}
  for group, same in group_by(places, lambda place: place.group).items():
    in_group = list(dict.fromkeys(place.line for place in same))
    titles |= dict.fromkeys(in_group, ())
    if len(in_group) > 1:
      titles[f'mean of {group}'] = in_group
  means = [title for title, parts in titles.items() if parts]
  lines = [title for title, parts in titles.items() if not parts]
  if board.family == 'vtab':
    titles[MEAN_OF_GROUPS] = means
  titles['mean of all'] = lines
  ours = [method.cells for method in methods if not method.is_published]
  done = [line for line in lines if all(line in own and own[line].complete for own in ours)]
  if 1 < len(done) < len(lines):
    titles[f'mean of the {len(done)} that are done'] = done
  return titles


def _line_of(board: Board, row: Row) -> str:
  """The title of a measurement: its split, or where papers' tables have it; '' for neither."""
  if not board.by_task:
    return 'validation' if row.split == 'val' else row.split
  return '' if row.split == 'val' else place_of(row.task, row.split).line or row.group


def _accuracies(board: Board, method: Method) -> dict[str, Number]:
  """A method's accuracies in percent by title, over those of its runs that have been measured."""
  repeats: dict[str, dict[Hashable, float]] = {
    title: {(row.seed, row.task): 100 * row.accuracy for row in rows}
    for title, rows in group_by(method.rows, lambda row: _line_of(board, row)).items()
  }
  if method.is_published:
    return {title: mean(shares) for title, shares in repeats.items()}
  first = board.cells[method.rows[0].run]
  runs = [
    cell
    for cell in board.tested.values()
    if (cell.structure, cell.budget) == (first.structure, first.budget)
  ]
  totals = collections.Counter(place.line for cell in runs for place in places_of(cell.task))
  return {
    title: mean(shares, totals[title] if board.by_task else len(runs))
    for title, shares in repeats.items()
  }
