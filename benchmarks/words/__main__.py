"""Does a structure read off one gradient beat the simple methods on real texts?

  pip install tokenizers matplotlib
  python -m benchmarks.words [prepare|tune|develop|final|seconds|tables] [--quick]
                             [--packages FOLDER] [--methods NAME ...] [--tasks NAME ...]

A pretrained sentence encoder (all-MiniLM-L6-v2, 6 blocks, width 384) learns how people rated
sentences, by classes of equal size, from 2,000 of a task; see `texts`. Methods have the size of
LoRA of rank 1 in every layer, or the largest smaller one, and all start from the linear probe's
head. `prepare` gets two packages and writes tokens to `runs/words/`; `tune` chooses the learning
rate of each method on films and products; `develop` trains all methods on these, and `final` on
editorials and tweets, three seeds each; `seconds` times steps of all methods, and what comes before
them, in turn on a quiet machine; `tables` prints what is there, and draws the final tasks into
`notebooks/pictures/`. Results are lines of JSON in `results/`; the same command goes on where it
was stopped. `final` refuses to run before code and rates are committed. Two processes on a core
each (`taskset -c 0`, by `--methods` or `--tasks`) do more in an hour than one on both. `--quick`:
one epoch of three methods. The last line is JSON.
"""

import argparse
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  print_result,
  print_table,
  seconds,
)
from benchmarks.structures import figure
from benchmarks.structures.__main__ import chosen, command, committed
from benchmarks.structures.jobs import Job, Store, digest_of, run_jobs
from benchmarks.structures.plan import TUNING_SEED, Method, Protocol
from benchmarks.structures.statistics import answers, difference
from benchmarks.structures.tables import Row, line_of, print_lines
from benchmarks.words import texts, trainings
from benchmarks.words.trainings import BATCH_SIZE, BUDGET, CEILING, KNOWN, PROBE
from glora_jax.files import read_json, write_json

HERE = pathlib.Path(__file__).parent
SEEDS = range(3)
OURS = ('gradient', BUDGET)
FIXED: list[Method] = [
  (name, 0)
  for name in ('bitfit', 'lora:1', 'lora:2@attn', 'lora:1@mlp', 'hira:1', 'scale_shift_lora:1@attn')
]
TUNED = [*FIXED, ('random(0)', BUDGET), OURS, (KNOWN, BUDGET)]
RATES_OF = {('random(1)', BUDGET): ('random(0)', BUDGET)}
METHODS = [(PROBE, 0), *TUNED, *RATES_OF, (CEILING, 0)]
PROTOCOL = Protocol(
  str(HERE / 'results'), 3, (2e-3, 4e-3), tuple(texts.DEVELOPMENT), 'all-MiniLM-L6-v2'
)
STEPS, REPEATS = 3, 5  # that are timed
SECONDS = os.path.join(PROTOCOL.folder, 'seconds.json')
DIFFERENCES = 'notebooks/pictures/words.png'
BY_SECONDS = 'notebooks/pictures/words_seconds.png'
COLUMNS = ('seconds', 'warm head', 'gradient', 'steps')


def store_of(part: str, versions: Sequence[str] | None = None) -> Store:
  """The results of a part by some versions of what trains, by default the present one."""
  own = digest_of(sorted(HERE.glob('[!_]*.py')))
  return Store(os.path.join(PROTOCOL.folder, f'{part}.jsonl'), versions, own)


def run(jobs: list[Job], store: Store, given: argparse.Namespace, **more: Any) -> None:
  """Does the jobs whose results are not there."""
  run_jobs(jobs, store, given.runner, 'words', train=trainings.run, **more)


def rates_of(given: argparse.Namespace) -> dict[Method, float]:
  """The chosen rates of the methods that were asked for, and of those that take another's."""
  rates = {(PROBE, 0): 0.0, **PROTOCOL.read_rates()}
  tuned = {method: RATES_OF.get(method, method) for method in chosen(METHODS, given)}
  if without := sorted({name for name, budget in tuned.values() if (name, budget) not in rates}):
    raise SystemExit(f'No learning rate is chosen for {", ".join(without)}; the part tune does.')
  return {method: rates[own] for method, own in tuned.items()}


def tune(given: argparse.Namespace) -> None:
  """Chooses the rates of the methods."""
  store = store_of('tuning')
  ceiling = PROTOCOL._replace(first_rates=(1e-4, 2e-4))
  for protocol, methods in ((PROTOCOL, TUNED), (ceiling, [(CEILING, 0)])):
    work = functools.partial(run, store=store, given=given)
    found = protocol.tune(chosen(methods, given), store, work)
    PROTOCOL.add_rates(found)


def compare(part: str, names: Iterable[str], given: argparse.Namespace) -> None:
  """Trains all methods on the tasks of a part."""
  notes = committed(str(HERE)) if part == 'final' else {}
  jobs = PROTOCOL.jobs(rates_of(given), given.tasks or [*names], SEEDS)
  run(jobs, store_of(part), given, notes=notes)


