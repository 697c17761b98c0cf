"""What people read of the results: tables of text, and a last line of JSON."""

import collections
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machinery.output import print_result, print_table
from benchmarks.structures import gate, plan, tuning
from benchmarks.structures.jobs import Store
from benchmarks.structures.plan import Method
from benchmarks.structures.tables import breakdowns, budget_table, rows_of


def print_all(
  stores: Mapping[str, Store], rates: Mapping[Method, float], budgets: Sequence[int]
) -> None:
  """Prints every table of which there are results."""
  print_rates(stores['tuning'], rates, tuning.Trials(plan.EPOCHS))
  development = {}
  for budget in budgets:
    development[budget] = print_tournament(stores['development'], rates, budget)
  gates = {name: gate.correlations(stores['gate'], name) for name in plan.tasks('development')}
  print_gate(gates)
  confirming = plan.confirming()
  sets = {'final': plan.final_tasks, 'confirming': lambda _: confirming}
  found = {
    part: {b: print_bar(part, stores[part], names_of(b), rates, b) for b in budgets}
    for part, names_of in sets.items()
  }
  for part in sets:
    print_breakdowns(part, stores[part])
  print_result('structures', {'development': development, 'gate': gates, **found})


def print_bar(
  part: str, store: Store, names: Sequence[str], rates: Mapping[Method, float], budget: int
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


def print_rates(store: Store, rates: Mapping[Method, float], trials: tuning.Trials) -> None:
  """Mean accuracy of every method at every rate that was tried."""
  lines = []
  for method, chosen in rates.items():
    tried = trials.tried(*method, store)
    cells = []
    for rate in tried:
      jobs = trials.jobs(*method, rate)
      mark = '*' if rate == chosen else ''
      cells.append(f'{rate:g}: {100 * tuning.mean_accuracy(jobs, store):.1f}{mark}')
    lines.append((method[0], str(method[1] or ''), ', '.join(cells)))
  print_table(('rates', 'budget', 'mean test accuracy on the tasks of tuning'), lines)


def print_tournament(store: Store, rates: Mapping[Method, float], budget: int) -> dict[str, Any]:
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


def print_gate(gates: Mapping[str, Mapping[str, Any]]) -> None:
  """Rank correlations of values with test losses."""
  for name, found in gates.items():
    if found:
      print(f'gate on {name}: {dict(found)}')


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


def print_methods(
  store: Store, names: Sequence[str], rates: Mapping[Method, float], budget: int
) -> None:
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
  if store.results:
    counts = collections.Counter(job.method for job in breakdowns(store))
    by_method = ', '.join(f'{name} {count}' for name, count in counts.most_common())
    print(
      f'{part}: {counts.total()} of {len(store.results):,} trainings end below half of their '
      f"task's median accuracy{by_method and f': {by_method}'}."
    )


def _interval(difference: Sequence[float] | None) -> str:
  """'+1.2 [-0.3, +2.7]' of a mean difference with its ends; nothing of none."""
  return '{:+.1f} [{:+.1f}, {:+.1f}]'.format(*difference) if difference else ''
