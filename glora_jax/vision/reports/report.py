"""The page of a run, a grid or a suite: parts over one table of results."""

from __future__ import annotations

import os
from urllib.parse import quote

from markupsafe import Markup

from glora_jax.vision.reports import page
from glora_jax.vision.reports.table import Board
from glora_jax.vision.reports.tables import Table


def write_board(board: Board, workdir: str) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a suite.

  Args:
    board: the progress of the suite.
    workdir: its folder, which has that of every run.
  """
  page.write(
    workdir,
    what=count_done(board),
    heading=board.title,
    verdict=[f'{count_done(board)} are done.'],
    sections=[page.Section('runs', 'Runs', [table_of_cells(board, workdir)])],
  )


def count_done(board: Board) -> str:
  """The number of finished runs, '17 of 19 runs'."""
  return f'{len(board.results)} of {len(board.cells)} runs'


def table_of_cells(board: Board, workdir: str) -> Table:
  """The state of every run, with a link to its page if there is one."""
  rows = []
  for name in board.cells:
    address = os.path.join(name, page.NAME)
    link = Markup('<a href="{}">{}</a>').format(quote(address), name)
    is_written = os.path.exists(os.path.join(workdir, address))
    rows.append((link if is_written else name, board.state(name)))
  return Table('Runs', ('run', 'state'), rows, text_columns=2)


def summary(board: Board, workdir: str) -> str:
  """The text that the command line prints at the end."""
  failed = [f'{name} failed: {sentence}' for name, sentence in board.failed.items()]
  return '\n'.join([*failed, f'{count_done(board)}. Page: {workdir}/{page.NAME}'])