def time_steps(given: argparse.Namespace) -> None:
  """Times what comes before the steps of every method, and some of these; keeps a training's."""
  task, seed = PROTOCOL.tuned_on[0], TUNING_SEED
  head = seconds(lambda: trainings.start(task, seed))
  gradient = seconds(lambda: trainings.allocation(task, seed).variables)
  rates = rates_of(given)
  works = {
    method: trainings.timed(Job(task, *method, rate, seed, PROTOCOL.epochs), STEPS)
    for method, rate in rates.items()
    if method != (PROBE, 0)
  }
  times = in_turn(works, REPEATS)
  steps = {method: times.median(method) / STEPS for method in works}
  whole = PROTOCOL.epochs * (texts.TRAIN // BATCH_SIZE)
  found = {  # a random structure starts on the gradient's vectors, too
    name: [head, gradient * (budget > 0 and name != KNOWN), whole * steps.get((name, budget), 0.0)]
    for name, budget in rates
  }
  print_table(dict.fromkeys(COLUMNS, ',.1f'), [(name, *parts) for name, parts in found.items()])
  write_json(SECONDS, found)
  print_result('words.seconds', found)


def rows_of(store: Store, task: str, rates: Mapping[Method, float]) -> dict[Method, Row]:
  """The methods that have results on a task."""
  found = {}
  for method, rate in rates.items():
    jobs = PROTOCOL.jobs({method: rate}, [task], SEEDS)
    if results := [store.results[job] for job in jobs if job in store.results]:
      right = np.stack([answers(result, texts.TESTS) for result in results])
      means = [100 * result['test'][0] for result in results]
      found[method] = Row(method, results[0]['params'], means, right)
  return found


def tables(given: argparse.Namespace) -> None:
  """Prints accuracies with intervals and seconds, and ours against all others, task by task."""
  rates, found = rates_of(given), {}
  measured = read_json(SECONDS) if os.path.exists(SECONDS) else {}
  times = {name: sum(parts) for name, parts in measured.items()}
  for part, names in (('development', texts.DEVELOPMENT), ('final', texts.FINAL)):
    store, lines = store_of(part, given.version), {}
    for task in names:
      rows = rows_of(store, task, rates)
      means = {row.method[0]: difference(row.right, 0 * row.right) for row in rows.values()}
      shown = [
        (name, row.params, '{:.1f} [{:.1f}, {:.1f}]'.format(*means[name]), times.get(name))
        for row in rows.values()
        for name in [row.method[0]]
      ]
      print_table({task: '', 'params': ',', 'accuracy': '', 'seconds': ',.0f'}, shown)
      if OURS in rows:
        lines[task] = line_of(
          rows.pop(OURS), [rows[m] for m in FIXED if m in rows], [*rows.values()]
        )
        lines[task]['accuracy'] = means
    print_lines(part, BUDGET, lines)
    found[part] = lines
  if found['final']:
    draw(found['final'], times)
  print_result('words', {**found, 'seconds': times})


def draw(lines: Mapping[str, Any], times: Mapping[str, float]) -> None:
  """Draws differences to the best fixed method, and accuracies by seconds, of the final tasks."""
  size, tasks = (figure.WIDTH, figure.HEIGHT + figure.LINE * len(lines)), [*lines]
  picture = Figure(figsize=size, layout='constrained')
  figure.draw_differences(picture.subplots(), lines, tasks, lambda task: 'o')
  picture.savefig(DIFFERENCES, dpi=150)
  picture = Figure(figsize=(2 * figure.WIDTH, 4.2), layout='constrained')
  for axis, task in zip(picture.subplots(1, len(tasks), squeeze=False).flat, tasks, strict=True):
    means = sorted((each, name) for name, each in lines[task]['accuracy'].items() if name in times)
    for number, ((mean, low, high), name) in enumerate(means):
      color = figure.COLORS['teal' if name in (OURS[0], KNOWN) else 'dim']
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
  picture.savefig(BY_SECONDS, dpi=150)


def quick(given: argparse.Namespace) -> None:
  """A short training of three methods whose results are not kept."""
  jobs = PROTOCOL._replace(epochs=1).jobs(
    {OURS: 2e-3, ('bitfit', 0): 2e-3, (CEILING, 0): 1e-4}, ['products'], [TUNING_SEED]
  )
  print_result('words', {job.method: trainings.run(job)['test'] for job in jobs})


if __name__ == '__main__':
  parser = make_parser(__doc__, 'one epoch of three methods on one task; nothing is kept')
  parser.add_argument('--packages', help='folder of the two packages; the registry by default')
  parser.add_argument('--methods', nargs='+', help='some of the methods')
  parser.add_argument('--tasks', nargs='+', help='some of the tasks of a part')
  parts = {
    'prepare': lambda given: texts.prepare(given.packages),
    'tune': tune,
    'develop': functools.partial(compare, 'development', texts.DEVELOPMENT),
    'final': functools.partial(compare, 'final', texts.FINAL),
    'seconds': time_steps,
    'tables': tables,
  }
  command(parser, parts, quick)
