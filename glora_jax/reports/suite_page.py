"""The page of a suite: `report.html`, from its scoreboard and the sentences of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glora_jax.reports import page, suite_report
from glora_jax.reports.charts import Axis, Bar, DotPlot, Dots, Mark, bars
from glora_jax.reports.columns import title_of
from glora_jax.reports.markdown import PAPER_LABEL, sentence_case
from glora_jax.reports.provenance import distinct
from glora_jax.reports.scoreboard import (
  MEAN_OF_GROUPS,
  Board,
  Line,
  Row,
  lines,
  own_rows,
  published_rows,
)

_PERCENT = Axis('test accuracy in %', [0, 20, 40, 60, 80, 100])


def write(board: Board, workdir: str, pages: Mapping[str, str]) -> None:
  """Writes `report.html` into the workdir of a suite.

  Args:
    board: how far the suite is.
    workdir: its folder.
    pages: the page of every task that has one, by its name, relative to the workdir.
  """
  page.write(workdir, 'suite.html', facts(board, pages))


def facts(board: Board, pages: Mapping[str, str]) -> dict[str, Any]:
  """What the template of a suite asks for."""
  rows = own_rows(board) + published_rows(board.tasks)
  return {
    'family': title_of(board.tasks),
    'suite': board.suite,
    'done': suite_report.count_done(board),
    'verdict': tell_verdict(board, rows),
    'warning': PAPER_LABEL if board.is_paper else '',
    'protocol': suite_report.tell_protocol(board),
    'columns': suite_report.tell_columns(board),
    'plot': accuracy_plot(board, rows),
    'table': suite_report.accuracies(board, rows),
    'tasks': suite_report.tasks_table(board),
    'pages': pages,
    'failed': suite_report.list_reasons(board.failed),
    'missing': suite_report.list_reasons(board.missing),
    'remedy': suite_report.tell_missing(board),
    'agreements': suite_report.agreements(board),
    'cost': _cost(board),
    'origins': suite_report.origins(board),
    'sources': suite_report.sources(rows),
    'seen': [suite_report.tell_sources(), *suite_report.wrong_means(board, rows)],
    'provenances': distinct(
      made for result in board.results.values() for made in result.get('provenance', ())
    ),
  }


def tell_verdict(board: Board, rows: Sequence[Row]) -> str:
  """The headline's mean, or the widest that ours have, beside the published GLoRA's."""
  done = [line for line in lines(board, rows) if line.is_mean and line.cells[0].complete]
  if not done:
    return f'{suite_report.count_done(board)} are done, too few for a mean.'
  line = next((line for line in done if line.title == MEAN_OF_GROUPS), done[-1])
  other = next((at for at, row in enumerate(rows) if row.method == 'GLoRA'), None)
  beside = '' if other is None else f'; published for GLoRA: {line.cells[other]}'
  ours = sentence_case(rows[0].method)
  return f'{ours}: a test accuracy of {line.cells[0]}%, the {line.title}{beside}.'


def accuracy_plot(board: Board, rows: Sequence[Row]) -> DotPlot:
  """Every line of the table: ours, and the published ones as marks."""
  order = sorted(range(len(rows)), key=lambda number: _rank(rows[number], number))
  drawn = [
    Dots(
      label=line.title,
      value=str(line.cells[0]),
      marks=[mark for number in order for mark in _marks(line, rows, number)],
      is_strong=line.is_mean,
    )
    for line in lines(board, rows)
  ]
  shown = dict.fromkeys(_style(rows[number], number) for number in reversed(order))
  title = f'Test accuracy in %: {rows[0].method}, and what it stands beside'
  return DotPlot(title, _PERCENT, drawn, list(shown))


def _marks(line: Line, rows: Sequence[Row], number: int) -> list[Mark]:
  """The mark of a row on a line; none where its cell has no value."""
  cell = line.cells[number]
  if cell.value is None:
    return []
  _, color, shape = _style(rows[number], number)
  return [Mark((_PERCENT.place(cell.value), 50), f'{rows[number].method}: {cell}', color, shape)]


def _style(row: Row, number: int) -> tuple[str, str, str]:
  """How a row is shown: its name in the legend, colour and shape."""
  if number == 0:
    return row.method, 'teal', 'dot'
  style = suite_report.style_of(row)
  return style._replace(label='others of ours') if row.ours else style


def _rank(row: Row, number: int) -> int:
  """What is drawn below what: the others first, ours last."""
  shapes = ('ring', 'tick', 'diamond', 'star', 'dot')
  return shapes.index(_style(row, number)[2])


def _cost(board: Board) -> list[Bar]:
  """The time of every task that is done, all stages together."""
  totals = {name: sum(result.get('seconds', {}).values()) for name, result in board.results.items()}
  return bars([(name, value, page.duration(value)) for name, value in totals.items()])
