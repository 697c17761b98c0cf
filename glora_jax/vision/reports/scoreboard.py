"""The page of a suite: tasks by methods, with published results and means.

An incomplete mean shows how much of it is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

from markupsafe import Markup

from glora_jax.vision.data import catalog
from glora_jax.vision.data.tasks import fewshot, vtab
from glora_jax.vision.reports import page
from glora_jax.vision.reports.charts import Axis, Bars, DotPlot, Dots, Mark
from glora_jax.vision.reports.structure import agreements
from glora_jax.vision.reports.tables import (
  PAPER,
  PAPER_LABEL,
  Cell,
  Method,
  Table,
  duration,
  grouped,
  mean,
  sentence_case,
  share_cell,
  weights_name,
)
from glora_jax.vision.structure_names import GENOME_ENDING

PUBLISHED_FILE = os.path.join(os.path.dirname(__file__), 'published.json')
BACKBONE = 'ViT-B/16 pretrained on ImageNet-21k'  # of the published results
MEAN_OF_GROUPS = 'mean of groups'  # the headline of VTAB
TEST_SETS = {
  'test': 'ImageNet',
  'v2': 'ImageNet-V2',
  'sketch': 'ImageNet-Sketch',
  'a': 'ImageNet-A',
  'r': 'ImageNet-R',
}
STYLES = {
  'LoRA': ('LoRA, published', 'purple', 'diamond'),
  'GLoRA': ('GLoRA, published', 'red', 'star'),
}
State = Literal['done', 'failed', 'not ready', 'waiting']


def columns_of(tasks: Sequence[str]) -> dict[str, dict[str, str]]:
  """The columns of papers' tables, for the family that all tasks of a suite belong to.

  For few shots, these are all data sets with each number of shots in the suite.

  Returns:
    Titles by name, by the group over which papers take a mean. A name is that of a VTAB task, a
    data set with a number of shots, or a test set.
  """
  family = tasks[0].partition('/')[0]
  if family == 'vtab':
    groups = grouped(vtab.TASKS, lambda task: task.group)
    return {group: {task.name: task.name for task in tasks} for group, tasks in groups.items()}
  if family == 'generalization':
    source, *shifted = TEST_SETS.items()
    return {'source': dict([source]), 'shifted': dict(shifted)}
  groups = {}
  for number in dict.fromkeys(task.split('/')[2] for task in tasks):
    title = '1 shot' if number == '1' else f'{number} shots'
    groups[title] = {f'{name}/{number}': f'{name}, {title}' for name in fewshot.NAMES}
  return groups


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
  """The progress of a suite.

  Attributes:
    suite: name of the suite, such as 'vtab/all'.
    tasks: names of all tasks, in order.
    results: content of `result.json` of every finished task, by its name.
    missing: what a task's data lacks and how to get it, by its name.
    failed: the error of a failed task, by its name.
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
  def family(self) -> str:
    """The first word of its tasks' names."""
    return self.tasks[0].partition('/')[0]

  @property
  def is_paper(self) -> bool:
    """Whether structures were searched on the test set."""
    return any(result['protocol'] == 'paper' for result in self.results.values())

  def state(self, name: str) -> State:
    """The state of a task."""
    if name in self.results:
      return 'done'
    if name in self.failed:
      return 'failed'
    return 'not ready' if name in self.missing else 'waiting'


@functools.cache
def published() -> dict[str, Any]:
  """The content of `published.json`."""
  with open(PUBLISHED_FILE, encoding='utf-8') as file:
    return json.load(file)


def tell_other_images(board: Board) -> str:
  """Why no published results stand beside ours: they trained on more or fewer images; else ''."""
  theirs = published()['trained_on'][board.family]
  for result in board.results.values():
    images = result['data']['images']
    ours = 'train+val' if 'train+val' in images else 'train'
    if ours != theirs:
      return (
        f'Published results are left out: they were trained on {theirs}, ours on {ours} '
        f'({images[ours]:,} images); --config.train_on={theirs} trains on the same.'
      )
  return ''


