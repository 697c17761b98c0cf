"""The pages of a run and of a suite: the same parts over one table of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glora_jax.vision.data import catalog
from glora_jax.vision.reports import (
  accuracy,
  curves,
  errors,
  page,
  parts,
  structure,
  table,
  verdict,
)
from glora_jax.vision.reports.findings import Findings
from glora_jax.vision.reports.pivots import Method, pivot
from glora_jax.vision.reports.table import Board, board_of_run, rows_of, tell_other_images
from glora_jax.vision.reports.text import PAPER_LABEL, duration, grouped
from glora_jax.vision.reports.use import snippets

_REMEDY = """
If a training diverged or learned nothing, try a lower rate (suite.rate, suite.rates,
training.learning_rate), bounded gradients (training.max_grad_norm=1) or more epochs
(training.epochs) in a new workdir.
"""


def write_run(workdir: str, findings: Findings) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a run.

  Args:
    workdir: its folder.
    findings: the result, and how it was found.
  """
  result = findings.result
  board = board_of_run(result)
  methods = pivot(board)
  table.write(workdir, rows_of(board))
  has_gradient = result.get('allocation', {}).get('epochs')
  allocated = f'Allocation from {"one gradient" if has_gradient else "other tasks"}'
  page.write(
    workdir,
    what='a run',
    heading=findings.task.name,
    verdict=[verdict.tell_verdict(result), verdict.tell_result(result)],
    warnings=warnings(board),
    figures=figures(board, methods, findings),
    sections=[
      page.Section('accuracy', 'Accuracy', accuracy.blocks_of(board, methods)),
      page.Section('structure', 'Structure', parts.structures(board)),
      page.Section('allocation', allocated, structure.blocks_of(findings.allocation, result)),
      page.Section('search', 'Search', curves.search_blocks(findings)),
      page.Section(
        'training', 'Training', curves.training_blocks(f'{workdir}/metrics.jsonl', result)
      ),
      page.Section('errors', 'Errors', errors.blocks_of(findings.task.classes, findings.outcome)),
      page.Section('cost', 'Cost', parts.cost_of_run(findings)),
      page.Section(
        'run', 'What was run', [verdict.tell_run(findings), verdict.tell_protocol(findings)]
      ),
      page.reproduce(findings.made, parts.facts(board)),
      page.Section('use', 'Use it', snippets(workdir, findings)),
    ],
  )


def write_board(board: Board, workdir: str) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a suite.

  Args:
    board: the progress of the suite.
    workdir: its folder, which has that of every run.
  """
  methods = pivot(board)
  table.write(workdir, rows_of(board))
  family = catalog.FAMILIES.get(board.family)
  made = [each for result in board.results.values() for each in result.get('provenance', ())]
  page.write(
    workdir,
    what=f'{len(board.results)} of {len(board.cells)} runs of {board.title}',
    heading=family.title if family and len(board.tasks) > 1 else board.title,
    verdict=[accuracy.tell_best(board, methods)],
    warnings=warnings(board),
    sections=[
      page.Section('accuracy', 'Accuracy', accuracy.blocks_of(board, methods)),
      page.Section('runs', 'Runs', parts.runs(board, workdir)),
      page.Section('rates', 'Learning rates', parts.rates(board)),
      page.Section('structure', 'Structures', parts.structures(board)),
      page.Section('cost', 'Cost', parts.cost_of_board(board, methods)),
      page.Section('sources', 'Published accuracies', parts.published_sources(board, methods)),
      page.reproduce(made, parts.facts(board)),
    ],
  )


def warnings(board: Board) -> list[str]:
  """The paper's protocol; what failed or learned nothing, by reason, and what may help."""
  troubles = [(board.failed[name], name) for name in board.tested if name in board.failed]
  for name in filter(board.results.get, board.tested):
    for found in board.results[name]['structures'].values():
      place = [name, '' if board.is_grid else found['label']]
      troubles.append((found.get('learned_nothing'), ', '.join(filter(None, place))))
  by_reason = grouped([each for each in troubles if each[0]], lambda each: each[0])
  sentences = [
    f'{", ".join(name for _, name in alike)}: {reason}' for reason, alike in by_reason.items()
  ]
  return [PAPER_LABEL if board.is_paper else '', *sentences, _REMEDY if sentences else '']


def figures(
  board: Board, methods: Sequence[Method], findings: Findings
) -> list[tuple[str, str, str]]:
  """The most important numbers of a run: accuracy, parameters, time."""
  title = accuracy.headline(methods)
  [chosen] = [method for method in methods if method.is_strong]
  number = chosen.cells[title]
  between = '{:.1f} to {:.1f} (95%)'.format(*accuracy.ends_of(board, chosen, title))
  devices = dict.fromkeys(made['device'].partition(';')[0] for made in findings.made)
  return [
    (f'{title} accuracy', f'{number}%', between),
    ('trained parameters', str(chosen.parameters), 'without the head'),
    ('time', duration(sum(findings.result['seconds'].values())), ', '.join(devices)),
  ]


def run_table(result: Mapping[str, Any]) -> str:
  """The accuracies of a run as a Markdown table, below a warning if the protocol is the paper's.

  Args:
    result: content of `result.json`.
  """
  board = board_of_run(result)
  warning = f'**{PAPER_LABEL}**\n\n' if board.is_paper else ''
  return f'{warning}{accuracy.table_of(board, pivot(board))}'


def summary(board: Board, workdir: str) -> str:
  """The text that the command line prints at the end of a suite."""
  methods, told = pivot(board), []
  if methods:
    theirs = [method for method in methods if method.label == 'GLoRA'][:1]
    shown = [method for method in methods if not method.is_published] + theirs
    told = [accuracy.table_of(board, shown), '', *accuracy.tell_gains(board, methods)]
  states = [board.state(name) for name in board.cells]
  counts = ', '.join(f'{states.count(state)} {state}' for state in ('done', 'failed', 'not ready'))
  lines = [
    *told,
    *(f'{name} failed: {sentence}' for name, sentence in board.failed.items()),
    *filter(None, [tell_other_images(board)]),
    f'{counts} of {len(board.cells)} runs. Page: {workdir}/{page.NAME}',
  ]
  return '\n'.join(map(str, lines))
