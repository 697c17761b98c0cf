"""The results of a suite beside the published rows: what papers give a number for, and the means of those.

A mean is over all that it says it is over, or it shows how much of that is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from glora_jax.data.tasks import fewshot, generalization, vtab
from glora_jax.reports.run_report import PAPER_LABEL

PUBLISHED_FILE = os.path.join(os.path.dirname(__file__), 'published.json')
OURS = {'winner': 'finetuned', 'winner_supernet': 'as searched', 'linear': 'linear probe'}
_TEST_SETS = {
  'test': 'ImageNet',
  'v2': 'ImageNet-V2',
  'sketch': 'ImageNet-Sketch',
  'a': 'ImageNet-A',
  'r': 'ImageNet-R',
}
PAPER = PAPER_LABEL.partition(':')[0]  # where there is little room


@dataclasses.dataclass
class Board:
  """How far a suite is.

  Attributes:
    suite: what it was asked for, as 'vtab/all'.
    tasks: names of all tasks, in order.
    results: task -> content of its `result.json`.
    missing: task -> what its data lacks and how to get it.
    failed: task -> the sentence that it ended with.
  """

  suite: str
  tasks: Sequence[str]
  results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def waiting(self) -> list[str]:
    return [name for name in self.tasks if self.state(name) == 'waiting']

  def state(self, name: str) -> str:
    """'done', 'failed', 'not ready' or 'waiting'."""
    states = {'done': self.results, 'failed': self.failed, 'not ready': self.missing}
    return next((state for state, there in states.items() if name in there), 'waiting')


class Column(NamedTuple):
  """What papers give one number for: a task of VTAB, a data set with a number of shots, a test set."""

  name: str
  title: str
  group: str


class Cell(NamedTuple):
  """An accuracy in percent, or the mean of several, of which `done` of `of` are there."""

  value: float | None
  done: int
  of: int

  @property
  def complete(self) -> bool:
    return self.value is not None and self.done == self.of

  def __str__(self) -> str:
    return (
      '-'
      if self.value is None
      else f'{self.value:.1f}' + ('' if self.complete else f' ({self.done} of {self.of})')
    )


class Row(NamedTuple):
  """One method.

  Attributes:
    method: its name in headings.
    ours: whether this suite ran it; otherwise it was published.
    cells: column -> accuracy.
    params: trained, in millions; ours: the mean over the tasks.
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


def mean(cells: Iterable[Cell]) -> Cell:
  """Of those that are complete."""
  cells = list(cells)
  there = [cell.value for cell in cells if cell.complete]
  return Cell(statistics.fmean(there) if there else None, len(there), len(cells))


def columns(tasks: Sequence[str]) -> list[Column]:
  """All that the benchmark of these tasks consists of, whether they fill it or not; of few-shot: with these numbers of shots."""
  kind = tasks[0].partition('/')[0]
  if kind == 'vtab':
    return [Column(task.name, task.name, task.group) for task in vtab.TASKS]
  if kind == 'fewshot':
    shots = {
      number: f'{number} shot' + ('s' if number != '1' else '')
      for number in (task.split('/')[2] for task in tasks)
    }
    return [
      Column(f'{name}/{number}', f'{name}, {words}', words)
      for number, words in shots.items()
      for name in fewshot.NAMES
    ]
  return [
    Column(name, _TEST_SETS[name], 'source' if name == 'test' else 'shifted')
    for name, *_ in generalization.TESTS
  ]


def filled(task: str) -> list[tuple[str, str]]:
  """(column, test split) of what a task's result holds."""
  kind, _, rest = task.partition('/')
  if kind == 'generalization':
    return [(name, name) for name, *_ in generalization.TESTS]
  return [(rest if kind == 'vtab' else rest.rpartition('/')[0], 'test')]


def paper_protocol(board: Board) -> bool:
  """Whether subnets were searched on the test set."""
  return any(result['protocol'] == 'paper' for result in board.results.values())