def lines_of(board: Board) -> list[dict[str, Any]]:
  """The lines of `table.csv`: all measurements of the suite, then the published results.

  Published results are there only if they were trained on as many images.

  Args:
    board: the progress of the suite.

  Returns:
    A dictionary for each method, task and test set: 'method', 'protocol', 'column', 'task', 'seed',
    'params', 'val_accuracy', 'test_accuracy', 'source' and 'from_memory', the fields that were not
    seen in a source. The results of all tasks come first; a structure that is the result everywhere
    has no separate lines.
  """
  prefix = f'ours ({PAPER})' if board.is_paper else 'ours'
  results = board.results.values()
  chosen = dict.fromkeys(_chosen(result)['label'] for result in results)
  found = []
  for task, result in board.results.items():
    named = {structure['label']: structure for structure in result['structures'].values()}
    more = [label for label in named if len(chosen) > 1 or label not in chosen]
    for label in (' or '.join(chosen), *more):
      structure = named.get(label) or _chosen(result)
      others = structure.get('other_test_accuracies', {})
      for column, split in measured(task).items():
        found.append(
          {
            'method': f'{prefix}, {label}',
            'protocol': result['protocol'],
            'column': column,
            'task': task,
            'seed': result['seed'],
            'params': structure['params'],
            'val_accuracy': structure['val_accuracy'],
            'test_accuracy': others.get(split, structure['test_accuracy']),
          }
        )
  for row in () if tell_other_images(board) else published()['rows'][board.family]:
    million = row['params_million']
    means = {} if row['group_mean'] is None else {MEAN_OF_GROUPS: row['group_mean']}
    for column, accuracy in {**row['values'], **means}.items():
      found.append(
        {
          'method': row['method'],
          'protocol': 'published',
          'column': column,
          'params': million and round(1e6 * million),
          'test_accuracy': round(accuracy / 100, 6),
          'source': row['paper'],
          'from_memory': ' '.join(row['from_memory']),
        }
      )
  return found


def _chosen(result: Mapping[str, Any]) -> Mapping[str, Any]:
  return result['structures'][result['result']]


def methods_of(board: Board) -> list[Method]:
  """The methods of a suite, its results first, then the published ones.

  Cells are by column, with the mean of groups if one was published.
  """
  # A published method may have several sizes.
  lines = grouped(
    lines_of(board), lambda line: (line['method'], 'source' in line and line['params'])
  )
  totals = collections.Counter(column for task in board.tasks for column in measured(task))
  every = [column for columns in columns_of(board.tasks).values() for column in columns]
  found = [] if board.results else [Method('ours', [], dict.fromkeys(every, mean([], 1)))]
  for (name, _), known in lines.items():
    by_column = grouped(known, lambda line: line['column'])
    cells = {}
    for column in dict.fromkeys([*every, *by_column]):
      shares = [100 * line['test_accuracy'] for line in by_column.get(column, [])]
      cells[column] = mean(shares, 1 if 'source' in known[0] else totals[column])
    style = ('our other methods', 'ink', 'tick')
    if not found:
      style = (name, 'teal', 'dot')
    elif 'source' in known[0]:
      style = STYLES.get(name, ('others, published', 'grey', 'ring'))
    found.append(Method(name, known, cells, style))
  return found


def is_ours(method: Method) -> bool:
  """Whether the suite has run a method; the others were published."""
  return not method.lines or 'source' not in method.lines[0]


def scores(board: Board, methods: Sequence[Method]) -> dict[str, list[Cell]]:
  """The accuracies by group, each group with its mean below, then the other means.

  Args:
    board: the suite.
    methods: the methods; the first one tells which tasks are done.

  Returns:
    The cells of all methods, by column or mean ('mean of ...').
  """
  groups = columns_of(board.tasks)
  every = [name for columns in groups.values() for name in columns]
  lines: list[tuple[str, Sequence[str]]] = []
  for group, columns in groups.items():
    lines += [(title, [name]) for name, title in columns.items()]
    lines += [(f'mean of {group}', [*columns])][: len(columns) - 1]
  if board.family == 'vtab':
    lines.append((MEAN_OF_GROUPS, [f'mean of {group}' for group in groups]))
  lines.append(('mean of all', every))
  done = [name for name in every if methods[0].cells[name].complete]
  if 0 < len(done) < len(every):
    lines.append((f'mean of the {len(done)} that {"is" if len(done) == 1 else "are"} done', done))
  found = {}
  for title, names in lines:
    for method in methods:
      if title not in method.cells:
        method.cells[title] = _mean_of([method.cells[name] for name in names])
    found[title] = [method.cells[title] for method in methods]
  return found


