"""Does a structure by one gradient beat the simple methods on real texts?

  pip install tokenizers matplotlib
  python -m benchmarks.words [tables|prepare|train|seconds] [--quick] [--packages FOLDER]
                             [--results FOLDER] [--pictures FOLDER]

A pretrained sentence encoder (all-MiniLM-L6-v2, 6 blocks, width 384) learns how people rated
sentences, by classes of equal size, from 2,000 of a task; see `texts`. Methods have the size of
LoRA of rank 1 in every layer, or the largest smaller one, and all start from the linear probe's
head. Learning rates were chosen on films and products. `tables` prints kept results of editorials
and tweets, and draws them. `prepare` gets two packages and writes tokens to `runs/words/`; `train`
trains what has no result yet, three seeds of each method, and with `--results` in an empty folder
everything; `seconds` times steps of all methods, and what comes before them, in turn on a quiet
machine. `--quick`: one epoch of three methods; nothing is kept. The last line is JSON.
"""

import argparse
import os
import pathlib
from collections.abc import Mapping

from matplotlib.figure import Figure

from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  print_result,
  print_table,
  seconds,
)
from benchmarks.structures import figure
from benchmarks.structures.jobs import Job, Method, read_rates, read_results, run_jobs
from benchmarks.structures.statistics import Difference, difference, unpack
from benchmarks.structures.tables import Line, as_json, line_of, print_lines, rows_of
from benchmarks.words import texts, trainings
from benchmarks.words.trainings import BATCH_SIZE, BUDGET, CEILING, PROBE, TRANSFER
from glora_jax.files import read_json, write_json

RESULTS = str(pathlib.Path(__file__).parent / 'results')
EPOCHS, SEEDS = 3, range(3)
TIMED_SEED = 1000
OURS = ('gradient', BUDGET)
FIXED: list[Method] = [
  (name, 0)
  for name in ('bitfit', 'lora:1', 'lora:2@attn', 'lora:1@mlp', 'hira:1', 'scale_shift_lora:1@attn')
]
RANDOM = [(f'random({number})', BUDGET) for number in range(2)]
METHODS = [(PROBE, 0), *FIXED, *RANDOM, OURS, (TRANSFER, BUDGET), (CEILING, 0)]
STEPS, REPEATS = 3, 5  # that are timed
COLUMNS = ('seconds', 'warm head', 'gradient', 'steps')


def jobs(tasks: list[str]) -> list[Job]:
  """All trainings of some tasks, each method at its rate; random structures share one."""
  rates = {(PROBE, 0): 0.0, **read_rates(RESULTS)}
  rates[RANDOM[1]] = rates[RANDOM[0]]
  return [
    Job(task, *method, rates[method], seed, EPOCHS)
    for seed in SEEDS
    for task in tasks
    for method in METHODS
  ]


def seconds_path(given: argparse.Namespace) -> str:
  """The file of measured seconds."""
  return os.path.join(given.results, 'seconds.json')


