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

import argparse
import os

from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.structures import plan
from benchmarks.structures.__main__ import choose_rates, command, committed, try_out
from benchmarks.structures.jobs import run_jobs
from benchmarks.structures.laboratory import VIT_S
from benchmarks.structures.plan import MAIN, Method, Protocol, rated
from benchmarks.structures.tables import line_of, print_lines, print_others, print_rates, rows_of

BUDGETS = (41_472, 73_728)  # of BitFit, and of LoRA of rank 1 in every layer
SEEDS = range(3)
TASKS = ('count', 'distance')
PROTOCOL = Protocol(os.path.join(MAIN.folder, VIT_S), 18, (8e-3, 1.6e-2), ('bars',), VIT_S)
FIXED = {  # those that were the best of a final task on the embedded backbone, by budget
  41_472: ('bitfit', 'lora:2@qkv'),
  73_728: ('lora:1', 'lora:1@mlp', 'lora:3@qkv', 'hira:1'),
}


def fixed_up_to(budget: int) -> list[Method]:
  """The fixed methods of at most a budget."""
  return [(name, 0) for size in BUDGETS if size <= budget for name in FIXED[size]]


METHODS = fixed_up_to(BUDGETS[-1]) + [
  (name, budget) for budget in BUDGETS for name in (plan.OURS, 'random(0)')
]


def tune(given: argparse.Namespace) -> None:
  """Chooses the rates of all methods."""
  choose_rates(given, map(plan.tuned_as, METHODS), PROTOCOL)


def final(given: argparse.Namespace) -> None:
  """Trains all methods on the final tasks."""
  rates = rated(METHODS, PROTOCOL.read_rates(), all_of_them=True)
  jobs = PROTOCOL.jobs(rates, TASKS, SEEDS)
  run_jobs(jobs, PROTOCOL.store('final'), given.runner, 'final', committed())


def tables(given: argparse.Namespace) -> None:
  """Prints what is there."""
  rates = PROTOCOL.read_rates()
  stores = {part: PROTOCOL.store(part, given.version) for part in ('tuning', 'final')}
  print_others(stores)
  print_rates(stores['tuning'], rates, PROTOCOL)
  found = {}
  for budget in BUDGETS:
    found[budget] = table = {}
    for task in TASKS:
      ours, fixed, drawn = (
        rows_of(stores['final'], task, rates, methods, PROTOCOL.epochs)
        for methods in ([(plan.OURS, budget)], fixed_up_to(budget), [('random(0)', budget)])
      )
      if ours and fixed:
        table[task] = line_of(ours[0], fixed, [*fixed, *drawn])
    print_lines('final', budget, table)
  print_result('structures.on_vit_s', found)


def quick(given: argparse.Namespace) -> None:
  """A short training of two methods whose results are not kept."""
  methods = [(plan.OURS, BUDGETS[0]), ('bitfit', 0)]
  try_out('structures.on_vit_s', given, methods, PROTOCOL._replace(tuned_on=TASKS), 1e-3)


if __name__ == '__main__':
  command(
    make_parser(__doc__, 'one epoch of two methods on one task; nothing is kept'),
    {'tune': tune, 'final': final, 'tables': tables},
    quick,
  )
