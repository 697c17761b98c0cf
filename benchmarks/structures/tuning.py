"""Learning rates: each method of each size takes the best of a list, on the development tasks.

The list grows at either end until no choice stands there. What is compared is the mean test
accuracy over `TUNED_ON` with one seed that no table uses; development tasks are there for that.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence

from benchmarks.structures.jobs import Job, Store

TUNING_SEED = 1000
TUNED_ON = ('mnist', 'silhouettes', 'bars')
FIRST_RATES = (3.2e-2, 6.4e-2)
FACTOR = 2.0
SMALLEST, LARGEST = 2.5e-4, 0.6


def trials(
  method: str, budget: int, rate: float, epochs: int, tasks: Sequence[str] = TUNED_ON
) -> list[Job]:
  """The jobs that say how good a rate is."""
  return [Job(task, method, budget, rate, TUNING_SEED, epochs) for task in tasks]


def mean_accuracy(jobs: Iterable[Job], store: Store) -> float:
  """Mean test accuracy of jobs that are done."""
  return statistics.mean(store.results[job]['test'][0] for job in jobs)


def rates_tried(method: str, budget: int, store: Store, epochs: int) -> list[float]:
  """The rates of which all trials are done, ascending."""
  rates = {job.rate for job in store.results if job[1:3] == (method, budget)}
  return sorted(
    rate
    for rate in rates
    if all(job in store.results for job in trials(method, budget, rate, epochs))
  )


def best_rate(method: str, budget: int, store: Store, epochs: int) -> float | None:
  """The best rate so far; None where none was tried."""
  tried = rates_tried(method, budget, store, epochs)

  def accuracy(rate: float) -> float:
    return mean_accuracy(trials(method, budget, rate, epochs), store)

  return max(tried, key=accuracy) if tried else None


def next_rates(method: str, budget: int, store: Store, epochs: int) -> list[float]:
  """The rates to try next: the first list, then one beyond the end at which the best stands."""
  tried = rates_tried(method, budget, store, epochs)
  missing = [rate for rate in FIRST_RATES if rate not in tried]
  if missing:
    return missing
  best = best_rate(method, budget, store, epochs)
  if best == tried[-1] and best < LARGEST:
    return [_rounded(best * FACTOR)]
  if best == tried[0] and best > SMALLEST:
    return [_rounded(best / FACTOR)]
  return []


def tune(
  methods: Sequence[tuple[str, int]],
  store: Store,
  epochs: int,
  run: Callable[[list[Job]], None],
) -> dict[tuple[str, int], float]:
  """The best rate of every method, given as (name, budget).

  Args:
    methods: names with their budgets, 0 for those whose name says all.
    store: results so far.
    epochs: of every training.
    run: does jobs.
  """
  while True:
    jobs = [
      job
      for method, budget in methods
      for rate in next_rates(method, budget, store, epochs)
      for job in trials(method, budget, rate, epochs)
    ]
    if not jobs:
      break
    run(jobs)
  return {method: best_rate(*method, store, epochs) for method in methods}


def _rounded(rate: float) -> float:
  return float(f'{rate:.3g}')
