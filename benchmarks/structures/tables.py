"""The tables: ours against the best fixed method, random structures and controls, task by task.

They are printed as text, and with a last line of JSON.
"""

import collections
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machinery.measuring import print_result, print_table
from benchmarks.structures import plan
from benchmarks.structures.jobs import UNKNOWN, Job, Store
from benchmarks.structures.methods import KNOWN
from benchmarks.structures.plan import Method, Protocol, Rates, rated
from benchmarks.structures.statistics import Difference, answers, broken_down, difference, headroom
from benchmarks.structures.tasks import TASKS


class Row(NamedTuple):
  """A method on a task.

  Attributes:
    method: name and budget.
    params: trained parameters.
    accuracies: test accuracy in points, by seed.
    right: right answers, bool [seed, image].
  """

  method: Method
  params: int
  accuracies: list[float]
  right: np.ndarray

  @property
  def mean(self) -> float:
    """Mean accuracy over the seeds."""
    return statistics.mean(self.accuracies)


def rows_of(
  store: Store, task: str, rates: Rates, methods: Sequence[Method], epochs: int = plan.EPOCHS
) -> list[Row]:
  """The methods that have results on a task, with the seeds that all of them have."""
  found: dict[Method, dict[int, dict[str, Any]]] = collections.defaultdict(dict)
  for job, result in store.results.items():
    method = (job.method, job.budget)
    if job.task == task and job.epochs == epochs and rates.get(plan.tuned_as(method)) == job.rate:
      found[method][job.seed] = result
  rows = []
  for method in methods:
    results = [found[method][seed] for seed in sorted(found[method])]
    if results:
      accuracies = [100 * result['test'][0] for result in results]
      right = np.stack([answers(result, TASKS[task].tests) for result in results])
      rows.append(Row(method, results[0]['params'], accuracies, right))
  return rows


def compared(ours: Row, theirs: Row) -> Difference:
  """The difference over the seeds that both have."""
  seeds = min(len(ours.right), len(theirs.right))
  return difference(ours.right[:seeds], theirs.right[:seeds])


def line_of(ours: Row, fixed: Sequence[Row], beside: Sequence[Row]) -> dict[str, Any]:
  """What a table says of a task, JSON types.

  The best of the fixed methods is that with the largest mean test accuracy, of those with as many
  seeds as ours, or with most: a bar that is biased against us, chosen by what it is compared by.

  Args:
    ours: what is held against the best of the fixed methods.
    fixed: those of at most our size.
    beside: what ours is held against, too.
  """
  seeds = min(len(ours.accuracies), max(len(row.accuracies) for row in fixed))
  whole = (row for row in fixed if len(row.accuracies) >= seeds)
  best = max(whole, key=lambda row: statistics.mean(row.accuracies[:seeds]))
  found = compared(ours, best)
  return {
    'ours': round(ours.mean, 2),
    'best_fixed': [best.method[0], best.params, round(best.mean, 2)],
    'difference': _rounded(found),
    'verdict': found.verdict,
    'seeds': min(len(ours.accuracies), len(best.accuracies)),
    'beside': {
      label(row.method): [round(row.mean, 2), _rounded(compared(ours, row))] for row in beside
    },
  }


def budget_table(store: Store, names: Sequence[str], rates: Rates, budget: int) -> dict[str, Any]:
  """What a budget's table says, task by task, JSON types."""
  fixed = [method for method in plan.fixed_up_to(budget) if method in rates]
  table = {}
  for task in names:
    ours, others, drawn, beside = (
      rows_of(store, task, rates, methods)
      for methods in (
        [(plan.OURS, budget), (plan.BEFORE, budget)],
        fixed,
        plan.randoms(budget),
        plan.beside(budget, task),
      )
    )
    if not ours or len(others) < len(fixed):  # not all of the bar was run
      continue
    table[task] = line = line_of(ours[0], others, beside)
    if len(drawn) > 1:
      seeds = min(len(row.accuracies) for row in drawn)
      line['random'] = round(statistics.mean(row.mean for row in drawn), 2)
      if seeds > 1:
        line['headroom'] = round(headroom([row.accuracies[:seeds] for row in drawn]), 2)
  return table


def label(method: Method) -> str:
  """A method's name in a table of several tasks, each of which has another neighbour."""
  name, _ = method
  next_task = name.removeprefix('pass(of ').removesuffix(')') in TASKS
  return 'pass(of another task)' if next_task else name


def _rounded(found: Difference) -> list[float]:
  return [round(number, 2) for number in found]


def print_all(protocol: Protocol, versions: Sequence[str] | None, budgets: Sequence[int]) -> None:
  """Prints every table of which there are results."""
  parts = ('tuning', 'development', 'final', 'confirming')
  stores, rates = {part: protocol.store(part, versions) for part in parts}, protocol.read_rates()
  print_others(stores)
  print_rates(stores['tuning'], rates, protocol)
  found: dict[str, Any] = {
    'development': {b: print_tournament(stores['development'], rates, b) for b in budgets},
  }
  for part in ('final', 'confirming'):
    found[part] = {b: print_bar(part, stores[part], rates, b) for b in budgets}
  for part in ('final', 'confirming'):
    print_breakdowns(part, stores[part])
  print_result('structures', found)


