"""The pages of a run and of a suite: the same parts over one table of results."""

from __future__ import annotations

import os
from urllib.parse import quote

from markupsafe import Markup

from glora_jax.method.space import Spec
from glora_jax.search.allocation import Allocation
from glora_jax.search.archive import Archive
from glora_jax.vision.data import catalog
from glora_jax.vision.models.checkpoint import MODEL_FILE
from glora_jax.vision.reports import accuracy, curves, errors, making, page, structure, table
from glora_jax.vision.reports.page import (
  TEST_LIST,
  Blocks,
  Code,
  Heading,
  Items,
  Result,
  Section,
  Table,
  duration,
  group_by,
  percent,
  sentence_case,
)
from glora_jax.vision.reports.table import (
  PAPER_LABEL,
  Board,
  Pivot,
  board_of_run,
  pivot_of,
  place_of,
)
from glora_jax.vision.structure_names import FINETUNING, FOUND, GENOME_ENDING

_EQUATION = [
  'A scales and B shifts the weights, C is a prompt, D scales and E shifts the bias:',
  Code("W' = W + W*A + B\nb' = b + b*D + E + C W"),
]
_REMEDY = """
If a training diverged or learned nothing, try a lower rate (suite.rate, suite.rates,
training.learning_rate), bounded gradients (training.max_grad_norm=1) or more epochs
(training.epochs) in a new workdir.
"""
_MEMORY = 'The compiler reports the memory that a program needs on each device while it runs.'