def own_rows(board: Board) -> list[Row]:
  """What this suite has run: the winner after and before finetuning, the linear probe, the presets."""
  prefix = f'ours ({PAPER})' if paper_protocol(board) else 'ours'
  presets = dict.fromkeys(name for result in board.results.values() for name in result['presets'])
  expected = [(column, task, split) for task in board.tasks for column, split in filled(task)]
  rows = []
  for name in (*OURS, *presets):
    entries = {
      task: result['presets'].get(name) or result[name] for task, result in board.results.items()
    }
    accuracy = lambda task, split, entries=entries: (
      100
      * (
        entries[task]['test_accuracy']
        if split == 'test'
        else entries[task]['other_test_accuracies'][split]
      )
    )
    cells = {}
    for column in columns(board.tasks):
      runs = [(task, split) for other, task, split in expected if other == column.name]
      there = [accuracy(*run) for run in runs if run[0] in entries]
      cells[column.name] = Cell(statistics.fmean(there) if there else None, len(there), len(runs))
    params = (
      statistics.fmean(entry['params'] for entry in entries.values()) / 1e6 if entries else None
    )
    rows.append(Row(f'{prefix}, {OURS.get(name, name)}', True, cells, params))
  return rows


@functools.cache
def published() -> dict[str, Any]:
  """The content of `published.json`."""
  with open(PUBLISHED_FILE) as file:
    return json.load(file)


def published_rows(tasks: Sequence[str]) -> list[Row]:
  """Of the benchmark of these tasks, in the order of their publication."""
  rows = []
  for row in published()['rows'][tasks[0].partition('/')[0]]:
    cell = lambda name, values=row['values']: Cell(values.get(name), int(name in values), 1)
    cells = {column.name: cell(column.name) for column in columns(tasks)}
    rows.append(
      Row(
        row['method'],
        False,
        cells,
        row['params_million'],
        row['group_mean'],
        row['from_memory'],
        row['paper'] or '',
      )
    )
  return rows


def summary(row: Row, tasks: Sequence[str], *, quoted: bool = True) -> dict[str, Cell]:
  """The means of a row: of every group, of the groups (VTAB's headline number), of all.

  Args:
    row: of `own_rows` or `published_rows`.
    tasks: of the suite.
    quoted: take a published mean of groups as it was published, in place of the one that its own accuracies give.
  """
  every = columns(tasks)
  groups = {
    group: mean(row.cells[column.name] for column in every if column.group == group)
    for group in dict.fromkeys(column.group for column in every)
  }
  over_all = mean(row.cells.values())
  if not tasks[0].startswith('vtab/'):
    return {
      **{f'mean of {name}': cell for name, cell in groups.items() if cell.of > 1},
      'mean of all': over_all,
    }
  over_groups = (
    mean(groups.values()) if over_all.complete else Cell(None, over_all.done, over_all.of)
  )
  if quoted and row.quoted is not None:
    over_groups = Cell(row.quoted, 1, 1)
  return {
    **{f'mean of {name}': cell for name, cell in groups.items()},
    'mean of groups': over_groups,
    'mean of tasks': over_all,
  }


def lines(board: Board, rows: Sequence[Row]) -> list[tuple[str, bool, list[Cell]]]:
  """The table: (title, whether it is a mean, the cell of every row). The first row says what is done."""
  every = columns(board.tasks)
  means = [summary(row, board.tasks) for row in rows]
  found = []
  for group in dict.fromkeys(column.group for column in every):
    found += [
      (column.title, False, [row.cells[column.name] for row in rows])
      for column in every
      if column.group == group
    ]
    if (title := f'mean of {group}') in means[0]:
      found.append((title, True, [one.pop(title) for one in means]))
  found += [(title, True, [one[title] for one in means]) for title in means[0]]
  done = [name for name, cell in rows[0].cells.items() if cell.complete]
  if 0 < len(done) < len(every):
    found.append(
      (
        f'mean of the {len(done)} that are done',
        True,
        [mean(row.cells[name] for name in done) for row in rows],
      )
    )
  return found
