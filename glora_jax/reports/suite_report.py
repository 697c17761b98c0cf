"""What a suite has found: `table.csv`, and the sentences and tables of its page."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from glora_jax.files import whole
from glora_jax.reports.columns import layout_of
from glora_jax.reports.markdown import (
  Table,
  paragraph,
  percent,
  plain,
)
from glora_jax.reports.scoreboard import (
  MEAN_OF_GROUPS,
  Board,
  Row,
  lines,
  means,
  own_rows,
  published,
  published_rows,
  winner_titles,
)
from glora_jax.reports.structure_report import tell_agreement
from glora_jax.reports.verdict import is_of_a_file

BACKBONE = 'ViT-B/16 pretrained on ImageNet-21k'  # of the published rows
_SEEDED = ('fewshot/', 'generalization/')  # families whose tasks' names end with a seed
ROUNDED = 0.05  # percentage points that a published mean may be off by its rounding


def write(board: Board, workdir: str) -> None:
  """Writes `table.csv` into the workdir."""
  rows = own_rows(board) + published_rows(board.tasks)
  path = os.path.join(workdir, 'table.csv')
  with whole(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
    csv.writer(file).writerows(csv_lines(board, rows))


def count_done(board: Board) -> str:
  """How far a suite is, '17 of 19 tasks'."""
  return f'{len(board.results)} of {len(board.tasks)} tasks'


def tell_missing(board: Board) -> str:
  """What helps where tasks are not ready; nothing where all are."""
  if not board.missing:
    return ''
  return 'What needs no manual download is fetched with `--config.suite.prepare=True`.'


def sources(rows: Sequence[Row]) -> list[str]:
  """Where each published row comes from."""
  return [f'{row.method}: {row.source}' for row in rows if row.source]


def tell_sources() -> str:
  """Where the published figures were seen."""
  return f'The figures were seen in {"; ".join(published()["seen_in"])}.'


def tell_protocol(board: Board) -> str:
  """What ours were searched on."""
  if not board.results:
    return ''  # which protocol ours will have is not known
  if board.is_paper:
    return ''  # the page begins with what is to be said of it
  return paragraph(
    f'{_tell_choice(board)}; the test images were read once, at the end of every run.'
  )


def _tell_choice(board: Board) -> str:
  """What the structures of ours were chosen by."""
  results = board.results.values()
  if any('structure' not in result for result in results):
    return 'Ours were searched on validation images'
  if any(map(is_of_a_file, results)):
    return 'The structures of ours were given by files, which do not say what they were chosen by'
  return 'The structures of ours were chosen without validation images'


def tell_columns(board: Board) -> str:
  """What the columns of the table are."""
  return paragraph(
    'Test accuracy in percent; trained parameters in millions, heads not counted.',
    f'Ours: weights {_values(board, "weights")},',
    f'normalization {_values(board, "normalization")}, seed {_values(board, "seed")}.',
    f'The other columns were published, for a {BACKBONE}.',
    'A number such as 71.2 (5 of 19) is the mean of those 5 alone.',
    r'Figures with \* were quoted from memory.',
  )


def _values(board: Board, field: str) -> str:
  """Every value that the results have of a field."""
  values = dict.fromkeys(str(result[field]) for result in board.results.values())
  return ', '.join(f'`{value}`' for value in values) or 'none yet'


def table(board: Board, rows: Sequence[Row]) -> str:
  """The accuracies as a Markdown table."""
  return str(accuracies(board, rows))


def accuracies(board: Board, rows: Sequence[Row]) -> Table:
  """The accuracies, a column for each method."""
  cells = []
  for line in lines(board, rows):
    shown = [line.title, *map(str, line.cells)]
    if line.title == MEAN_OF_GROUPS:
      shown[1:] = [
        f'{cell}{_star(row, "group_mean")}' for cell, row in zip(shown[1:], rows, strict=True)
      ]
    cells.append([f'**{cell}**' for cell in shown] if line.is_mean else shown)
  return Table(('', *map(_heading, rows)), cells)


def _heading(row: Row) -> str:
  """A method and its parameters."""
  if row.params is None:
    return plain(row.method)
  return f'{plain(row.method)} ({row.params:.2g} M{_star(row, "params_million")})'


def _star(row: Row, field: str) -> str:
  """What marks a field of a published row that was quoted from memory."""
  return r'\*' if field in row.from_memory else ''


def tasks_table(board: Board) -> Table:
  """How far every task is, and what it has come to."""
  titles = (
    'task',
    'state',
    'budget',
    'trained params',
    'val',
    'test, as searched',
    f'test, {plain(winner_titles(board.results.values()))}',
    'test, linear probe',
  )
  rows = []
  for name in board.tasks:
    cells = [name, board.state(name)]
    if name in board.results:
      result = board.results[name]
      cells.append('none' if result['budget'] is None else f'{result["budget"]:,}')
      cells.append(f'{result["winner"]["params"]:,}')
      cells.append(percent(result['winner']['val_accuracy']))
      subnets = (result['winner_supernet'], result['winner'], result['linear'])
      cells += [percent(subnet['test_accuracy']) if subnet else '' for subnet in subnets]
    rows.append(cells + [''] * (len(titles) - len(cells)))
  return Table(titles, rows, text_columns=2)


def list_reasons(reasons: Mapping[str, str]) -> list[str]:
  """Every task with its reason."""
  return [f'{name}: {" ".join(reason.split())}' for name, reason in reasons.items()]


def agreements(board: Board) -> list[str]:
  """How much the structures of a task's seeds agree; nothing where none has several seeds."""
  by_seeds: dict[str, list[Any]] = {}
  for name, result in board.results.items():
    if 'structure' in result:
      by_seeds.setdefault(name.rpartition('/')[0], []).append(result['winner']['genome'])
  return [
    f'{name}: {tell_agreement(genomes)}'
    for name, genomes in by_seeds.items()
    if len(genomes) > 1 and board.tasks[0].startswith(_SEEDED)
  ]


