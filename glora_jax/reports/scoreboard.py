"""The results of a suite beside the published rows, and the means of both.

A mean is over all that it names, or it shows how much of that is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from glora_jax.data import catalog
from glora_jax.data.tasks import fewshot, vtab
from glora_jax.reports.markdown import PAPER

PUBLISHED_FILE = os.path.join(os.path.dirname(__file__), 'published.json')
OURS = 'result'  # of each task, whatever structure it is
MEAN_OF_GROUPS = 'mean of groups'  # the headline of VTAB

TEST_SETS = {
  'test': 'ImageNet',
  'v2': 'ImageNet-V2',
  'sketch': 'ImageNet-Sketch',
  'a': 'ImageNet-A',
  'r': 'ImageNet-R',
}
State = Literal['done', 'failed', 'not ready', 'waiting']


class Column(NamedTuple):
  """What papers give one number for.

  Attributes:
    name: name of a task of VTAB, of a data set with a number of shots, or of a test set.
    title: what tables call it.
    group: what it is averaged with.
  """

  name: str
  title: str
  group: str


def family_name(task: str) -> str:
  """The first word of a task's name.

  Example:
    >>> family_name('fewshot/food101/4/0')
    'fewshot'
  """
  return task.partition('/')[0]


def title_of(tasks: Sequence[str]) -> str:
  """What tables call the family that all tasks of a suite belong to."""
  return catalog.FAMILIES[family_name(tasks[0])].title


def columns_of(tasks: Sequence[str]) -> list[Column]:
  """What papers print of the family that all tasks of a suite belong to, whichever it has.

  Of few shots these are all data sets with each number of shots that the suite has.
  """
  family = family_name(tasks[0])
  if family == 'vtab':
    return [Column(task.name, task.name, task.group) for task in vtab.TASKS]
  if family == 'generalization':
    groups = {'test': 'source'}
    return [Column(name, title, groups.get(name, 'shifted')) for name, title in TEST_SETS.items()]
  numbers = dict.fromkeys(task.split('/')[2] for task in tasks)
  titles = {number: '1 shot' if number == '1' else f'{number} shots' for number in numbers}
  return [
    Column(f'{name}/{number}', f'{name}, {title}', title)
    for number, title in titles.items()
    for name in fewshot.NAMES
  ]


def measured(task: str) -> dict[str, str]:
  """The columns that a task measures, each with its test split; seeds share their columns.

  Example:
    >>> measured('vtab/dtd'), measured('fewshot/food101/4/0')
    ({'dtd': 'test'}, {'food101/4': 'test'})
  """
  family, _, name = task.partition('/')
  if family == 'generalization':
    return {test_set: test_set for test_set in TEST_SETS}
  return {name.rpartition('/')[0] if family == 'fewshot' else name: 'test'}


@dataclasses.dataclass
class Board:
  """How far a suite is.

  Attributes:
    suite: name of the suite, as 'vtab/all'.
    tasks: names of all tasks, in order.
    results: content of `result.json` of every task that is done, by its name.
    missing: what a task's data lacks and how to get it, by its name.
    failed: the sentence that a task ended with, by its name.
  """

  suite: str
  tasks: Sequence[str]
  results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def waiting(self) -> list[str]:
    """Names of the tasks that have not been tried."""
    return [name for name in self.tasks if self.state(name) == 'waiting']

  @property
  def is_paper(self) -> bool:
    """Whether structures were searched on the test set."""
    return any(result['protocol'] == 'paper' for result in self.results.values())

  def state(self, name: str) -> State:
    """How far a task is."""
    if name in self.results:
      return 'done'
    if name in self.failed:
      return 'failed'
    return 'not ready' if name in self.missing else 'waiting'


class Cell(NamedTuple):
  """An accuracy, or the mean of several.

  Attributes:
    value: in percent; None where nothing is done.
    done: of how many accuracies it is the mean.
    total: of how many it is the mean once all are done.

  Example:
    >>> str(Cell(71.23, 5, 19)), str(Cell(71.23, 19, 19)), str(Cell(None, 0, 19))
    ('71.2 (5 of 19)', '71.2', '-')
  """

  value: float | None
  done: int
  total: int

  @property
  def complete(self) -> bool:
    """Whether it is the mean of all that it is to be the mean of."""
    return self.value is not None and self.done == self.total

  def __str__(self) -> str:
    if self.value is None:
      return '-'
    return f'{self.value:.1f}' + ('' if self.complete else f' ({self.done} of {self.total})')


def mean(cells: Iterable[Cell]) -> Cell:
  """The mean of the cells that are complete.

  Example:
    >>> mean([Cell(70.0, 3, 3), Cell(80.0, 3, 3), Cell(90.0, 1, 3)])
    Cell(value=75.0, done=2, total=3)
  """
  cells = list(cells)
  values = [cell.value for cell in cells if cell.complete and cell.value is not None]
  return _mean_of(values, len(cells))


def _mean_of(values: Sequence[float], total: int) -> Cell:
  """The mean of the values that are there, out of a total."""
  return Cell(statistics.fmean(values) if values else None, len(values), total)


class Row(NamedTuple):
  """A method.

  Attributes:
    method: its name in headings.
    ours: whether this suite ran it; otherwise it was published.
    cells: its accuracies, by the name of the column.
    params: trained parameters in millions; ours are the mean over the tasks.
    quoted: the published mean of groups.
    from_memory: names of fields that were not seen in a source.
    source: where a published row comes from.
  """

  method: str
  ours: bool
  cells: dict[str, Cell]
  params: float | None = None
  quoted: float | None = None
  from_memory: Sequence[str] = ()
  source: str = ''


def own_rows(board: Board) -> list[Row]:
  """What a suite has run: the result of each task, and every structure that was trained."""
  prefix = f'ours ({PAPER})' if board.is_paper else 'ours'
  of_tasks = {
    task: {OURS: {'label': OURS, **result['structures'][result['result']]}, **result['structures']}
    for task, result in board.results.items()
  }
  names = dict.fromkeys([OURS, *(name for rows in of_tasks.values() for name in rows)])
  rows = []
  for name in names:
    found = {task: structures[name] for task, structures in of_tasks.items() if name in structures}
    params = [float(row['params']) for row in found.values()]
    labels = dict.fromkeys(OURS if name == OURS else row['label'] for row in found.values())
    rows.append(
      Row(
        method=f'{prefix}, {" or ".join(labels) or OURS}',
        ours=True,
        cells=_own_cells(board.tasks, found),
        params=statistics.fmean(params) / 1e6 if params else None,
      )
    )
  return rows


def _own_cells(tasks: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Cell]:
  """The accuracies of a row by column, each the mean over all tasks that measure it.

  Args:
    tasks: names of all tasks of the suite.
    rows: what was measured, by the name of the task, of those that are done.
  """
  totals = {column.name: 0 for column in columns_of(tasks)}
  accuracies: dict[str, list[float]] = {name: [] for name in totals}
  for task in tasks:
    for column, split in measured(task).items():
      totals[column] += 1
      if (row := rows.get(task)) is not None:
        others = row.get('other_test_accuracies', {})
        share = row['test_accuracy'] if split == 'test' else others[split]
        accuracies[column].append(100 * share)
  return {name: _mean_of(accuracies[name], total) for name, total in totals.items()}


@functools.cache
def published() -> dict[str, Any]:
  """The content of `published.json`."""
  with open(PUBLISHED_FILE, encoding='utf-8') as file:
    return json.load(file)


def published_rows(tasks: Sequence[str]) -> list[Row]:
  """The published rows of the family of a suite's tasks, in the order of their publication."""
  columns = columns_of(tasks)
  return [
    Row(
      method=row['method'],
      ours=False,
      cells={
        column.name: Cell(row['values'].get(column.name), int(column.name in row['values']), 1)
        for column in columns
      },
      params=row['params_million'],
      quoted=row['group_mean'],
      from_memory=row['from_memory'],
      source=row['paper'] or '',
    )
    for row in published()['rows'][family_name(tasks[0])]
  ]


