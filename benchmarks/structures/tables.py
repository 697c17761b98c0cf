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
from benchmarks.structures import gate, plan
from benchmarks.structures.jobs import UNKNOWN, Job, Store
from benchmarks.structures.plan import Method
from benchmarks.structures.statistics import Difference, answers, broken_down, difference, headroom
from benchmarks.structures.tasks import TASKS

Rates = Mapping[Method, float]


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


def best_of(rows: Sequence[Row], seeds: int) -> Row:
  """The row with the largest mean test accuracy, of those with so many seeds, or with most.

  A bar that is biased against us: it is chosen by what it is compared by.
  """
  seeds = min(seeds, max(len(row.accuracies) for row in rows))
  whole = (row for row in rows if len(row.accuracies) >= seeds)
  return max(whole, key=lambda row: statistics.mean(row.accuracies[:seeds]))


def line_of(ours: Row, fixed: Sequence[Row], beside: Sequence[Row]) -> dict[str, Any]:
  """What a table says of a task, JSON types.

  Args:
    ours: what is held against the best of the fixed methods.
    fixed: those of at most our size.
    beside: what ours is held against, too.
  """
  best = best_of(fixed, len(ours.accuracies))
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
    ours = rows_of(store, task, rates, [(plan.OURS, budget)])
    others = rows_of(store, task, rates, fixed)
    drawn = rows_of(store, task, rates, plan.randoms(budget))
    if not ours or not others:
      continue
    line = line_of(ours[0], others, rows_of(store, task, rates, plan.beside(budget, task)))
    if len(drawn) > 1:
      seeds = min(len(row.accuracies) for row in drawn)
      line['random'] = round(statistics.mean(row.mean for row in drawn), 2)
      if seeds > 1:
        accuracies = [row.accuracies[:seeds] for row in drawn]
        line['headroom'] = round(headroom(accuracies), 2)
    table[task] = line
  return table


def label(method: Method) -> str:
  """A method's name in a table of several tasks, each of which has another neighbour."""
  name, _ = method
  next_task = name.removeprefix('gradient(of ').removesuffix(')') in TASKS
  return 'gradient(of another task)' if next_task else name


def _rounded(found: Difference) -> list[float]:
  return [round(number, 2) for number in found]


def print_all(stores: Mapping[str, Store], rates: Rates, budgets: Sequence[int]) -> None:
  """Prints every table of which there are results."""
  print_others(stores)
  print_rates(stores['tuning'], rates, plan.Trials())
  development = {}
  for budget in budgets:
    development[budget] = print_tournament(stores['development'], rates, budget)
  gates = {name: gate.correlations(stores['gate'], name) for name in plan.tasks('development')}
  for name, correlations in gates.items():
    if correlations:
      print(f'gate on {name}: {dict(correlations)}')
  confirming = plan.confirming()
  sets = {'final': plan.final_tasks, 'confirming': lambda _: confirming}
  found = {
    part: {b: print_bar(part, stores[part], names_of(b), rates, b) for b in budgets}
    for part, names_of in sets.items()
  }
  for part in sets:
    print_breakdowns(part, stores[part])
  print_result('structures', {'development': development, 'gate': gates, **found})


def print_others(stores: Mapping[str, Store]) -> None:
  """Names the versions whose lines are in no table."""
  for part, store in stores.items():
    for version, lines in store.others.items():
      print(
        f'{part}: {lines:,} lines of version {version} are left out; the tables are of version '
        f'{store.version}, and --version {version} makes them of the others.'
      )
  if any(store.version == UNKNOWN and store.results for store in stores.values()):
    print('Lines of version unknown were made by several versions; some name a commit.')


def print_bar(
  part: str, store: Store, names: Sequence[str], rates: Rates, budget: int
) -> dict[str, Any]:
  """Ours against the fixed methods of a budget, and all of them."""
  found = budget_table(store, names, rates, budget)
  print_final(f'{part}, {budget:,}', found)
  print_beside(f'ours less these, {budget:,}', found)
  print_methods(store, names, rates, budget)
  without = [name for name, size in plan.fixed_up_to(budget) if (name, size) not in rates]
  if found and without:
    print(f'Without rates, and so not compared at {budget:,}: {", ".join(without)}.')
  return found


