"""The tables: ours against the best fixed method, random structures and controls, task by task."""

import collections
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.structures import plan
from benchmarks.structures.jobs import Job, Store
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
  return {
    'ours': round(ours.mean, 2),
    'best_fixed': [best.method[0], best.params, round(best.mean, 2)],
    'difference': _rounded(compared(ours, best)),
    'verdict': compared(ours, best).verdict,
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


def breakdowns(store: Store) -> list[Job]:
  """The trainings that broke down, each by the median of all of its task."""
  by_task: dict[str, list[Job]] = collections.defaultdict(list)
  for job in store.results:
    by_task[job.task].append(job)
  broken: list[Job] = []
  for jobs in by_task.values():
    accuracies = [store.results[job]['test'][0] for job in jobs]
    broken += itertools.compress(jobs, broken_down(accuracies))
  return broken


def label(method: Method) -> str:
  """A method's name in a table of several tasks, each of which has another neighbour."""
  name, _ = method
  next_task = name.removeprefix('gradient(of ').removesuffix(')') in TASKS
  return 'gradient(of another task)' if next_task else name


def _rounded(found: Difference) -> list[float]:
  return [round(number, 2) for number in found]