def _mean_of(cells: Sequence[Cell]) -> Cell:
  """The cell of one column, or the mean of the cells that are complete."""
  values = [cell.value for cell in cells if cell.complete]
  return cells[0] if len(cells) == 1 else mean(values, len(cells))._replace(deviation=None)


def write(board: Board, workdir: str, pages: Mapping[str, str]) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a suite.

  Args:
    board: the progress of the suite.
    workdir: its folder.
    pages: the pages of tasks, by name, relative to the workdir.
  """
  methods, results = methods_of(board), board.results
  scored = scores(board, methods)
  page.write_table(workdir, lines_of(board))
  seconds = {name: sum(result.get('seconds', {}).values()) for name, result in results.items()}
  origins = [
    ' '.join((f'{name}: {result["data"]["origin"]}.', *result['data']['notes']))
    for name, result in results.items()
  ]
  sources = dict.fromkeys(
    f'{method.name}: {method.lines[0]["source"]}'
    for method in methods
    if not is_ours(method) and method.lines[0]['source']
  )
  facts = [
    (name, Markup(', ').join(dict.fromkeys(map(of, results.values()))))
    for name, of in (
      ('Weights', weights_name),
      ('Normalization', lambda result: result['normalization']),
      ('Seeds', lambda result: str(result['seed'])),
    )
  ]
  seeds = [
    (f'{name.rpartition("/")[0]}, {_chosen(result)["label"]}', _chosen(result)['genome'])
    for name, result in results.items()
    if board.family != 'vtab'  # whose names end with the task
  ]
  made = [each for result in results.values() for each in result.get('provenance', ())]
  page.write(
    workdir,
    what=f'{count_done(board)} of {board.suite}',
    heading=catalog.FAMILIES[board.family].title,
    verdict=[tell_verdict(board, methods, scored)],
    warning=PAPER_LABEL if board.is_paper else '',
    sections=[
      page.Section(
        'accuracy',
        'Accuracy',
        [
          accuracy_plot(methods, scored),
          tell_other_images(board),
          tell_columns(methods),
          accuracies(methods, scored),
        ],
      ),
      page.Section('tasks', 'Tasks', tasks_blocks(board, pages)),
      page.Section('structures', 'Structures', agreements(seeds)),
      page.Section(
        'cost',
        'Cost',
        [results and Bars([(name, each, duration(each)) for name, each in seconds.items()], 'dim')],
      ),
      page.Section(
        'sources',
        'Sources',
        [
          origins and page.Heading('Images'),
          origins and page.Items(origins),
          *([] if tell_other_images(board) else _published_blocks(board, [*sources])),
        ],
      ),
      page.reproduce(made, facts if results else []),
    ],
  )


def _published_blocks(board: Board, sources: Sequence[str]) -> list[Any]:
  seen = f'Seen in {"; ".join(published()["seen_in"])}.'
  notes = published()['notes'].get(board.family, ())
  return [page.Heading('Published accuracies'), page.Items(sources), seen, *notes]


def count_done(board: Board) -> str:
  """The number of finished tasks, '17 of 19 tasks'."""
  return f'{len(board.results)} of {len(board.tasks)} tasks'


Scores = Mapping[str, Sequence[Cell]]  # see `scores`


def tell_verdict(board: Board, methods: Sequence[Method], scored: Scores) -> str:
  """The headline's mean, or the widest complete one, with the published GLoRA's."""
  done = [title for title, cells in scored.items() if _is_mean(title) and cells[0].complete]
  if not done:
    return f'{count_done(board)} are done, too few for a mean.'
  title = MEAN_OF_GROUPS if MEAN_OF_GROUPS in done else done[-1]
  cells = zip(methods, scored[title], strict=True)
  theirs = [f'; published for GLoRA: {cell}' for method, cell in cells if method.name == 'GLoRA']
  ours = sentence_case(methods[0].name)
  return f'{ours}: {scored[title][0]}% test accuracy, {title}{"".join(theirs[:1])}.'


def _is_mean(title: str) -> bool:
  return title.startswith('mean of ')


def accuracy_plot(methods: Sequence[Method], scored: Scores) -> DotPlot:
  """A row for each line of the table, with marks for published results."""
  shapes = ('ring', 'tick', 'diamond', 'star', 'dot')  # ours are drawn last, above the others
  drawn = sorted(enumerate(methods), key=lambda each: shapes.index(each[1].style[2]))
  rows = [
    Dots(
      label=title,
      value=str(cells[0]),
      marks=[
        Mark((cells[at].value,), f'{method.name}: {cells[at]}', *method.style[1:])
        for at, method in drawn
        if cells[at].done
      ],
      is_strong=_is_mean(title),
    )
    for title, cells in scored.items()
  ]
  legend = dict.fromkeys(method.style for _, method in reversed(drawn))
  caption = f'Test accuracy in %; numbers are for {methods[0].name}'
  return DotPlot(caption, Axis('', [0, 20, 40, 60, 80, 100]), rows, list(legend))


def tell_columns(methods: Sequence[Method]) -> str:
  """A sentence on the columns of the table."""
  told = 'Test accuracy in percent; in brackets, millions of trained parameters without heads.'
  if all(map(is_ours, methods)):
    return told
  memory = any(line.get('from_memory') for method in methods for line in method.lines)
  star = ' * quoted from memory.' if memory else ''
  return f'{told} All except ours are published, for a {BACKBONE}.{star}'


def accuracies(methods: Sequence[Method], scored: Scores) -> Table:
  """The accuracies, a column for each method."""
  rows, headings = [], ['']
  for title, cells in scored.items():
    stars = (_star(method, 'group_mean' if title == MEAN_OF_GROUPS else '-') for method in methods)
    rows.append((title, *(f'{cell}{star}' for cell, star in zip(cells, stars, strict=True))))
  for method in methods:
    params = [line['params'] for line in method.lines if line['params'] is not None]
    million = f'{mean(params).value / 1e6:.2g}{_star(method, "params_million")}' if params else ''
    headings.append(f'{method.name} ({million})' if params else method.name)
  strong = [at for at, title in enumerate(scored) if _is_mean(title)]
  return Table('Accuracy in percent', headings, rows, strong=strong)


def _star(method: Method, field: str) -> str:
  """The mark of a field that was quoted from memory."""
  return '*' * any(field in line.get('from_memory', '') for line in method.lines)


def tasks_blocks(board: Board, pages: Mapping[str, str]) -> list[Any]:
  """State and result of every task, and why some have none."""
  titles = ('task', 'state', 'result', 'budget', 'parameters', 'validation', 'test')
  rows = []
  for name in board.tasks:
    link = Markup('<a href="{}">{}</a>').format(quote(pages[name]), name) if name in pages else name
    cells = [link, board.state(name)]
    if result := board.results.get(name):
      chosen, budget = _chosen(result), result['budget']
      cells += [
        chosen['label'],
        'none' if budget is None else f'{budget:,}',
        f'{chosen["params"]:,}',
        share_cell(chosen['val_accuracy']),
        share_cell(chosen['test_accuracy']),
      ]
    rows.append(cells + [''] * (len(titles) - len(cells)))
  blocks: list[Any] = [Table('Tasks', titles, rows, text_columns=3)]
  for heading, reasons in (('Failed', board.failed), ('Not ready', board.missing)):
    if reasons:
      texts = [f'{name}: {reason}' for name, reason in reasons.items()]
      blocks += [page.Heading(heading), page.Items(texts)]
  if board.missing:
    blocks.append('--config.suite.prepare=True downloads what needs no manual download.')
  if any(str(result['structure']).endswith(GENOME_ENDING) for result in board.results.values()):
    blocks.append('Structures come from files that do not say how they were chosen.')
  return blocks
