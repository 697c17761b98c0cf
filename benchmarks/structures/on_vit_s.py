"""Does it hold on a larger backbone? A ViT-S/14, two tasks, two budgets, three seeds.

  pip install onnx onnxruntime mlxtend
  python -m benchmarks.transfer prepare --blocks 12
  python -m benchmarks.structures.on_vit_s [tune|final|tables] [--quick] [--version VERSION]
                                           [--runner ray[:ADDRESS]]

The twelve blocks of the ViT-S/14 of `benchmarks.transfer` (DINOv2's, tuned for saliency) on images
of 56 x 56 pixels, 18 epochs of a structure alone. A layer's sizes are four times, and there are
twice as many layers as in the embedded backbone, so that eight times its budgets hold the same
presets. Of these, the ones that were the best of a final task there are compared, by a list that
was written before the first training here. Rates are chosen on one development task. The final
tasks are the first, and the next after it that leaves this backbone anything to gain: of angles and
positions BitFit answers 99% right, and a final task is one where less than 97% are. Everything else
is as in `python -m benchmarks.structures`, and so are the files, in `results/vit_s/`. A training
takes six minutes of a CPU's core, and all of them nine hours.
`--quick`: one epoch of two methods. The last line is JSON.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.structures import plan
from benchmarks.structures.__main__ import FOLDER, add_runner, committed, runner_of
from benchmarks.structures.jobs import Job, Store, run_jobs
from benchmarks.structures.laboratory import VIT_S
from benchmarks.structures.plan import Method
from benchmarks.structures.tables import (
  line_of,
  print_beside,
  print_final,
  print_others,
  print_rates,
  rows_of,
)

BUDGETS = (41_472, 73_728)  # of BitFit, and of LoRA of rank 1 in every layer
SEEDS = range(3)
TRIALS = plan.Trials(epochs=18, first_rates=(8e-3, 1.6e-2), tasks=('bars',), backbone=VIT_S)
FIXED = {  # those that were the best of a final task on the embedded backbone, by budget
  41_472: ('bitfit', 'lora:2@qkv'),
  73_728: ('lora:1', 'lora:1@mlp', 'lora:3@qkv', 'hira:1'),
}
TASKS = ('count', 'distance')
RATES = os.path.join(FOLDER, VIT_S, 'rates.json')


def fixed_up_to(budget: int) -> list[Method]:
  """The fixed methods of at most a budget."""
  return [(name, 0) for size in BUDGETS if size <= budget for name in FIXED[size]]


def filling(budget: int) -> list[Method]:
  """What fills a budget: ours, and a random structure."""
  return [(plan.OURS, budget), ('random(0)', budget)]


def store_of(part: str, version: str | None = None) -> Store:
  """The results of a part by a version, by default the present one."""
  return Store(os.path.join(FOLDER, VIT_S, f'{part}.jsonl'), version)


def methods() -> list[Method]:
  """All that are trained."""
  return fixed_up_to(BUDGETS[-1]) + [each for budget in BUDGETS for each in filling(budget)]


def read_rates() -> dict[Method, float]:
  """The chosen rates; see `plan.read_rates`."""
  return plan.read_rates(RATES, 'benchmarks.structures.on_vit_s')


def job(task: str, method: Method, seed: int, rate: float, epochs: int = TRIALS.epochs) -> Job:
  """A training of a method."""
  return Job(task, *method, rate, seed, epochs, VIT_S)


def tune(arguments) -> None:
  """Chooses the rates of all methods."""
  store = store_of('tuning')
  run = functools.partial(run_jobs, store=store, runner=arguments.runner, title='tuning')
  plan.write_rates(RATES, plan.tune(list(map(plan.tuned_as, methods())), store, TRIALS, run))


def final(arguments) -> None:
  """Trains all methods on the final tasks."""
  rates = read_rates()
  notes = {'commit': committed(os.path.dirname(FOLDER))}
  jobs = [
    job(task, method, seed, rates[plan.tuned_as(method)])
    for seed in SEEDS
    for task in TASKS
    for method in methods()
  ]
  run_jobs(jobs, store_of('final'), arguments.runner, 'final', notes)


def tables(arguments) -> None:
  """Prints what is there."""
  rates = read_rates()
  tuning, store = (store_of(part, arguments.version) for part in ('tuning', 'final'))
  print_others({'tuning': tuning, 'final': store})
  print_rates(tuning, rates, TRIALS)
  found: dict[int, dict[str, Any]] = {budget: {} for budget in BUDGETS}
  for budget, table in found.items():
    for task in TASKS:
      rows = functools.partial(rows_of, store, task, rates, epochs=TRIALS.epochs)
      ours, fixed = rows([(plan.OURS, budget)]), rows(fixed_up_to(budget))
      if ours and fixed:
        table[task] = line_of(ours[0], fixed, [*fixed, *rows([('random(0)', budget)])])
    print_final(f'final, {budget:,}', table)
    print_beside(f'ours less these, {budget:,}', table)
  print_result('structures.on_vit_s', found)


def quick(arguments) -> None:
  """A short training of two methods whose results are not kept."""
  store = Store(os.path.join('runs', 'structures', 'quick_vit_s.jsonl'))
  short = [(plan.OURS, BUDGETS[0]), ('bitfit', 0)]
  jobs = [job(TASKS[0], method, plan.TUNING_SEED, 1e-3, epochs=1) for method in short]
  run_jobs(jobs, store, arguments.runner, 'quick')
  print_result('structures.on_vit_s', {each.method: store.results[each]['test'] for each in jobs})


DO: dict[str, Callable[[Any], None]] = {'tune': tune, 'final': final, 'tables': tables}


def main() -> None:
  """Does what the command line asks for."""
  parser = make_parser(__doc__, 'one epoch of two methods on one task; nothing is kept')
  parser.add_argument('parts', nargs='*', choices=[*DO, []], default=[], help='all by default')
  add_runner(parser)
  arguments = parser.parse_args()
  arguments.runner = runner_of(arguments)
  for do in [quick] if arguments.quick else [DO[part] for part in arguments.parts or DO]:
    do(arguments)


if __name__ == '__main__':
  main()
