"""The page of a suite, `report.html`, and its `table.csv`, from its scoreboard alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glora_jax.reports import page
from glora_jax.reports.charts import Axis, DotPlot, Dots, Mark, bars
from glora_jax.reports.markdown import (
  PAPER_LABEL,
  Table,
  paragraph,
  percent,
  plain,
  sentence_case,
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
  title_of,
)
from glora_jax.reports.structure import tell_agreement

BACKBONE = 'ViT-B/16 pretrained on ImageNet-21k'  # of the published rows
_SEEDED = ('fewshot/', 'generalization/')  # families whose tasks' names end with a seed
ROUNDED = 0.05  # percentage points that a published mean may be off by its rounding


def write(board: Board, workdir: str, pages: Mapping[str, str]) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a suite.

  Args:
    board: how far the suite is.
    workdir: its folder.
    pages: the page of every task that has one, by its name, relative to the workdir.
  """
  rows = own_rows(board) + published_rows(board.tasks)
  page.write_table(workdir, csv_lines(board, rows))
  page.write(workdir, 'suite.html', facts(board, rows, pages))


def facts(board: Board, rows: Sequence[Row], pages: Mapping[str, str]) -> dict[str, Any]:
  """What the template of a suite asks for."""
  totals = {name: sum(result.get('seconds', {}).values()) for name, result in board.results.items()}
  return {
    'family': title_of(board.tasks),
    'suite': board.suite,
    'done': count_done(board),
    'verdict': tell_verdict(board, rows),
    'warning': PAPER_LABEL if board.is_paper else '',
    'protocol': tell_protocol(board),
    'columns': tell_columns(board),
    'plot': accuracy_plot(board, rows),
    'table': accuracies(board, rows),
    'tasks': tasks_table(board),
    'pages': pages,
    'failed': list_reasons(board.failed),
    'missing': list_reasons(board.missing),
    'remedy': 'What needs no manual download is fetched with `--config.suite.prepare=True`.',
    'agreements': agreements(board),
    'cost': bars([(name, value, page.duration(value)) for name, value in totals.items()]),
    'origins': [
      f'{name}: {" ".join((result["data"]["origin"] + ".", *result["data"]["notes"]))}'
      for name, result in board.results.items()
    ],
    'sources': [f'{row.method}: {row.source}' for row in rows if row.source],
    'seen': [
      f'The figures were seen in {"; ".join(published()["seen_in"])}.',
      *wrong_means(board, rows),
    ],
    'provenances': page.distinct(
      made for result in board.results.values() for made in result.get('provenance', ())
    ),
  }


def count_done(board: Board) -> str:
  """How far a suite is, '17 of 19 tasks'."""
  return f'{len(board.results)} of {len(board.tasks)} tasks'


def tell_verdict(board: Board, rows: Sequence[Row]) -> str:
  """The headline's mean, or the widest that ours have, beside the published GLoRA's."""
  done = [line for line in lines(board, rows) if line.is_mean and line.cells[0].complete]
  if not done:
    return f'{count_done(board)} are done, too few for a mean.'
  line = next((line for line in done if line.title == MEAN_OF_GROUPS), done[-1])
  other = next((at for at, row in enumerate(rows) if row.method == 'GLoRA'), None)
  beside = '' if other is None else f'; published for GLoRA: {line.cells[other]}'
  ours = sentence_case(rows[0].method)
  return f'{ours}: a test accuracy of {line.cells[0]}%, the {line.title}{beside}.'


