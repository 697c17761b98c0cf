"""One long table of all measurements, from which every page, summary and `table.csv` is made.

People read it as a `Pivot`: by structure for one task, by task for several.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import os
import statistics
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from glora_jax.vision.data.tasks import vtab
from glora_jax.vision.files import write_csv
from glora_jax.vision.reports.means import Number, mean_of
from glora_jax.vision.reports.page import SERIES, Result, group_by
from glora_jax.vision.structure_names import (
  FOUND,
  GENOME_ENDING,
  GRADIENT,
  SEARCH,
  SUPERNET,
  TRANSFER,
  shortest_end,
)

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
PAPER_LABEL = (
  "PROTOCOL 'paper': the structure was SEARCHED ON THE TEST SET and trained on train+val. "
  'The test accuracies below reproduce how the paper was probably made; '
  'they do not estimate the accuracy on unseen images.'
)

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


class Cell(NamedTuple):
  """A run of a suite.

  Attributes:
    task: name of its task.
    structure: the one that it trains; '' for the config's structure and its baselines.
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
    missing: the data that a run lacks and how to get it, by name.
    failed: the error of a failed run, by name.
    late: names of the runs that were listed for the test after others had been tested.
  """

  title: str
  cells: Mapping[str, Cell]
  results: dict[str, Result] = dataclasses.field(default_factory=dict)
  missing: dict[str, str] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)
  late: list[str] = dataclasses.field(default_factory=list)

  @property
  def waiting(self) -> list[str]:
    """Names of the runs that have not been tried."""
    return [name for name in self.cells if self.state(name) == 'waiting']

  @property
  def tested(self) -> dict[str, Cell]:
    """The runs that are tested; the others choose a learning rate."""
    return {name: cell for name, cell in self.cells.items() if cell.rate is None}

  @property
  def finished(self) -> dict[str, Result]:
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

  def state(self, name: str) -> Literal['done', 'failed', 'not ready', 'waiting']:
    """The state of a run."""
    if name in self.results:
      return 'done'
    if name in self.failed:
      return 'failed'
    return 'not ready' if name in self.missing else 'waiting'

  def label(self, name: str, structure: Mapping[str, Any]) -> str:
    """The label of a structure of a run; that of a file differs from those of other files."""
    path = self.cells[name].structure
    if not path.endswith(GENOME_ENDING):
      return structure['label']
    return shortest_end(path, {cell.structure for cell in self.cells.values()} - {path})


def board_of_run(result: Result) -> Board:
  """The board of a single run, from the content of its `result.json`."""
  task = result['task']
  return Board(task, {'': Cell(task, seed=result['seed'])}, {'': result})


class Row(NamedTuple):
  """A run's measurement on a split or on one class of it, or a published accuracy.

  Attributes:
    run: the run's folder in the suite's workdir; '' for a single run.
    task: name of its task; of a published result without the seed of few shots.
    group: the tasks over which papers take a mean.
    seed: the run's.
    structure: its name in the run, or the published method's.
    label: its name on pages.
    role: 'result' for the structure that a run chose from several as its result; 'rate' if the run
      only chooses a learning rate.
    budget: most parameters, if the structure was chosen within a budget.
    rate: peak learning rate.
    parameters: number of trained ones, without the head.
    trained_on: 'train' or 'train+val'.
    split: 'val', 'test' or a further test set.
    class_name: name of the class that is measured; '' for all images.
    images: how many images are measured.
    accuracy: share of its images that are classified correctly; of a class its recall.
    balanced_accuracy: mean recall of the classes.
    precision: of a class.
    recall: of a class.
    f1: of a class.
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
  class_name: str = ''
  images: int | None = None
  accuracy: float = math.nan
  balanced_accuracy: float | None = None
  precision: float | None = None
  recall: float | None = None
  f1: float | None = None
  seconds: float | None = None
  protocol: str = 'honest'
  source: str | None = None
  from_memory: str = ''

  @property
  def is_published(self) -> bool:
    """Whether it was published; the others were measured by our runs."""
    return self.protocol == 'published'

  @property
  def chooses_by(self) -> float:
    """What validation images choose by: balanced accuracy, if it was measured (`report.metric`)."""
    return self.accuracy if self.balanced_accuracy is None else self.balanced_accuracy


def rows_of(board: Board) -> list[Row]:
  """The long table: a row for every run, structure and split; then the published results.

  Below the row of a run's result on the test images is one for each class. Published results are
  there only if they were trained on the same images as ours.
  """
  rows = [
    row for name, result in board.finished.items() for row in _rows_of_run(board, name, result)
  ]
  if board.by_task and not tell_other_images(board):
    rows += _published_rows(board)
  return rows