def print_rates(store: Store, rates: Rates, trials: plan.Trials) -> None:
  """Mean accuracy of every method at every rate that was tried."""
  lines = []
  for method, chosen in rates.items():
    tried = trials.tried(method, store)
    cells = []
    for rate in tried:
      jobs = trials.jobs(method, rate)
      mark = '*' if rate == chosen else ''
      cells.append(f'{rate:g}: {100 * plan.mean_accuracy(jobs, store):.1f}{mark}')
    lines.append((method[0], str(method[1] or ''), ', '.join(cells)))
  print_table(('rates', 'budget', 'mean test accuracy on the tasks of tuning'), lines)


def print_tournament(store: Store, rates: Rates, budget: int) -> dict[str, Any]:
  """Mean accuracies on the development tasks."""
  methods = [each for each in plan.tournament(budget) if plan.tuned_as(each) in rates]
  with_own = {method: rates[plan.tuned_as(method)] for method in methods}
  names = plan.tasks('development')
  found: dict[str, Any] = {}
  lines = []
  for method in methods:
    rows = {name: rows_of(store, name, with_own, [method]) for name in names}
    means = [row.mean for of_task in rows.values() for row in of_task]
    if means:
      cells = [f'{of_task[0].mean:.1f}' if of_task else '' for of_task in rows.values()]
      lines.append((method[0], *cells, f'{statistics.mean(means):.2f}'))
      found[method[0]] = [round(mean, 2) for mean in means]
  if lines:
    print_table((f'development, {budget:,}', *names, 'mean'), lines)
  return found


def print_final(title: str, table: Mapping[str, Mapping[str, Any]]) -> None:
  """Ours against the best fixed method of at most its size, task by task."""
  lines = []
  for name, line in table.items():
    fixed, params, accuracy = line['best_fixed']
    lines.append(
      (
        name,
        f'{line["ours"]:.1f}',
        f'{fixed} ({params:,}) {accuracy:.1f}',
        _interval(line['difference']),
        line['verdict'],
        f'{line.get("random", float("nan")):.1f}',
        f'{line.get("headroom", float("nan")):.1f}',
      )
    )
  if lines:
    titles = ('gradient', 'best fixed', 'difference', '', 'random', 'headroom')
    print_table((title, *titles), lines)


def print_beside(title: str, table: Mapping[str, Mapping[str, Any]]) -> None:
  """Ours less controls and what is no simple method of its size, task by task."""
  lines = []
  for method in dict.fromkeys(name for line in table.values() for name in line['beside']):
    _, differences = zip(
      *(line['beside'].get(method, (None, None)) for line in table.values()), strict=True
    )
    measured = [found for found in differences if found]
    mean = statistics.mean(mean for mean, _, _ in measured)
    lines.append((method, *map(_interval, differences), f'{mean:+.1f}'))
  if lines:
    print_table((title, *table, 'mean'), lines)


def print_methods(store: Store, names: Sequence[str], rates: Rates, budget: int) -> None:
  """Mean accuracy of every fixed method on every task; in brackets the number of seeds."""
  methods = [method for method in plan.fixed_up_to(budget) if method in rates]
  lines = []
  for method in [(plan.OURS, budget), ('gradient', budget), *methods]:
    rows = [row for name in names for row in rows_of(store, name, rates, [method])]
    cells = [f'{row.mean:.1f} ({len(row.accuracies)})' for row in rows]
    lines.append((method[0], f'{rows[0].params:,}' if rows else '', *cells))
  complete = [line for line in lines if len(line) == len(names) + 2]
  if complete and names:
    print_table((f'every method, {budget:,}', 'params', *names), complete)


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


def _interval(difference: Sequence[float] | None) -> str:
  """'+1.2 [-0.3, +2.7]' of a mean difference with its ends; nothing of none."""
  return '{:+.1f} [{:+.1f}, {:+.1f}]'.format(*difference) if difference else ''
