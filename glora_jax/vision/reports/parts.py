"""Parts of pages: structures, runs, learning rates, cost, sources, facts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from glora_jax.compiling import MEMORY
from glora_jax.vision.reports import page
from glora_jax.vision.reports.charts import Bars
from glora_jax.vision.reports.findings import Findings
from glora_jax.vision.reports.pivots import Method
from glora_jax.vision.reports.structure import Structures, agreements, figure
from glora_jax.vision.reports.table import Board, place_of, published, rows_of
from glora_jax.vision.reports.text import (
  Table,
  code,
  duration,
  grouped,
  paragraph,
  percent,
  sentence_case,
  stage_title,
  weights_name,
)
from glora_jax.vision.structure_names import FOUND, GENOME_ENDING

EQUATION = paragraph(
  'A scales and B shifts the weights, C is a prompt, D scales and E shifts the bias:',
  code("W' = W + W*A + B, b' = b + b*D + E + C W"),
)
_MEMORY = 'The memory is what each device needs while the program runs, as the compiler reports it.'
_RESIZED = {'squash': 'resized to a square', 'crop': 'cropped to a square'}
_LONG = 20  # rows of a table that is folded


def structures(board: Board) -> list[Any]:
  """Structures that were chosen for one task, and how much they agree over seeds."""
  rows = {(row.run, row.structure): row for row in rows_of(board) if row.role != 'rate'}
  chosen = [row for row in rows.values() if row.structure in FOUND or row.role == 'result']
  chosen.sort(key=lambda row: row.role != 'result')
  found = [(row, board.results[row.run]['structures'][row.structure]) for row in chosen]
  told = agreements(
    (row.label, place_of(row.task).line, structure['genome']) for row, structure in found
  )
  if len(board.tasks) > 1:
    return told
  several = len({row.seed for row in chosen}) > 1
  figures = {}
  for row, structure in found:
    if row.label not in figures:
      title = sentence_case(row.label) + (f', seed {row.seed}' if several else '')
      figures[row.label] = figure(title, structure['layers'])
  shown = [EQUATION, Structures(list(figures.values()))] if figures else []
  return [*shown, *told]


def runs(board: Board, workdir: str) -> list[Any]:
  """State and result of every run, and what the data of some lacks."""
  titles = ('run', 'state', 'result', 'parameters', 'validation', 'test')
  rows = []
  for name in board.cells:
    address, found = os.path.join(name, page.NAME), [''] * 4
    link = Markup('<a href="{}">{}</a>').format(quote(address), name)
    if result := board.results.get(name):
      best = result['structures'][result['result']]
      test = percent(best['test_accuracy']) if 'test_accuracy' in best else ''
      found = [best['label'], f'{best["params"]:,}', percent(best['val_accuracy']), test]
    is_written = os.path.exists(os.path.join(workdir, address))
    rows.append((link if is_written else name, board.state(name), *found))
  blocks: list[Any] = [_folded(Table(f'All {len(rows)} runs', titles, rows, text_columns=3))]
  told = 'Everything tested is in {}, written before the test images were read.'
  blocks.append(Markup(told).format(code('test_list.json')))
  if board.missing:
    texts = [f'{name}: {reason}' for name, reason in board.missing.items()]
    blocks += [page.Heading('Not ready'), page.Items(texts)]
    blocks.append('--config.suite.prepare=True downloads what needs no manual download.')
  if any(str(result['structure']).endswith(GENOME_ENDING) for result in board.results.values()):
    blocks.append('Structures come from files that do not say how they were chosen.')
  return blocks


def _folded(table: Table) -> Any:
  """A table, on request if it is long."""
  return page.Details(table) if len(table.rows) > _LONG else table


def rates(board: Board) -> list[Any]:
  """Validation accuracy by learning rate, for every structure of every task that tried some."""
  tried = [row for row in rows_of(board) if row.role == 'rate']
  if not tried:
    return []
  columns = sorted({cell.rate for cell in board.cells.values() if cell.rate is not None})
  rows = []
  for folder, same in grouped(tried, lambda row: os.path.dirname(row.run)).items():
    shares = {board.cells[row.run].rate: row.accuracy for row in same}
    cells = {rate: percent(share) for rate, share in shares.items()}
    for rate, share in shares.items():
      if share == max(shares.values()):
        cells[rate] = Markup('<strong>{}</strong>').format(cells[rate])
    rows.append((folder or board.title, *(cells.get(rate, '') for rate in columns)))
  told = """
    Tried with a seed that is not tested. What is tested was trained at the rate with the highest
    validation accuracy, in bold; of equal ones, at that with the lowest validation loss.
  """
  titles = ('structure', *(f'{rate:g}' for rate in columns))
  return [told, _folded(Table('Validation accuracy in percent by learning rate', titles, rows))]


def cost_of_run(findings: Findings) -> list[Any]:
  """The time of each stage, and what it compiled."""
  return [_by_stage([findings.result]), table_of_programs(findings), _MEMORY]


def cost_of_board(board: Board, methods: Sequence[Method]) -> list[Any]:
  """The time of one run of each structure, and of all runs by stage or by task."""
  results = board.results
  if not methods:
    return []
  whole = _by_stage(results.values())
  if len(board.tasks) > 1:
    whole = _bars(
      (board.cells[name].task, sum(result['seconds'].values())) for name, result in results.items()
    )
  if not board.is_grid:
    return [whole]
  one = [(method.label, method.mean('seconds', '.0f')) for method in methods]
  return [
    page.Heading('One run of each structure'),
    _bars([(label, seconds.value) for label, seconds in one if seconds.done], 'purple'),
    page.Heading('All runs'),
    whole,
    'What several runs share counts in each of them.',
  ]


def _by_stage(results: Iterable[Mapping[str, Any]]) -> Bars:
  return _bars(
    (stage_title(stage, {}), value)
    for result in results
    for stage, value in result['seconds'].items()
  )


def _bars(seconds: Iterable[tuple[str, float]], color: str = 'dim') -> Bars:
  """A bar for the time of everything, in order; times of one name are added up."""
  by_name = grouped(seconds, lambda each: each[0]).items()
  sums = [(name, sum(value for _, value in same)) for name, same in by_name]
  return Bars([(name, value, duration(value)) for name, value in sums], color)


def table_of_programs(findings: Findings) -> Table:
  """What each stage compiled: the seconds that this took, and the memory of each device."""
  labels = {name: tested['label'] for name, tested in findings.result['structures'].items()}
  rows = [
    (stage_title(stage, labels), name, duration(found['seconds']), *_mebibytes(found['memory']))
    for stage, programs in findings.programs.items()
    for name, found in programs.items()
  ]
  return Table(
    'Compiled programs, and their memory on each device by the compiler',
    ('stage', 'program', 'compiled in', *(f'{kind}, MiB' for kind in MEMORY)),
    rows,
    text_columns=2,
  )


def _mebibytes(memory: Mapping[str, int]) -> list[str]:
  sizes = [memory.get(kind) for kind in MEMORY]
  return ['unknown' if size is None else f'{size / 2**20:,.1f}' for size in sizes]


def published_sources(board: Board, methods: Sequence[Method]) -> list[Any]:
  """Where the published accuracies come from; nothing if none are shown."""
  rows = [method.rows[0] for method in methods if method.is_published]
  if not rows:
    return []
  papers = dict.fromkeys(f'{row.label}: {row.source}' for row in rows if row.source)
  seen = f'Seen in {"; ".join(published()["seen_in"])}.'
  return [page.Items(list(papers)), seen, *published()['notes'].get(board.family, ())]


def facts(board: Board) -> list[tuple[str, Any]]:
  """What the results of a board were made from: terms with their values."""
  results = [board.results[name] for name in board.tested if name in board.results]
  found = {
    'Seed': [str(result['seed']) for result in results],
    'Learning rate': [
      f'{x["rate"]:g}' for result in results for x in result['structures'].values()
    ],
    'Weights': [weights_name(result) for result in results],
    'Input': [
      f'{_RESIZED[result["data"]["resize"]]}, normalized as {result["normalization"]}'
      for result in results
    ],
  }
  for result in results:
    images = 'Images' if len(board.tasks) == 1 else result['task']
    found.setdefault(images, []).append(_tell_images(result['data']))
  return [
    (term, Markup(', ').join(dict.fromkeys(values))) for term, values in found.items() if values
  ]


def _tell_images(data: Mapping[str, Any]) -> Markup:
  counts = ', '.join(f'{number:,} {split}' for split, number in data['images'].items())
  return paragraph(f'{data["origin"]}: {counts}.', *data['notes'])