def print_others(stores: Mapping[str, Store]) -> None:
  """Names the versions whose lines are in no table."""
  for part, store in stores.items():
    for version, lines in store.others.items():
      print(
        f'{part}: {lines:,} lines of version {version} are left out; the tables are of '
        f'{", ".join(store.versions)}, and --version {version} makes them of the others.'
      )
  if any(UNKNOWN in store.versions and store.results for store in stores.values()):
    print('Lines of version unknown were made by several versions; some name a commit.')


def print_rates(store: Store, rates: Rates, protocol: Protocol) -> None:
  """Mean accuracy of every method at every rate that was tried."""
  lines = []
  for method, chosen in rates.items():
    cells = [
      f'{rate:g}: {100 * mean:.1f}{"*" * (rate == chosen)}'
      for rate, mean in protocol.tried(method, store).items()
    ]
    lines.append((method[0], method[1] or None, ', '.join(cells)))
  print_table({'rates': '', 'budget': '', 'mean test accuracy on the tasks of tuning': ''}, lines)


def print_tournament(store: Store, rates: Rates, budget: int) -> dict[str, Any]:
  """Mean accuracies on the development tasks."""
  names, found, lines = plan.tasks('development'), {}, []
  of_methods = rated(plan.tournament(budget), rates)
  for method in of_methods:
    means = [[row.mean for row in rows_of(store, name, of_methods, [method])] for name in names]
    if known := list(itertools.chain(*means)):
      cells = [mean[0] if mean else None for mean in means]
      lines.append((method[0], *cells, f'{statistics.mean(known):.2f}'))
      found[method[0]] = [round(mean, 2) for mean in known]
  if lines:
    print_table(dict.fromkeys((f'development, {budget:,}', *names, 'mean'), '.1f'), lines)
  return found


def print_bar(part: str, store: Store, rates: Rates, budget: int) -> dict[str, Any]:
  """Ours against the fixed methods of a budget, and the mean of all of them on every task.

  In brackets the number of seeds.
  """
  names, fixed = plan.tasks_of(part, budget), plan.fixed_up_to(budget)
  found = budget_table(store, names, rates, budget)
  print_lines(part, budget, found)
  complete = []
  ours = [(name, budget) for name in (plan.OURS, 'pass', KNOWN, plan.BEFORE)]
  for method in [*ours, *(method for method in fixed if method in rates)]:
    rows = [row for name in names for row in rows_of(store, name, rates, [method])]
    if names and len(rows) == len(names):
      cells = [f'{row.mean:.1f} ({len(row.accuracies)})' for row in rows]
      complete.append((method[0], rows[0].params, *cells))
  if complete:
    titles = (f'every method, {budget:,}', 'params', *names)
    print_table(dict.fromkeys(titles, ','), complete)
  without = [name for name, size in fixed if (name, size) not in rates]
  if found and without:
    print(f'Without rates, and so not compared at {budget:,}: {", ".join(without)}.')
  return found


def print_lines(part: str, budget: int, table: Mapping[str, Mapping[str, Any]]) -> None:
  """Ours against the best fixed method of at most its size, and less all others, task by task."""
  if not table:
    return
  titles = ('gradient', 'best fixed', 'difference', '', 'random', 'headroom')
  lines = []
  for name, line in table.items():
    fixed, params, accuracy = line['best_fixed']
    best, found = f'{fixed} ({params:,}) {accuracy:.1f}', _interval(line['difference'])
    others = line['verdict'], line.get('random'), line.get('headroom')
    lines.append((name, line['ours'], best, found, *others))
  print_table(dict.fromkeys((f'{part}, {budget:,}', *titles), '.1f'), lines)
  lines = []
  for method in dict.fromkeys(name for line in table.values() for name in line['beside']):
    found = [line['beside'].get(method, (None, None))[1] for line in table.values()]
    mean = statistics.mean(each[0] for each in found if each)
    lines.append((method, *map(_interval, found), mean))
  if lines:
    print_table(dict.fromkeys((f'ours less these, {budget:,}', *table, 'mean'), '+.1f'), lines)


def print_breakdowns(part: str, store: Store) -> None:
  """How many trainings of all rates and budgets broke down, and of which methods."""
  by_task: dict[str, list[Job]] = collections.defaultdict(list)
  for job in store.results:
    by_task[job.task].append(job)
  counts: collections.Counter[str] = collections.Counter()
  for jobs in by_task.values():
    broken = broken_down([store.results[job]['test'][0] for job in jobs])
    counts.update(job.method for job in itertools.compress(jobs, broken))
  if store.results:
    by_method = ', '.join(f'{name} {count}' for name, count in counts.most_common())
    print(
      f'{part}: {counts.total()} of {len(store.results):,} trainings end below half of their '
      f"task's median accuracy{by_method and f': {by_method}'}."
    )


def _interval(difference: Sequence[float] | None) -> str | None:
  """'+1.2 [-0.3, +2.7]' of a mean difference with its ends; nothing of none."""
  return '{:+.1f} [{:+.1f}, {:+.1f}]'.format(*difference) if difference else None