def write(workdir: str, rows: Sequence[Row]) -> None:
  """Writes `table.csv` into a workdir, whole or not at all."""
  write_csv(os.path.join(workdir, NAME), Row._fields, rows)


def _rows_of_run(board: Board, name: str, result: Result) -> Iterator[Row]:
  cell = board.cells[name]
  for structure, found in result['structures'].items():
    is_result = structure == result['result']
    if cell.rate is not None and not is_result:
      continue
    role = 'result' if is_result and not cell.structure else ''
    within = '' if cell.budget is None else f', at most {cell.budget:,}'
    shares = {
      'val': found['val_accuracy'],
      'test': found.get('test_accuracy'),
      **found.get('other_test_accuracies', {}),
    }
    for split, share in shares.items():
      if share is not None:
        row = Row(
          run=name,
          task=cell.task,
          group=place_of(cell.task, split).group,
          seed=result['seed'],
          structure=structure,
          label=board.label(name, found) + within,
          role=role if cell.rate is None else 'rate',
          budget=result['budget'] if structure in FOUND else None,
          rate=found['rate'],
          parameters=found['params'],
          trained_on=result['train_on'],
          split=split,
          images=result['data']['images'].get(split),
          accuracy=share,
          balanced_accuracy=found.get(f'{split}_balanced_accuracy'),
          seconds=found['seconds'],
          protocol=result['protocol'],
        )
        yield row
        if is_result and split == 'test':
          columns = result.get('by_class', {})
          for class_name in columns.get('images', ()):
            measured = {field: column[class_name] for field, column in columns.items()}
            measured |= {'accuracy': measured['recall'], 'balanced_accuracy': None}
            yield row._replace(class_name=class_name, **measured)


class Place(NamedTuple):
  """The place of a measurement in papers' tables: the group of a mean, the title of its line."""

  group: str
  line: str


def place_of(task: str, split: str = 'test') -> Place:
  """The place of a task's measurement on a split in papers' tables.

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
  """Why there are no published results: they trained on more or fewer images; else ''."""
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
      yield row._replace(
        task=task,
        group=place_of(task, split).group,
        split=split,
        accuracy=round(percent / 100, 6),
      )
    if (mean := found['group_mean']) is not None:
      yield row._replace(group=MEAN_OF_GROUPS, accuracy=round(mean / 100, 6))


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
  is_strong: bool
  cells: Mapping[str, Number]

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
    known = {row.run: value for row in self.rows if (value := getattr(row, field)) is not None}
    return Number(known, digits=digits, has_spread=False)

  @property
  def parameters(self) -> Number:
    """How many are trained."""
    return self.mean('parameters', ',.0f')


class Pivot(NamedTuple):
  """A board's methods with their accuracies.

  Attributes:
    board: the board.
    rows: its long table.
    methods: ours, then the published ones; none before a run is tested.
  """

  board: Board
  rows: list[Row]
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
      return 'test' if 'test' in self.ours[0].cells else 'validation'
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
  def result(self) -> Method:
    """The result of a run, or of a suite whose runs each choose one."""
    return next((method for method in self.methods if method.is_strong), self.methods[0])

  @property
  def best(self) -> Method | None:
    """The result; of a grid, the best structure on the validation images, see `best_of`."""
    return self.best_of(self.candidates) if self.board.is_grid else self.result

  def best_of(self, methods: Sequence[Method]) -> Method | None:
    """The method with the highest validation accuracy, the smallest of equal ones.

    None if there is none, or if several were trained on the validation images or have no task and
    seed in common: test accuracy never chooses.
    """
    if len(methods) < 2:
      return next(iter(methods), None)
    found = [(self.validation(each), -each.parameters.value) for each in methods]
    if any(share is None for share, _ in found):
      return None
    return methods[found.index(max(found))]

  def validation(self, method: Method) -> float | None:
    """A method's mean on the validation images, over tasks and seeds that all have finished."""
    board = self.board
    done = set.intersection(*({(row.task, row.seed) for row in each.rows} for each in self.ours))
    runs = {
      row.run
      for row in method.rows
      if (row.task, row.seed) in done
      and (
        not board.by_task or all(each.cells[_line_of(board, row)].complete for each in self.ours)
      )
    }
    shares = [
      row.chooses_by
      for row in self.rows
      if row.run in runs and row.split == 'val' and row.structure == method.rows[0].structure
    ]
    return statistics.fmean(shares) if runs and len(shares) == len(runs) else None


def is_mean(title: str) -> bool:
  """Whether numbers of this title are means of others."""
  return title.startswith('mean of ')