def time_steps(given: argparse.Namespace) -> None:
  """Times what comes before the steps of every method, and some of these; keeps a training's."""
  task, seed = next(iter(texts.DEVELOPMENT)), TIMED_SEED
  head = seconds(lambda: trainings.start(task, seed))
  gradient = seconds(lambda: trainings.allocation(task, seed).variables)
  works = {
    job[1:3]: trainings.timed(job._replace(seed=seed), STEPS)
    for job in jobs([task])
    if job.seed == SEEDS[0] and job.method != PROBE
  }
  times = in_turn(works, REPEATS)
  steps = {method: times.median(method) / STEPS for method in works}
  whole = EPOCHS * (texts.TRAIN // BATCH_SIZE)
  found = {  # a random structure starts on the gradient's vectors, too
    name: [
      head,
      gradient * (budget > 0 and name != TRANSFER),
      whole * steps.get((name, budget), 0.0),
    ]
    for name, budget in METHODS
  }
  print_table(dict.fromkeys(COLUMNS, ',.1f'), [(name, *parts) for name, parts in found.items()])
  write_json(seconds_path(given), found)
  print_result('words.seconds', found)


def tables(given: argparse.Namespace) -> None:
  """Prints accuracies with intervals and seconds, and ours against all others, task by task."""
  results, lines, accuracies = read_results(given.results), {}, {}
  path = seconds_path(given)
  measured = read_json(path) if os.path.exists(path) else {}
  times = {name: sum(parts) for name, parts in measured.items()}
  for task in texts.FINAL:
    rows = {row.method: row for row in rows_of(results, task, METHODS, texts.TESTS)}
    means = {row.method[0]: difference(row.right, 0 * row.right) for row in rows.values()}
    print_table(
      {task: '', 'params': ',', 'accuracy': '', 'seconds': ',.0f'},
      [
        (name, row.params, '{:.1f} [{:.1f}, {:.1f}]'.format(*means[name]), times.get(name))
        for (name, _), row in rows.items()
      ],
    )
    if OURS in rows:
      ours = rows.pop(OURS)
      lines[task] = line_of(ours, [rows[m] for m in FIXED if m in rows], [*rows.values()])
      accuracies[task] = means
  if lines:
    print_lines(f'{BUDGET:,} parameters', lines)
    draw(given.pictures, lines, accuracies, times)
  print_result('words', {**as_json(lines), 'accuracies': accuracies, 'seconds': times})


def draw(
  folder: str,
  lines: Mapping[str, Line],
  accuracies: Mapping[str, Mapping[str, Difference]],
  times: Mapping[str, float],
) -> None:
  """Draws differences to the best fixed method, and accuracies by seconds."""
  size, tasks = (figure.WIDTH, figure.HEIGHT + figure.LINE * len(lines)), [*lines]
  picture = Figure(figsize=size, layout='constrained')
  figure.draw_differences(picture.subplots(), lines, tasks, lambda task: 'o')
  picture.savefig(os.path.join(folder, 'words.png'), dpi=150)
  picture = Figure(figsize=(2 * figure.WIDTH, 4.2), layout='constrained')
  for axis, task in zip(picture.subplots(1, len(tasks), squeeze=False).flat, tasks, strict=True):
    means = sorted((each, name) for name, each in accuracies[task].items() if name in times)
    for number, ((mean, low, high), name) in enumerate(means):
      color = figure.COLORS['teal' if name in (OURS[0], TRANSFER) else 'dim']
      axis.plot((times[name],) * 2, (low, high), color=color, linewidth=1)
      axis.plot(times[name], mean, 'o', color=color, markersize=6)
      axis.annotate(
        name,
        (times[name], mean),
        (1.04, (number + 0.5) / len(means)),
        textcoords='axes fraction',
        arrowprops={
          'arrowstyle': '-',
          'relpos': (0, 0.5),
          'color': figure.COLORS['grey'],
          'linewidth': 0.6,
        },
        fontsize=figure.SMALL,
        color=color,
        va='center',
      )
    axis.spines[['top', 'right']].set_visible(False)
    axis.set(title=task, xlabel='seconds', ylabel='test accuracy, %')
  picture.savefig(os.path.join(folder, 'words_seconds.png'), dpi=150)


def quick() -> None:
  """A short training of three methods whose results are not kept."""
  short = [(*OURS, 2e-3), ('bitfit', 0, 2e-3), (CEILING, 0, 1e-4)]
  found = {
    name: unpack(trainings.run(Job('products', name, *rest, TIMED_SEED, 1))['answers'], texts.TESTS)
    for name, *rest in short
  }
  print_result('words', {name: right.mean() for name, right in found.items()})


def main() -> None:
  """Does what the command line asks for."""
  parser = make_parser(__doc__, 'one epoch of three methods on one task; nothing is kept')
  parts = ('tables', 'prepare', 'train', 'seconds')
  parser.add_argument('part', nargs='?', choices=parts, default='tables')
  parser.add_argument('--packages', help='folder of the two packages; the registry by default')
  parser.add_argument('--results', default=RESULTS, help='folder of results')
  parser.add_argument('--pictures', default='notebooks/pictures', help='folder of the pictures')
  given = parser.parse_args()
  if given.quick:
    quick()
  elif given.part == 'prepare':
    texts.prepare(given.packages)
  elif given.part == 'train':
    run_jobs(jobs([*texts.FINAL]), given.results, trainings.run)
  elif given.part == 'seconds':
    time_steps(given)
  else:
    tables(given)


if __name__ == '__main__':
  main()
