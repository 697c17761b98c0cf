"""The tables: ours against the best fixed method, random structures and others, task by task."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machinery.measuring import print_table
from benchmarks.structures import plan
from benchmarks.structures.jobs import Method, Results
from benchmarks.structures.methods import OURS, PASS, TRANSFER
from benchmarks.structures.statistics import Difference, difference, unpack
from benchmarks.structures.tasks import TEST


class Row(NamedTuple):
  """A method on a task.

  Attributes:
    method: name and budget.
    params: trained parameters.
    right: right answers, bool [seed, image].
  """

  method: Method
  params: int
  right: np.ndarray

  @property
  def mean(self) -> float:
    """Mean test accuracy in points."""
    return 100 * float(self.right.mean())


class Line(NamedTuple):
  """What a table says of a task.

  Attributes:
    ours: the row that is compared.
    best: the best fixed method.
    difference: ours less that.
    beside: ours less other methods, by name.
    random: mean accuracy of random structures.
  """

  ours: Row
  best: Row
  difference: Difference
  beside: dict[str, Difference]
  random: float | None = None


def rows_of(
  results: Results, task: str, methods: Iterable[Method], number: int = TEST
) -> list[Row]:
  """The methods that have results on a task of so many test images, with all their seeds."""
  rows = []
  for method in methods:
    found = {job.seed: of for job, of in results.items() if job[:3] == (task, *method)}
    if found:
      right = np.stack(
        [unpack(found[seed]['answers'], found[seed].get('tests', number)) for seed in sorted(found)]
      )
      rows.append(Row(method, next(iter(found.values()))['params'], right))
  return rows


def compared(ours: Row, theirs: Row) -> Difference:
  """The difference over the seeds that both have."""
  seeds = min(len(ours.right), len(theirs.right))
  return difference(ours.right[:seeds], theirs.right[:seeds])


def line_of(ours: Row, fixed: Sequence[Row], beside: Sequence[Row]) -> Line:
  """Compares ours with the best of the fixed methods of at most its size, and with others.

  The best has the largest mean test accuracy, among those with as many seeds as ours, or with
  most: a bar that is biased against us, since it is chosen by what it is compared by.
  """
  seeds = min(len(ours.right), max(len(row.right) for row in fixed))
  whole = (row for row in fixed if len(row.right) >= seeds)
  best = max(whole, key=lambda row: row.right[:seeds].mean())
  others = {row.method[0]: compared(ours, row) for row in beside}
  return Line(ours, best, compared(ours, best), others)


def budget_table(results: Results, tasks: Sequence[str], budget: int) -> dict[str, Line]:
  """The lines of the tasks on which ours and all fixed methods were trained."""
  fixed = plan.fixed_methods(budget)
  names = (PASS, TRANSFER, plan.BEFORE, 'search')
  others = [*((name, budget) for name in names), *plan.twice_as_large(budget)]
  table = {}
  for task in tasks:
    ours = rows_of(results, task, [(OURS, budget), (plan.BEFORE, budget)])
    bar = rows_of(results, task, fixed)
    if ours and len(bar) == len(fixed):
      line = line_of(ours[0], bar, rows_of(results, task, others))
      drawn = [row.mean for row in rows_of(results, task, plan.randoms(budget))]
      table[task] = line._replace(random=statistics.mean(drawn) if drawn else None)
  return table


def print_methods(title: str, results: Results, tasks: Sequence[str], budget: int) -> None:
  """Prints the mean of every method on every task, and in brackets the number of seeds."""
  ours = [(name, budget) for name in (OURS, PASS, TRANSFER, plan.BEFORE)]
  lines = []
  for method in [*ours, *plan.fixed_methods(budget)]:
    rows = [row for task in tasks for row in rows_of(results, task, [method])]
    if len(rows) == len(tasks):
      cells = [f'{row.mean:.1f} ({len(row.right)})' for row in rows]
      lines.append((method[0], rows[0].params, *cells))
  print_table(dict.fromkeys((title, 'params', *tasks), ','), lines)


def print_lines(title: str, table: Mapping[str, Line]) -> None:
  """Prints ours against the best fixed method, and less all others, task by task."""
  lines = []
  for task, line in table.items():
    (name, _), params, _ = line.best
    best = f'{name} ({params:,}) {line.best.mean:.1f}'
    found = line.difference
    lines.append((task, line.ours.mean, best, str(found), found.verdict, line.random))
  mean = statistics.mean(line.difference.mean for line in table.values())
  lines.append(('mean', None, None, f'{mean:+.1f}', None, None))
  titles = (title, 'ours', 'best fixed', 'difference', '', 'random')
  print_table(dict.fromkeys(titles, '.1f'), lines)
  lines = []
  for name in dict.fromkeys(name for line in table.values() for name in line.beside):
    found = [line.beside.get(name) for line in table.values()]
    mean = statistics.mean(each.mean for each in found if each)
    lines.append((name, *(str(each or '') for each in found), mean))
  if lines:
    print_table(dict.fromkeys(('ours less', *table, 'mean'), '+.1f'), lines)


def as_json(table: Mapping[str, Line]) -> dict[str, Any]:
  """A table in JSON types."""
  return {
    task: {
      'ours': line.ours.mean,
      'best_fixed': [line.best.method[0], line.best.params, line.best.mean],
      'difference': line.difference,
      'verdict': line.difference.verdict,
      'beside': line.beside,
      'random': line.random,
    }
    for task, line in table.items()
  }
