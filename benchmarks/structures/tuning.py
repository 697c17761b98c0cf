"""Learning rates: each method of each size takes the best of a list, on the development tasks.

The list grows at either end until no choice stands there. What is compared is the mean test
accuracy over `TUNED_ON` with one seed that no table uses; development tasks are there for that.
"""

import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.structures.backbones import EMBEDDED
from benchmarks.structures.jobs import Job, Store
from glora_jax.files import read_json, write_json

TUNING_SEED = 1000
TUNED_ON = ('mnist', 'silhouettes', 'bars')
FACTOR = 2.0
SMALLEST, LARGEST = 2.5e-4, 0.6


class Trials(NamedTuple):
  """How rates are tried.

  Attributes:
    epochs: of every training.
    first_rates: that are tried of every method.
    tasks: on which.
    backbone: whose structures are trained.
  """

  epochs: int
  first_rates: Sequence[float] = (3.2e-2, 6.4e-2)
  tasks: Sequence[str] = TUNED_ON
  backbone: str = EMBEDDED

  def jobs(self, method: str, budget: int, rate: float) -> list[Job]:
    """The jobs that say how good a rate is."""
    how = (TUNING_SEED, self.epochs, self.backbone)
    return [Job(task, method, budget, rate, *how) for task in self.tasks]

  def tried(self, method: str, budget: int, store: Store) -> list[float]:
    """The rates of which all trials are done, ascending."""
    rates = {job.rate for job in store.results if job[1:3] == (method, budget)}
    return sorted(
      rate for rate in rates if all(job in store.results for job in self.jobs(method, budget, rate))
    )

  def best(self, method: str, budget: int, store: Store) -> float | None:
    """The best rate so far; None where none was tried."""

    def accuracy(rate: float) -> float:
      return mean_accuracy(self.jobs(method, budget, rate), store)

    return max(self.tried(method, budget, store), key=accuracy, default=None)

  def next_rates(self, method: str, budget: int, store: Store) -> list[float]:
    """The rates to try next: the first, then one beyond the end at which the best stands."""
    tried = self.tried(method, budget, store)
    missing = [rate for rate in self.first_rates if rate not in tried]
    best = self.best(method, budget, store)
    if missing or best is None:
      return missing
    if best == tried[-1] and best < LARGEST:
      return [_rounded(best * FACTOR)]
    if best == tried[0] and best > SMALLEST:
      return [_rounded(best / FACTOR)]
    return []


def mean_accuracy(jobs: Iterable[Job], store: Store) -> float:
  """Mean test accuracy of jobs that are done."""
  return statistics.mean(store.results[job]['test'][0] for job in jobs)


def tune(
  methods: Sequence[tuple[str, int]],
  store: Store,
  trials: Trials,
  run: Callable[[list[Job]], None],
) -> dict[tuple[str, int], float | None]:
  """The best rate of every method, given as (name, budget).

  Args:
    methods: names with their budgets, 0 for those whose name says all.
    store: results so far.
    trials: how rates are tried.
    run: does jobs.
  """
  while True:
    jobs = [
      job
      for method in methods
      for rate in trials.next_rates(*method, store)
      for job in trials.jobs(*method, rate)
    ]
    if not jobs:
      break
    run(jobs)
  return {method: trials.best(*method, store) for method in methods}


def write_rates(path: str, rates: Mapping[tuple[str, int], float | None]) -> None:
  """Keeps the chosen rates in a file."""
  write_json(path, {'rates': [[*method, rate] for method, rate in rates.items()]})


def read_rates(path: str, program: str) -> dict[tuple[str, int], float]:
  """The chosen rates.

  Args:
    path: of the file.
    program: module whose part `tune` writes it.

  Raises:
    SystemExit: there are none yet.
  """
  if not os.path.exists(path):
    raise SystemExit(f'No rates are chosen yet; python -m {program} tune does that.')
  return {(name, budget): rate for name, budget, rate in read_json(path)['rates']}


def _rounded(rate: float) -> float:
  return float(f'{rate:.3g}')
