"""The long table as people read it: by structure for one task, by task for several.

An incomplete mean shows how much of it is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from scipy import stats

from glora_jax.vision.reports.page import SERIES
from glora_jax.vision.reports.table import (
  MEAN_OF_GROUPS,
  Board,
  Row,
  place_of,
  places_of,
  rows_of,
)
from glora_jax.vision.reports.text import PAPER, grouped
from glora_jax.vision.structure_names import FOUND, GRADIENT, SEARCH, SUPERNET, TRANSFER

_STYLES = {  # in a grid
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
    ends: of an interval around it, in place of the deviation's.
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
  ends: Sequence[float] = ()
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


def interval(share: float, number: int) -> tuple[float, float]:
  """Wilson's 95% interval of a share of images, in percent.

  Args:
    share: between 0 and 1.
    number: of how many images, at least 1.

  Example:
    >>> [round(end, 1) for end in interval(0.95, 800)]
    [93.3, 96.3]
  """
  low, high = stats.binomtest(round(share * number), number).proportion_ci(method='wilson')
  return 100 * float(low), 100 * float(high)


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
    return self.rows[0].protocol == 'published'

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


def pivot(board: Board) -> list[Method]:
  """Our methods, then the published ones, with their accuracies; none before a run is tested.

  Those of one task are by split; those of several by line of papers' tables. If several runs choose
  a result each, the first method is what they chose. Structures of a grid on one task are in the
  order of their parameters.
  """
  methods = _methods(board)
  if len(board.tasks) > 1:
    return _by_task(board, methods)
  methods = _by_split(board, methods)
  return sorted(methods, key=lambda each: each.parameters.value) if board.is_grid else methods


def _methods(board: Board) -> list[Method]:
  rows = [row for row in rows_of(board) if row.role != 'rate']
  theirs = [row for row in rows if row.protocol == 'published']
  ours = [row for row in rows if row.protocol != 'published']
  if not ours:
    return []
  chosen = [row for row in ours if row.role == 'result']
  is_run = len(board.tested) == 1
  found = [
    Method(same[0].label, same, _style(board, same[0], number), is_run and same[0] in chosen)
    for number, same in enumerate(grouped(ours, lambda row: (row.structure, row.label)).values())
  ]
  if chosen and not is_run:
    labels = list(dict.fromkeys(row.label for row in chosen))
    name = ' or '.join(labels)
    first = Method(name, chosen, (f'ours, {name}', 'teal', 'dot'), is_strong=True)
    found = [first, *(method for method in found if [method.label] != labels)]
  if theirs or (board.is_paper and not is_run):
    prefix = f'ours ({PAPER})' if board.is_paper else 'ours'
    found = [method._replace(label=f'{prefix}, {method.label}') for method in found]
  # A published method may have several sizes.
  for (name, _), same in grouped(theirs, lambda row: (row.label, row.parameters)).items():
    found.append(Method(name, same, _PUBLISHED.get(name, ('others, published', 'grey', 'ring'))))
  return found


def _style(board: Board, row: Row, number: int) -> tuple[str, str, str]:
  """How one of our methods is drawn: in a grid, among the results of runs, or in a run."""
  if board.is_grid and len(board.tasks) > 1:
    return row.label, f'series-{number % len(SERIES)}', 'dot'
  if board.is_grid:
    return _STYLES.get(row.structure, ('fixed', 'purple', 'dot'))
  if len(board.tested) > 1:
    return 'our other methods', 'ink', 'tick'
  other = 'dim' if row.structure in ('linear', SUPERNET) else 'purple'
  return '', 'red' if row.role == 'result' else other, 'dot'


def _by_split(board: Board, methods: Sequence[Method]) -> list[Method]:
  """A number has the interval of a single run, or the spread over several."""
  splits = dict.fromkeys(['val', 'test', *(row.split for each in methods for row in each.rows)])
  found = []
  for method in methods:
    cells = {}
    for split in splits:
      rows = [row for row in method.rows if row.split == split]
      number = _accuracy(rows, _count(board, method))
      images = board.results[method.rows[0].run]['data']['images']
      if rows and number.total == 1 and split in images:
        number = number._replace(ends=interval(rows[0].accuracy, images[split]))
      cells['validation' if split == 'val' else split] = number
    found.append(method._replace(cells=cells))
  return found


def _by_task(board: Board, methods: Sequence[Method]) -> list[Method]:
  """Lines are tasks or test sets, below each group its mean ('mean of ...'), at the end others."""
  places = [place for cell in board.tested.values() for place in places_of(cell.task)]
  groups = {
    group: list(dict.fromkeys(place.line for place in same))
    for group, same in grouped(places, lambda place: place.group).items()
  }
  every = [line for lines in groups.values() for line in lines]
  found = []
  for method in methods:
    rows = [row for row in method.rows if row.split != 'val']
    measured = grouped(rows, lambda row: place_of(row.task, row.split).line)
    cells: dict[str, Number] = {}
    for group, lines in groups.items():
      for line in lines:
        cells[line] = _accuracy(measured.get(line, []), _count(board, method, line))
      if len(lines) > 1:
        cells[f'mean of {group}'] = mean_of([cells[line] for line in lines])
    if board.family == 'vtab':
      quoted = [row for row in rows if row.group == MEAN_OF_GROUPS]
      means = [cells[f'mean of {group}'] for group in groups]
      cells[MEAN_OF_GROUPS] = _accuracy(quoted, 1) if quoted else mean_of(means)
    cells['mean of all'] = mean_of([cells[line] for line in every])
    found.append(method._replace(cells=cells))
  ours = [method for method in found if not method.is_published]
  done = [line for line in every if all(method.cells[line].complete for method in ours)]
  if 0 < len(done) < len(every):
    title = f'mean of the {len(done)} that {"is" if len(done) == 1 else "are"} done'
    for at, method in enumerate(found):
      number = mean_of([method.cells[line] for line in done])
      found[at] = method._replace(cells={**method.cells, title: number})
  return found


def _accuracy(rows: Iterable[Row], total: int) -> Number:
  """A method's accuracy in percent over some of its runs."""
  return mean({(row.seed, row.task): 100 * row.accuracy for row in rows}, total)


def _count(board: Board, method: Method, line: str | None = None) -> int:
  """How many runs will have measured a method, on a line if one is given."""
  if method.is_published:
    return 1
  of = board.cells[method.rows[0].run]
  return sum(
    (cell.structure, cell.budget) == (of.structure, of.budget)
    and (line is None or line in [place.line for place in places_of(cell.task)])
    for cell in board.tested.values()
  )