def accuracy_plot(board: Board, rows: Sequence[Row]) -> DotPlot:
  """Every line of the table: ours, and the published ones as marks."""
  styles = [_style(row, number) for number, row in enumerate(rows)]
  shapes = ('ring', 'tick', 'diamond', 'star', 'dot')  # ours are drawn last, so above the others
  order = sorted(range(len(rows)), key=lambda number: shapes.index(styles[number][2]))
  drawn = [
    Dots(
      label=line.title,
      value=str(line.cells[0]),
      marks=[
        Mark((cell.value,), f'{rows[number].method}: {cell}', *styles[number][1:])
        for number in order
        if (cell := line.cells[number]).value is not None
      ],
      is_strong=line.is_mean,
    )
    for line in lines(board, rows)
  ]
  title = f'Test accuracy in %: {rows[0].method}, and what it stands beside'
  scale = Axis('', [0, 20, 40, 60, 80, 100])
  return DotPlot(title, scale, drawn, list(dict.fromkeys(styles[at] for at in reversed(order))))


def _style(row: Row, number: int) -> tuple[str, str, str]:
  """How a row is shown: its name in the legend, colour and shape."""
  if row.ours:
    return ('others of ours', 'ink', 'tick') if number else (row.method, 'teal', 'dot')
  if row.method == 'LoRA':
    return 'LoRA, published', 'purple', 'diamond'
  if row.method == 'GLoRA':
    return 'GLoRA, published', 'red', 'star'
  return 'other published rows', 'grey', 'ring'


def tell_protocol(board: Board) -> str:
  """What ours were chosen by; nothing where nobody knows yet, or where the page begins with it."""
  results = board.results.values()
  if not results or board.is_paper:
    return ''
  if any(result['structure'] == 'search' for result in results):
    choice = 'Ours were searched on validation images'
  elif any('file' in result['structures'] for result in results):
    choice = 'The structures of ours were given by files, which do not say what they were chosen by'
  else:
    choice = 'Validation images chose the epochs and the results of ours, not the forms'
  return f'{choice}; the test images were read once, at the end of every run.'


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
    'result',
    'test',
    'test, linear probe',
  )
  rows = []
  for name in board.tasks:
    cells = [name, board.state(name)]
    if name in board.results:
      result = board.results[name]
      cells.append('none' if result['budget'] is None else f'{result["budget"]:,}')
      structures = result['structures']
      chosen = structures[result['result']]
      cells.append(f'{chosen["params"]:,}')
      cells.append(percent(chosen['val_accuracy']))
      cells.append(plain(chosen['label']))
      cells += [percent(row['test_accuracy']) for row in (chosen, structures['linear'])]
    rows.append(cells + [''] * (len(titles) - len(cells)))
  return Table(titles, rows, text_columns=2)


def list_reasons(reasons: Mapping[str, str]) -> list[str]:
  """Every task with its reason."""
  return [f'{name}: {" ".join(reason.split())}' for name, reason in reasons.items()]


def agreements(board: Board) -> list[str]:
  """How much the structures of a task's seeds agree; nothing where none has several seeds."""
  by_seeds: dict[str, list[Any]] = {}
  for name, result in board.results.items():
    if result['structure'] != 'search':
      genome = result['structures'][result['result']]['genome']
      by_seeds.setdefault(name.rpartition('/')[0], []).append(genome)
  return [
    f'{name}: {tell_agreement(genomes)}'
    for name, genomes in by_seeds.items()
    if len(genomes) > 1 and board.tasks[0].startswith(_SEEDED)
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


def csv_lines(board: Board, rows: Sequence[Row]) -> list[dict[str, Any]]:
  """A line for each method; an accuracy or mean of which a part is missing stays empty."""
  protocols = ' and '.join(dict.fromkeys(result['protocol'] for result in board.results.values()))
  return [
    {
      'method': row.method,
      'protocol': protocols if row.ours else 'published',
      'params_million': '' if row.params is None else f'{row.params:.4g}',
      **{
        title.replace(' ', '_'): f'{cell.value:.2f}'.removesuffix('0') if cell.complete else ''
        for title, cell in {**row.cells, **means(row, board.tasks)}.items()
      },
      'complete': sum(cell.complete for cell in row.cells.values()),
      'of': len(row.cells),
      'from_memory': ' '.join(row.from_memory),
      'source': row.source,
    }
    for row in rows
  ]