def write_run(
  workdir: str,
  result: Result,
  spec: Spec,
  archive: Archive | None,
  allocation: Allocation | None,
  outcome: errors.Outcome | None,
) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a run.

  Args:
    workdir: its folder.
    result: content of `result.json`, and for the page alone `provenance` (the processes that made
      it), `programs` (compiled programs, by stage and name), `presets` (parameters and accuracy of
      each preset with a supernet's weights, by name), `fitness` (what a search maximized),
      `keeps_best` (whether the weights are those of the best epoch on the validation images), and
      `base` (arguments of `fetch`, `weights.load` and `weights.refit` that load the base again).
    spec: the layers that a search chose forms for; not read without a search.
    archive: the search's; None without a search.
    allocation: the allocation; None without one.
    outcome: the result's answers on the test images; None if they were not read.
  """
  board = board_of_run(result)
  pivot = pivot_of(board)
  table.write(workdir, pivot.rows)
  chosen = pivot.result
  low, high = accuracy.ends_of(pivot, chosen)
  interval = f'{low:.1f} to {high:.1f} (95%)'
  devices = dict.fromkeys(made['device'].partition(';')[0] for made in result['provenance'])
  has_gradient = result.get('allocation', {}).get('epochs')
  allocated = f'Allocation from {"one gradient" if has_gradient else "other tasks"}'
  told = [making.tell_run(result, spec), making.tell_protocol(result), *making.left_out(workdir)]
  page.write(
    workdir,
    what='a run',
    heading=result['task'],
    verdict=[
      accuracy.tell_verdict(result),
      accuracy.tell_result(result),
      accuracy.tell_rates(pivot),
    ],
    warnings=warnings(board),
    figures=[
      (f'{pivot.headline} accuracy', f'{chosen.cells[pivot.headline]}%', interval),
      ('trained parameters', str(chosen.parameters), 'without the head'),
      ('time', duration(sum(result['seconds'].values())), ', '.join(devices)),
    ],
    sections=[
      Section('accuracy', 'Accuracy', accuracy.blocks_of(pivot)),
      Section('structure', 'Structure', structures(pivot)),
      Section('allocation', allocated, structure.blocks_of(allocation, result)),
      Section('search', 'Search', curves.search_blocks(result, spec, archive)),
      Section('training', 'Training', curves.training_blocks(f'{workdir}/metrics.jsonl', result)),
      Section('classes', 'Classes', errors.blocks_by_class(result)),
      Section('errors', 'Errors', errors.blocks_of(outcome)),
      Section('cost', 'Cost', [*making.cost(pivot), making.table_of_programs(result), _MEMORY]),
      Section('run', 'How it was run', told),
      Section('reproduce', 'Reproduce it', making.reproduce(board)),
      Section('use', 'Use it', making.snippets(workdir, result)),
    ],
  )


def write_board(board: Board, workdir: str) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a suite.

  Args:
    board: the progress of the suite.
    workdir: its folder, which has that of every run.
  """
  pivot = pivot_of(board)
  table.write(workdir, pivot.rows)
  family = catalog.FAMILIES.get(board.family)
  page.write(
    workdir,
    what=f'{len(board.results)} of {len(board.cells)} runs of {board.title}',
    heading=family.title if family and board.by_task else board.title,
    verdict=[accuracy.tell_best(pivot), accuracy.tell_rates(pivot)],
    warnings=warnings(board),
    sections=[
      Section('accuracy', 'Accuracy', accuracy.blocks_of(pivot)),
      Section('runs', 'Runs', runs(board, workdir)),
      Section('rates', 'Learning rates', rates(pivot)),
      Section('structure', 'Structures', structures(pivot)),
      Section('cost', 'Cost', making.cost(pivot)),
      Section('sources', 'Published accuracies', sources(pivot)),
      Section('reproduce', 'Reproduce it', making.reproduce(board)),
    ],
  )


def summary_of_run(result: Result, workdir: str) -> str:
  """The text that the command line prints at the end of a run.

  Args:
    result: content of `result.json`.
    workdir: folder of the run.
  """
  board = board_of_run(result)
  last = [f'Page: {page.path(workdir)}']
  left = [page.NAME]  # the purpose of a run
  if 'fold_max_abs_diff' in result:
    last.append(f'Folded model: {workdir}/folded')
    left.append(f'folded/{MODEL_FILE}')
    if result['result'] != FINETUNING:
      left.append('adapter.safetensors')
  if gone := [name for name in left if not os.path.exists(os.path.join(workdir, name))]:
    last = [
      f'Missing from this finished run: {", ".join(gone)}; remove {workdir}/result.json, and the '
      'same command writes them again without training.'
    ]
  warning = [f'**{PAPER_LABEL}**', ''] if board.is_paper else []
  return '\n'.join([*warning, str(accuracy.table_of(pivot_of(board))), '', *last])


def summary_of_suite(board: Board, workdir: str) -> str:
  """The text that the command line prints at the end of a suite."""
  pivot, lines = pivot_of(board), []
  if pivot.methods:
    theirs = [method for method in pivot.methods if method.label == 'GLoRA'][:1]
    shown = pivot._replace(methods=[*pivot.ours, *theirs])
    lines = [str(accuracy.table_of(shown)), '', *accuracy.tell_gains(pivot)]
  lines += [f'{name} failed: {sentence}' for name, sentence in board.failed.items()]
  lines += filter(None, [table.tell_other_images(board)])
  states = [board.state(name) for name in board.cells]
  counts = ', '.join(f'{states.count(state)} {state}' for state in ('done', 'failed', 'not ready'))
  return '\n'.join([*lines, f'{counts} of {len(states)} runs. Page: {page.path(workdir)}'])


def warnings(board: Board) -> list[str]:
  """The paper's protocol; runs that failed or learned nothing, by reason, and a remedy.

  Before them the runs that were trained when others had been tested.
  """
  troubles = [(board.failed[name], name) for name in board.tested if name in board.failed]
  for name in filter(board.results.get, board.tested):
    for found in board.results[name]['structures'].values():
      if reason := found.get('learned_nothing'):
        label = '' if board.is_grid else found['label']
        troubles.append((reason, ', '.join(filter(None, [name, label]))))
  sentences = [
    f'{", ".join(name for _, name in same)}: {reason}'
    for reason, same in group_by(troubles, lambda trouble: trouble[0]).items()
  ]
  late = (
    f'{", ".join(board.late)}: added to test_list.json after other runs had been tested, because '
    'an earlier start failed or lacked data.'
  )
  return [
    PAPER_LABEL if board.is_paper else '',
    late if board.late else '',
    *sentences,
    _REMEDY if sentences else '',
  ]


def structures(pivot: Pivot) -> Blocks:
  """Structures that were chosen for one task, and how much those of different seeds agree."""
  board = pivot.board
  several = len({cell.seed for cell in board.tested.values()}) > 1
  figures, told = {}, []
  for method in sorted(pivot.ours, key=lambda method: not method.is_strong):
    first = method.rows[0]
    is_chosen = method.is_strong or first.structure in FOUND
    if not is_chosen or first.structure == FINETUNING:  # which has no adapter
      continue
    found = {row.run: board.results[row.run]['structures'][row.structure] for row in method.rows}
    if not board.by_task:
      title = sentence_case(first.label) + (f', seed {first.seed}' if several else '')
      figures[title] = structure.figure(title, found[first.run]['layers'])
    by_line = group_by(found, lambda run: place_of(board.cells[run].task).line).values()
    genomes = [[found[run]['genome'] for run in same] for same in by_line]
    told.append(structure.tell_agreement(method.label, genomes))
  return [*([*_EQUATION, structure.Structures([*figures.values()])] if figures else []), *told]


def runs(board: Board, workdir: str) -> Blocks:
  """State and result of every run, and the data that is missing."""
  titles = ('run', 'state', 'result', 'parameters', 'validation', 'test')
  rows = []
  for name in board.cells:
    address, found = page.path(name), [''] * 4
    link = Markup('<a href="{}">{}</a>').format(quote(address), name)
    if result := board.results.get(name):
      best = result['structures'][result['result']]
      test = percent(best['test_accuracy']) if 'test_accuracy' in best else ''
      found = [board.label(name, best), f'{best["params"]:,}', percent(best['val_accuracy']), test]
    is_written = os.path.exists(os.path.join(workdir, address))
    rows.append((link if is_written else name, board.state(name), *found))
  is_first = board.results and not (board.is_paper or board.late)
  has_list = os.path.exists(os.path.join(workdir, 'test_list.json'))
  blocks: Blocks = [
    Table(f'All {len(rows)} runs', titles, rows, text_columns=3, is_folded=len(rows) > page.LONG),
    TEST_LIST if has_list and is_first else '',
  ]
  if board.missing:
    blocks += [
      Heading('Not ready'),
      Items([f'{name}: {reason}' for name, reason in board.missing.items()]),
      '--config.suite.prepare=True downloads the data that needs no manual download.',
    ]
  if any(result['structure'].endswith(GENOME_ENDING) for result in board.results.values()):
    blocks.append('The structures come from files, which do not record how they were chosen.')
  return blocks


def rates(pivot: Pivot) -> Blocks:
  """Validation accuracy by learning rate, for every structure of every task that tried some."""
  board = pivot.board
  tried = [row for row in pivot.rows if row.role == 'rate']
  if not tried:
    return []
  columns = sorted({cell.rate for cell in board.cells.values() if cell.rate is not None})
  rows, at_ends = [], []
  for folder, same in group_by(tried, lambda row: os.path.dirname(row.run)).items():
    shares = {board.cells[row.run].rate: row.chooses_by for row in same}
    best = max(shares.values())
    own = [x.rate for name, x in board.cells.items() if x.rate and os.path.dirname(name) == folder]
    ends = {min(own), max(own)}
    if len(own) > 1 and ends.issuperset(rate for rate in shares if shares[rate] == best):
      at_ends.append(folder or board.title)
    cells = {
      rate: Markup('<strong>{}</strong>' if share == best else '{}').format(percent(share))
      for rate, share in shares.items()
    }
    rows.append((folder or board.title, *(cells.get(rate, '') for rate in columns)))
  told = """
    Rates are tried with a seed that is not tested. The tested runs use the rate with the highest
    validation accuracy, in bold (balanced accuracy if report.metric='balanced'). If rates are
    equal, the lowest validation loss decides.
  """
  beyond = f'At an end of suite.rates, so a rate beyond it may be better: {", ".join(at_ends)}.'
  table_of_rates = Table(
    'Validation accuracy in percent by learning rate',
    ('structure', *(f'{rate:g}' for rate in columns)),
    rows,
    is_folded=len(rows) > page.LONG,
  )
  return [told, table_of_rates, beyond if at_ends else '']


def sources(pivot: Pivot) -> Blocks:
  """Where the published accuracies come from; empty if none are shown."""
  rows = [method.rows[0] for method in pivot.methods if method.is_published]
  if not rows:
    return []
  papers = dict.fromkeys(f'{row.label}: {row.source}' for row in rows if row.source)
  published = table.read_published()
  return [
    Items(list(papers)),
    f'Seen in {"; ".join(published["seen_in"])}.',
    *published['notes'].get(pivot.board.family, ()),
  ]
