"""One long table of what was measured, which every page, summary and `table.csv` is made of."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from glora_jax.files import atomic
from glora_jax.vision.data.tasks import vtab
from glora_jax.vision.structure_names import FOUND

NAME = 'table.csv'
PUBLISHED_FILE = os.path.join(os.path.dirname(__file__), 'published.json')
MEAN_OF_GROUPS = 'mean of groups'  # the headline of VTAB
TEST_SETS = {
  'test': 'ImageNet',
  'v2': 'ImageNet-V2',
  'sketch': 'ImageNet-Sketch',
  'a': 'ImageNet-A',
  'r': 'ImageNet-R',
}
State = Literal['done', 'failed', 'not ready', 'waiting']


class Cell(NamedTuple):
  """A run of a suite.

  Attributes:
    task: name of its task.
    structure: what it trains; '' for the config's structure and its baselines.
    budget: most trained parameters, if the suite has several budgets.
    seed: its seed.
    rate: the learning rate that it tries; None for a run that is tested.
  """

  task: str
  structure: str = ''
  budget: int | None = None
  seed: int = 0
  rate: float | None = None


@dataclasses.dataclass
class Board:
  """The progress of a suite, or a single run as a suite of one.

  A run's name is that of its folder in the suite's workdir.

  Attributes:
    title: the config's task, such as 'vtab/all' or 'digits'.
    cells: all runs by name, in order.
    results: content of `result.json` of every finished run, by name.
    missing: what the data of a run lacks and how to get it, by name.
    failed: the error of a failed run, by name.
  """

  title: str
  cells: Mapping[str, Cell]
  results: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def waiting(self) -> list[str]:
    """Names of the runs that have not been tried."""
    return [name for name in self.cells if self.state(name) == 'waiting']

  @property
  def tested(self) -> dict[str, Cell]:
    """The runs that are tested; the others choose a learning rate."""
    return {name: cell for name, cell in self.cells.items() if cell.rate is None}

  @property
  def finished(self) -> dict[str, dict[str, Any]]:
    """The results in the order of the runs, and not the one in which they ended."""
    return {name: self.results[name] for name in self.cells if name in self.results}

  @property
  def by_task(self) -> bool:
    """Whether accuracies are shown by task, as in papers; those of one task are by structure."""
    return len({cell.task for cell in self.cells.values()}) > 1

  @property
  def family(self) -> str:
    """The first word of its tasks' names, 'vtab' or 'digits'."""
    return next(iter(self.cells.values())).task.partition('/')[0]

  @property
  def is_grid(self) -> bool:
    """Whether every run trains one structure, and chooses no result among several."""
    return all(cell.structure for cell in self.cells.values())

  @property
  def is_paper(self) -> bool:
    """Whether structures were searched on the test set."""
    return any(result['protocol'] == 'paper' for result in self.results.values())

  def state(self, name: str) -> State:
    """The state of a run."""
    if name in self.results:
      return 'done'
    if name in self.failed:
      return 'failed'
    return 'not ready' if name in self.missing else 'waiting'


def board_of_run(result: Mapping[str, Any]) -> Board:
  """The board of a single run, from the content of its `result.json`."""
  task = result['task']
  return Board(task, {'': Cell(task, seed=result['seed'])}, {'': dict(result)})


class Row(NamedTuple):
  """An accuracy that a run has measured, or a published one.

  Attributes:
    run: the run's folder in the suite's workdir; '' for a single run.
    task: name of its task; of a published result without the seed of few shots.
    group: the tasks over which papers take a mean.
    seed: the run's.
    structure: its name in the run, or the published method's.
    label: what pages call it.
    role: 'result' for what a run of several structures chose as its result; 'rate' if the run
      only chooses a learning rate.
    budget: most parameters, if the structure was chosen within a budget.
    rate: peak learning rate.
    parameters: number of trained ones, without the head.
    trained_on: 'train' or 'train+val'.
    split: 'val', 'test' or a further test set.
    accuracy: share of its images that are classified correctly.
    seconds: for everything that the structure needed.
    protocol: 'honest', 'paper' or 'published'.
    source: the paper of a published result.
    from_memory: fields of a published result that were not seen in a source.
  """

  run: str = ''
  task: str = ''
  group: str = ''
  seed: int | None = None
  structure: str = ''
  label: str = ''
  role: Literal['', 'result', 'rate'] = ''
  budget: int | None = None
  rate: float | None = None
  parameters: int | None = None
  trained_on: str = 'train'
  split: str = 'test'
  accuracy: float = math.nan
  seconds: float | None = None
  protocol: str = 'honest'
  source: str | None = None
  from_memory: str = ''

  @property
  def is_published(self) -> bool:
    """Whether it was published; the others were measured by our runs."""
    return self.protocol == 'published'