def means(row: Row, tasks: Sequence[str], *, quoted: bool = True) -> dict[str, Cell]:
  """The means of a row by their titles: of every group, of the groups (VTAB's headline), of all.

  Args:
    row: one of `own_rows` or `published_rows`.
    tasks: names of the suite's tasks.
    quoted: whether a published mean of groups is taken as it was published, in place of the mean
      that the row's own accuracies have.
  """
  groups: dict[str, list[Cell]] = {}
  for column in columns_of(tasks):
    groups.setdefault(column.group, []).append(row.cells[column.name])
  by_group = {f'mean of {group}': mean(cells) for group, cells in groups.items()}
  over_all = mean(row.cells.values())
  if family_name(tasks[0]) != 'vtab':
    true_means = {title: cell for title, cell in by_group.items() if cell.total > 1}
    return {**true_means, 'mean of all': over_all}
  if quoted and row.quoted is not None:
    over_groups = Cell(row.quoted, 1, 1)
  elif over_all.complete:
    over_groups = mean(by_group.values())
  else:
    over_groups = Cell(None, over_all.done, over_all.total)
  return {**by_group, MEAN_OF_GROUPS: over_groups, 'mean of tasks': over_all}


class Line(NamedTuple):
  """A line of the table.

  Attributes:
    title: what is measured, or averaged.
    is_mean: whether it is a mean.
    cells: the cell of every row of the scoreboard.
  """

  title: str
  is_mean: bool
  cells: list[Cell]


def lines(board: Board, rows: Sequence[Row]) -> list[Line]:
  """The table: the accuracies by group, each group with its mean below, then the other means.

  Args:
    board: the suite.
    rows: methods, a column of the table each; the first one says which tasks are done.
  """
  columns = columns_of(board.tasks)
  row_means = [means(row, board.tasks) for row in rows]
  mean_lines = {
    title: Line(title, True, [by_title[title] for by_title in row_means]) for title in row_means[0]
  }
  table = []
  for group in dict.fromkeys(column.group for column in columns):
    table += [
      Line(column.title, False, [row.cells[column.name] for row in rows])
      for column in columns
      if column.group == group
    ]
    if (title := f'mean of {group}') in mean_lines:
      table.append(mean_lines.pop(title))
  table += mean_lines.values()
  done = [name for name, cell in rows[0].cells.items() if cell.complete]
  if 0 < len(done) < len(columns):
    same_tasks = [mean(row.cells[name] for name in done) for row in rows]
    are = 'is' if len(done) == 1 else 'are'
    table.append(Line(f'mean of the {len(done)} that {are} done', True, same_tasks))
  return table
