"""The results of a suite in one table beside the published rows: Markdown, CSV and a picture, from the runs' `result.json` alone.

A mean is over all that it says it is over, or it shows how much of that is there, as '71.2 (5 of 19)'.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from glora_jax.data import fewshot, generalization, vtab
from glora_jax.files import whole
from glora_jax.report import PAPER_LABEL

PUBLISHED_FILE = os.path.join(os.path.dirname(__file__), 'published.json')
OURS = {'winner': 'finetuned', 'winner_supernet': 'as searched', 'linear': 'linear probe'}
_TEST_SETS = {'test': 'ImageNet', 'v2': 'ImageNet-V2', 'sketch': 'ImageNet-Sketch', 'a': 'ImageNet-A', 'r': 'ImageNet-R'}
_TITLES = {'vtab': 'VTAB-1k', 'fewshot': 'Few-shot', 'generalization': 'Domain generalization'}
_PAPER = PAPER_LABEL.partition(':')[0]  # where there is little room
_BACKBONE = 'ViT-B/16 pretrained on ImageNet-21k'  # of the published rows


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
    return '-' if self.value is None else f'{self.value:.1f}' + ('' if self.complete else f' ({self.done} of {self.of})')


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
    return [Column(record.name, record.name, record.group) for record in vtab.RECORDS]
  if kind == 'fewshot':
    shots = {number: f'{number} shot' + ('s' if number != '1' else '') for number in (task.split('/')[2] for task in tasks)}
    return [Column(f'{name}/{number}', f'{name}, {words}', words) for number, words in shots.items() for name in fewshot.NAMES]
  return [Column(name, _TEST_SETS[name], 'source' if name == 'test' else 'shifted') for name, *_ in generalization.TESTS]


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
  prefix = f'ours ({_PAPER})' if paper_protocol(board) else 'ours'
  presets = dict.fromkeys(name for result in board.results.values() for name in result['presets'])
  expected = [(column, task, split) for task in board.tasks for column, split in filled(task)]
  rows = []
  for name in (*OURS, *presets):
    entries = {task: result['presets'].get(name) or result[name] for task, result in board.results.items()}
    accuracy = lambda task, split, entries=entries: 100 * (
        entries[task]['test_accuracy'] if split == 'test' else entries[task]['other_test_accuracies'][split])
    cells = {}
    for column in columns(board.tasks):
      runs = [(task, split) for other, task, split in expected if other == column.name]
      there = [accuracy(*run) for run in runs if run[0] in entries]
      cells[column.name] = Cell(statistics.fmean(there) if there else None, len(there), len(runs))
    params = statistics.fmean(entry['params'] for entry in entries.values()) / 1e6 if entries else None
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
    rows.append(Row(row['method'], False, cells, row['params_million'], row['group_mean'], row['from_memory'], row['paper'] or ''))
  return rows


def summary(row: Row, tasks: Sequence[str], *, quoted: bool = True) -> dict[str, Cell]:
  """The means of a row: of every group, of the groups (VTAB's headline number), of all.

  Args:
    row: of `own_rows` or `published_rows`.
    tasks: of the suite.
    quoted: take a published mean of groups as it was published, in place of the one that its own accuracies give.
  """
  every = columns(tasks)
  groups = {group: mean(row.cells[column.name] for column in every if column.group == group)
            for group in dict.fromkeys(column.group for column in every)}
  over_all = mean(row.cells.values())
  if not tasks[0].startswith('vtab/'):
    return {**{f'mean of {name}': cell for name, cell in groups.items() if cell.of > 1}, 'mean of all': over_all}
  over_groups = mean(groups.values()) if over_all.complete else Cell(None, over_all.done, over_all.of)
  if quoted and row.quoted is not None:
    over_groups = Cell(row.quoted, 1, 1)
  return {**{f'mean of {name}': cell for name, cell in groups.items()}, 'mean of groups': over_groups, 'mean of tasks': over_all}


def lines(board: Board, rows: Sequence[Row]) -> list[tuple[str, bool, list[Cell]]]:
  """The table: (title, whether it is a mean, the cell of every row). The first row says what is done."""
  every = columns(board.tasks)
  means = [summary(row, board.tasks) for row in rows]
  found = []
  for group in dict.fromkeys(column.group for column in every):
    found += [(column.title, False, [row.cells[column.name] for row in rows]) for column in every if column.group == group]
    if (title := f'mean of {group}') in means[0]:
      found.append((title, True, [one.pop(title) for one in means]))
  found += [(title, True, [one[title] for one in means]) for title in means[0]]
  done = [name for name, cell in rows[0].cells.items() if cell.complete]
  if 0 < len(done) < len(every):
    found.append((f'mean of the {len(done)} that are done', True, [mean(row.cells[name] for name in done) for row in rows]))
  return found


def write(board: Board, workdir: str) -> None:
  """Writes `table.md`, `table.csv` and `table.png` into the workdir."""
  rows = own_rows(board) + published_rows(board.tasks)
  with whole(os.path.join(workdir, 'table.md')) as temporary, open(temporary, 'w') as file:
    file.write(markdown(board, rows))
  with whole(os.path.join(workdir, 'table.csv')) as temporary, open(temporary, 'w', newline='') as file:
    csv.writer(file).writerows(csv_lines(board, rows))
  draw(os.path.join(workdir, 'table.png'), board, rows)


def table(board: Board, rows: Sequence[Row]) -> str:
  """The accuracies as a Markdown table."""
  heading = lambda row: row.method + ('' if row.params is None else f' ({row.params:.2g} M{_star(row, "params_million")})')
  text = ['| | ' + ' | '.join(map(heading, rows)) + ' |', '|---|' + '---:|' * len(rows)]
  for title, is_mean, cells in lines(board, rows):
    stars = [_star(row, 'group_mean') if title == 'mean of groups' else '' for row in rows]
    shown = [f'{cell}{star}' for cell, star in zip(cells, stars, strict=True)]
    text.append('| ' + ' | '.join(f'**{one}**' if is_mean else one for one in (title, *shown)) + ' |')
  return '\n'.join(text)


def _star(row, field):
  return r'\*' if field in row.from_memory else ''


def markdown(board: Board, rows: Sequence[Row]) -> str:
  """The content of `table.md`."""
  results, kind = board.results, board.tasks[0].partition('/')[0]
  of_all = lambda name: ', '.join(f'`{value}`' for value in dict.fromkeys(str(result[name]) for result in results.values())) or 'none yet'
  protocol = f'**{PAPER_LABEL}**' if paper_protocol(board) else (
      'Ours were searched on validation images; the test images were read once, at the end of every run.')
  percent = lambda value: 'trained on' if value is None else f'{100 * value:.1f}'
  text = f"""# {_TITLES[kind]}: {len(results)} of {len(board.tasks)} tasks of `{board.suite}`

{protocol}

Test accuracy in percent; trained parameters in millions, heads not counted. Ours: weights {of_all('weights')}, normalization
{of_all('normalization')}, seed {of_all('seed')}. The other columns were published, for a {_BACKBONE}.
A number such as 71.2 (5 of 19) is the mean of those 5 alone. Figures with \\* were quoted from memory.

{table(board, rows)}

![The same as bars](table.png)

## Tasks

| task | state | budget | trained params | val | test, as searched | test, finetuned | test, linear probe |
|---|---|---:|---:|---:|---:|---:|---:|
"""
  for name in board.tasks:
    cells = [name, board.state(name)] + [''] * 6
    if name in results:
      result, winner = results[name], results[name]['winner']
      cells[2:] = ['none' if result['budget'] is None else f"{result['budget']:,}", f"{winner['params']:,}", percent(winner['val_accuracy']),
                   *(percent(result[entry]['test_accuracy']) for entry in ('winner_supernet', 'winner', 'linear'))]
    text += '| ' + ' | '.join(cells) + ' |\n'
  for title, sentences in (('Failed', board.failed), ('Not ready', board.missing)):
    if sentences:
      text += f'\n## {title}\n\n' + ''.join(f'- {name}: {" ".join(sentence.split())}\n' for name, sentence in sentences.items())
  if board.missing:
    text += '\nWhat needs no manual download is fetched with `--config.suite.prepare=True`.\n'
  text += '\n## Images\n\n' + ''.join(f"- {name}: {' '.join((result['data']['origin'] + '.', *result['data']['notes']))}\n"
                                      for name, result in results.items()) + ('' if results else 'None yet.\n')
  text += '\n## Sources of the published rows\n\n' + ''.join(f'- {row.method}: {row.source}\n' for row in rows if row.source)
  text += f"\nThe figures were seen in {'; '.join(published()['seen_in'])}.\n"
  for row in rows:
    computed = summary(row, board.tasks, quoted=False).get('mean of groups')
    if row.quoted is not None and computed.complete and abs(computed.value - row.quoted) > 0.05 + 1e-9:
      text += f"The mean of groups that was published for {row.method} is {row.quoted}; that of its accuracies here is {computed.value:.2f}.\n"
  return text


def csv_lines(board: Board, rows: Sequence[Row]) -> list[list[Any]]:
  """A line for each method; an accuracy or mean of which a part is missing stays empty."""
  names = [column.name for column in columns(board.tasks)]
  means = list(summary(rows[0], board.tasks))
  protocols = ' and '.join(dict.fromkeys(result['protocol'] for result in board.results.values()))
  exact = lambda cell: f'{cell.value:.2f}'.removesuffix('0') if cell.complete else ''
  text = [['method', 'protocol', 'params_million', *names, *(name.replace(' ', '_') for name in means), 'complete', 'of', 'from_memory',
           'source']]
  for row in rows:
    found = summary(row, board.tasks)
    text.append([row.method, protocols if row.ours else 'published', '' if row.params is None else f'{row.params:.4g}',
                 *(exact(row.cells[name]) for name in names), *(exact(found[name]) for name in means),
                 sum(cell.complete for cell in row.cells.values()), len(names), ' '.join(row.from_memory), row.source])
  return text


def draw(path: str, board: Board, rows: Sequence[Row]) -> None:
  """Ours as bars, the published rows as marks on them; a mean of which a part is missing is hatched and says so."""
  table, others = lines(board, rows), [number for number, row in enumerate(rows) if not row.ours]
  linear = next(number for number, row in enumerate(rows) if row.method.endswith(OURS['linear']))
  figure, axis = plt.subplots(figsize=(8, 1.6 + 0.27 * len(table)), layout='constrained')
  for y, (_, is_mean, cells) in enumerate(table):
    ours = cells[0]
    if ours.value is not None:
      axis.barh(y, ours.value, color=('#2f6f6f' if is_mean else '#5aa7a7') if ours.complete else '#d5e6e6', height=0.72,
                hatch='' if ours.complete else '///', edgecolor='white', zorder=1)
    axis.text(101.5, y, str(ours), va='center', fontsize=8, fontweight='bold' if is_mean else 'normal')
  marks = {'LoRA': ('D', '#8e6bb0', 22), 'GLoRA': ('*', '#c0392b', 70), rows[linear].method: ('|', '#222222', 70)}
  labelled = set()
  for number in (*others, linear):
    method = rows[number].method
    marker, color, size = marks.get(method, ('o', '#aaaaaa', 9))
    points = [(cells[number].value, y) for y, (*_, cells) in enumerate(table) if cells[number].complete]
    label = method if number == linear else method + ', published' if method in marks else 'other published rows'
    axis.scatter(*zip(*points, strict=True) if points else ((), ()), marker=marker, color=color, s=size, zorder=3,
                 linewidths=1.5 if marker == '|' else 0, label=None if label in labelled else label)
    labelled.add(label)
  axis.barh([0], [0], color='#5aa7a7', label=rows[0].method)
  axis.set_yticks(range(len(table)), [title for title, *_ in table], fontsize=8)
  for label, (_, is_mean, _) in zip(axis.get_yticklabels(), table, strict=True):
    label.set_fontweight('bold' if is_mean else 'normal')
  axis.set(xlabel='test accuracy in %', xlim=(0, 100), ylim=(len(table) - 0.4, -0.6))
  axis.spines[['top', 'right']].set_visible(False)
  figure.legend(loc='outside lower center', ncols=3, frameon=False, fontsize=8)
  warning = f'\n{_PAPER}: ours were searched on the test set' if paper_protocol(board) else ''
  axis.set_title(f'{_TITLES[board.tasks[0].partition("/")[0]]}: {len(board.results)} of {len(board.tasks)} tasks{warning}', loc='left')
  with whole(path) as temporary:
    figure.savefig(temporary, format='png', dpi=130, bbox_inches='tight')
  plt.close(figure)