def rows_of(board: Board) -> list[Row]:
  """The long table: a row for every run, structure and split; then the published results.

  Published results are there only if they were trained on the same images as ours.
  """
  found = [
    row for name, result in board.finished.items() for row in _rows_of_run(board, name, result)
  ]
  shows_published = board.by_task and not tell_other_images(board)
  return [*found, *(_published_rows(board) if shows_published else ())]


def write(workdir: str, rows: Sequence[Row]) -> None:
  """Writes `table.csv` into a workdir, whole or not at all."""
  path = os.path.join(workdir, NAME)
  with (
    atomic(path) as temporary,
    open(temporary, 'w', newline='', encoding='utf-8', errors='backslashreplace') as file,
  ):
    csv.writer(file, lineterminator='\n').writerows([Row._fields, *rows])


def _rows_of_run(board: Board, name: str, result: Mapping[str, Any]) -> Iterator[Row]:
  cell = board.cells[name]
  names = result['structures'] if cell.rate is None else [result['result']]
  for structure in names:
    found = result['structures'][structure]
    role = 'result' if not cell.structure and structure == result['result'] else ''
    within = '' if cell.budget is None else f', at most {cell.budget:,}'
    shares = {
      'val': found['val_accuracy'],
      'test': found.get('test_accuracy'),
      **found.get('other_test_accuracies', {}),
    }
    for split, share in shares.items():
      if share is not None:
        yield Row(
          run=name,
          task=cell.task,
          group=place_of(cell.task, split).group,
          seed=result['seed'],
          structure=structure,
          label=found['label'] + within,
          role=role if cell.rate is None else 'rate',
          budget=result['budget'] if structure in FOUND else None,
          rate=found['rate'],
          parameters=found['params'],
          trained_on=result['train_on'],
          split=split,
          accuracy=share,
          seconds=found['seconds'],
          protocol=result['protocol'],
        )


class Place(NamedTuple):
  """Where papers' tables have a measurement: the group of a mean, and the title of its line."""

  group: str
  line: str


def place_of(task: str, split: str = 'test') -> Place:
  """Where papers' tables have what a task measures on a split.

  Example:
    >>> place_of('vtab/dtd'), place_of('generalization/2', 'v2').line
    (Place(group='natural', line='dtd'), 'ImageNet-V2')
    >>> place_of('fewshot/food101/4/0')
    Place(group='4 shots', line='food101, 4 shots')
  """
  family, _, name = task.partition('/')
  if family == 'vtab':
    return Place(vtab.find(name).group, name)
  if family == 'generalization':
    return Place('source' if split in ('val', 'test') else 'shifted', TEST_SETS.get(split, split))
  if family == 'fewshot':
    data_set, number, *_ = name.split('/')
    shots = '1 shot' if number == '1' else f'{number} shots'
    return Place(shots, f'{data_set}, {shots}')
  return Place('', task)


def places_of(task: str) -> list[Place]:
  """The places of all test sets of a task."""
  splits = TEST_SETS if task.startswith('generalization/') else ('test',)
  return [place_of(task, split) for split in splits]


@functools.cache
def read_published() -> dict[str, Any]:
  """The content of `published.json`."""
  with open(PUBLISHED_FILE, encoding='utf-8') as file:
    return json.load(file)


def tell_other_images(board: Board) -> str:
  """Why no published results stand beside ours: they trained on more or fewer images; else ''."""
  theirs = read_published()['trained_on'].get(board.family)
  for name in board.tested:
    result = board.results.get(name)
    if theirs and result and result['train_on'] != theirs:
      ours = result['train_on']
      return (
        f'Published results are left out: they were trained on {theirs}, ours on {ours} '
        f'({result["data"]["images"][ours]:,} images); --config.train_on={theirs} trains on the '
        'same.'
      )
  return ''


def _published_rows(board: Board) -> Iterator[Row]:
  """The published accuracies of a benchmark, and its mean of groups as published."""
  family = board.family
  for found in read_published()['rows'].get(family, ()):
    million, name = found['params_million'], found['method']
    row = Row(
      structure=name,
      label=name,
      parameters=None if million is None else round(1e6 * million),
      trained_on=read_published()['trained_on'][family],
      protocol='published',
      source=found['paper'],
      from_memory=' '.join(found['from_memory']),
    )
    for key, percent in found['values'].items():
      task, split = (family, key) if family == 'generalization' else (f'{family}/{key}', 'test')
      group, accuracy = place_of(task, split).group, round(percent / 100, 6)
      yield row._replace(task=task, group=group, split=split, accuracy=accuracy)
    if (mean := found['group_mean']) is not None:
      yield row._replace(group=MEAN_OF_GROUPS, accuracy=round(mean / 100, 6))