def pivot_of(board: Board) -> Pivot:
  """The methods of a board with their accuracies.

  Those of one task are by split, those of several by line of papers' tables, with means. If several
  runs choose a result each, the first method is made of these results. Structures of a grid on one
  task are in the order of their parameters.
  """
  rows = rows_of(board)
  methods = _methods(board, rows)
  titles = _titles(board, methods)
  for at, method in enumerate(methods):
    cells: dict[str, Number] = {}
    for title, parts in titles.items():
      # Some means were published.
      cells[title] = method.cells.get(title) or mean_of([cells[part] for part in parts])
    methods[at] = method._replace(cells=cells)
  if board.is_grid and not board.by_task:
    methods.sort(key=lambda method: method.parameters.value)
  return Pivot(board, rows, methods)


def _methods(board: Board, rows: Sequence[Row]) -> list[Method]:
  """The methods with the accuracies that were measured or published, without other means."""
  shown = [
    row for row in rows if row.role != 'rate' and not row.class_name and _line_of(board, row)
  ]
  if all(row.is_published for row in shown):
    return []
  # A published method may have several sizes.
  groups = group_by(
    shown, lambda row: (row.structure, row.label, row.is_published and row.parameters)
  )
  methods, chosen = [*groups.values()], [row for row in shown if row.role == 'result']
  is_run, ours = len(board.tested) == 1, ''
  if chosen and not is_run:
    methods = [chosen, *(same for same in methods if _label(same) != _label(chosen))]
  if board.is_paper and not is_run:
    ours = "ours (PROTOCOL 'paper'), "
  elif shown[-1].is_published:
    ours = 'ours, '
  found = []
  for number, same in enumerate(methods):
    label = _label(same)
    if same[0].is_published:
      style = _PUBLISHED.get(label, ('others, published', 'grey', 'ring'))
    else:  # one task: by the origin of its structure; several: by its name
      label = ours + label
      style = _STYLES.get(same[0].structure, ('fixed', 'purple', 'dot'))
      if board.by_task:
        style = label, f'series-{number % len(SERIES)}', 'dot'
    is_strong = all(row.role == 'result' for row in same)
    found.append(Method(label, same, style, is_strong, _accuracies(board, same)))
  return found


def _label(rows: Iterable[Row]) -> str:
  return ' or '.join(dict.fromkeys(row.label for row in rows))


def _titles(board: Board, methods: Sequence[Method]) -> dict[str, Sequence[str]]:
  """The titles of all numbers in order, those of means with the titles that they average."""
  if not board.by_task:
    return dict.fromkeys((title for method in methods for title in method.cells), ())
  tasks = (cell.task for cell in board.tested.values())
  places = dict.fromkeys(place for task in tasks for place in places_of(task))
  lines, titles = [place.line for place in places], {}
  for group, same in group_by(places, lambda place: place.group).items():
    in_group = [place.line for place in same]
    titles |= dict.fromkeys(in_group, ())
    if len(in_group) > 1:
      titles[f'mean of {group}'] = in_group
  if board.family == 'vtab':
    titles[MEAN_OF_GROUPS] = [title for title in titles if is_mean(title)]
  titles['mean of all'] = lines
  ours = [method.cells for method in methods if not method.is_published]
  done = [line for line in lines if all(line in own and own[line].complete for own in ours)]
  if 1 < len(done) < len(lines):
    titles[f'mean of the {len(done)} that are done'] = done
  return titles


def _line_of(board: Board, row: Row) -> str:
  """The title of a measurement: its split, or its place in papers' tables; '' for neither."""
  if not board.by_task:
    return 'validation' if row.split == 'val' else row.split
  return '' if row.split == 'val' else place_of(row.task, row.split).line or row.group


def _accuracies(board: Board, rows: Sequence[Row]) -> dict[str, Number]:
  """A method's accuracies in percent by title, over those of its runs that have been measured."""
  repeats: dict[str, dict[Hashable, float]] = collections.defaultdict(dict)
  for row in rows:
    for ending, share in (('', row.accuracy), (', balanced', row.balanced_accuracy)):
      if share is not None:
        repeats[_line_of(board, row) + ending][row.seed, row.task] = 100 * share
  if rows[0].is_published:
    return {title: Number(shares) for title, shares in repeats.items()}
  first = board.cells[rows[0].run]
  kind = (first.structure, first.budget)
  runs = [cell for cell in board.tested.values() if (cell.structure, cell.budget) == kind]
  totals = collections.Counter(place.line for cell in runs for place in places_of(cell.task))
  return {
    title: Number(shares, totals[title] if board.by_task else len(runs))
    for title, shares in repeats.items()
  }