def origins(board: Board) -> list[str]:
  """Where the images of every task come from."""
  return [
    f'{name}: {" ".join((result["data"]["origin"] + ".", *result["data"]["notes"]))}'
    for name, result in board.results.items()
  ]


def wrong_means(board: Board, rows: Sequence[Row]) -> list[str]:
  """The published means of groups that are not the means of their own accuracies."""
  sentences = []
  for row in rows:
    computed = means(row, board.tasks, quoted=False).get(MEAN_OF_GROUPS)
    if row.quoted is None or computed is None or computed.value is None:
      continue
    if abs(computed.value - row.quoted) > ROUNDED + 1e-9:
      sentences.append(
        f'The mean of groups that was published for {row.method} is {row.quoted}; '
        f'that of its accuracies here is {computed.value:.2f}.'
      )
  return sentences


def csv_lines(board: Board, rows: Sequence[Row]) -> list[list[Any]]:
  """A line for each method; an accuracy or mean of which a part is missing stays empty."""
  names = [column.name for column in layout_of(board.tasks).columns(board.tasks)]
  mean_titles = list(means(rows[0], board.tasks))
  protocols = ' and '.join(dict.fromkeys(result['protocol'] for result in board.results.values()))
  heading = [
    'method',
    'protocol',
    'params_million',
    *names,
    *(title.replace(' ', '_') for title in mean_titles),
    'complete',
    'of',
    'from_memory',
    'source',
  ]
  table: list[list[Any]] = [heading]
  for row in rows:
    row_means = means(row, board.tasks)
    cells = [row.cells[name] for name in names] + [row_means[title] for title in mean_titles]
    table.append(
      [
        row.method,
        protocols if row.ours else 'published',
        '' if row.params is None else f'{row.params:.4g}',
        *(f'{cell.value:.2f}'.removesuffix('0') if cell.complete else '' for cell in cells),
        sum(cell.complete for cell in row.cells.values()),
        len(names),
        ' '.join(row.from_memory),
        row.source,
      ]
    )
  return table


class Style(NamedTuple):
  """How a row is marked.

  Attributes:
    label: its name in the legend.
    color: name of a colour of the palette.
    shape: 'tick' of ours, 'diamond', 'star' or 'ring' of those that were published.
  """

  label: str
  color: str
  shape: Literal['tick', 'diamond', 'star', 'ring']


def style_of(row: Row) -> Style:
  """How a row is marked: ours, LoRA and GLoRA each in a way of its own."""
  if row.ours:
    return Style(row.method, 'ink', 'tick')
  if row.method == 'LoRA':
    return Style('LoRA, published', 'purple', 'diamond')
  if row.method == 'GLoRA':
    return Style('GLoRA, published', 'red', 'star')
  return Style('other published rows', 'grey', 'ring')
