"""Do summed values say which structure of a size will be good?

Random structures of one size are trained on the development tasks; the rank correlation of the
value that each measure gives them with their test loss is the gate. Its ceiling is the correlation
of the losses of one seed with those of another.

Some structures break down at the learning rate that all of them have, those of much value more
often. So the gate is reported once more without these; the target is held against all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.structures import plan
from benchmarks.structures.jobs import Job, Store
from benchmarks.structures.statistics import rank_correlation

BUDGET = 9_216
STRUCTURES = 60
SEEDS = 2
FEWEST = 10  # structures that are correlated at all
BROKEN = 0.5  # share of the median accuracy, below which a training has broken down

Runs = Sequence[Sequence[Mapping[str, Any]]]  # of each structure one of every seed


def jobs(names: Sequence[str], rate: float) -> list[Job]:
  """Every structure on every task and seed, with its values noted."""
  methods = [((f'random({number})+valued', BUDGET), rate) for number in range(STRUCTURES)]
  return plan.jobs_of(methods, names, range(SEEDS))


def correlations(store: Store, task: str) -> dict[str, Any]:
  """Rank correlations by measure, of all structures and of those that trained; JSON types."""
  results = [
    (job, result)
    for job, result in sorted(store.results.items())
    if job.task == task and 'values' in result
  ]
  if not results:
    return {}
  by_job = {(job.method, job.seed): result for job, result in results}
  structures = sorted({job.method for job, _ in results})
  runs = [[by_job.get((name, seed)) for seed in range(SEEDS)] for name in structures]
  complete = [of_seeds for of_seeds in runs if all(of_seeds)]
  accuracies = [run['test'][0] for of_seeds in complete for run in of_seeds]
  least = BROKEN * np.median(accuracies) if accuracies else 0.0
  trained = [of_seeds for of_seeds in complete if all(run['test'][0] >= least for run in of_seeds)]
  broken = [of_seeds for of_seeds in complete if of_seeds not in trained]
  return {
    **_correlated(complete),
    'trained': _correlated(trained),
    'broken_worth_more': _worth_more(broken, trained),
  }


def _correlated(runs: Runs) -> dict[str, Any]:
  """Rank correlations of structures, each with a run of every seed."""
  if len(runs) < FEWEST:
    return {'structures': len(runs)}
  losses = np.array([[run['test'][1] for run in of_seeds] for of_seeds in runs])
  ceiling = round(float(stats.spearmanr(*losses.T).statistic), 2)
  found: dict[str, Any] = {'structures': len(runs), 'ceiling': ceiling}
  for measure in runs[0][0]['values']:
    correlation = rank_correlation(_values(runs, measure), losses.mean(1))
    found[measure] = [round(number, 2) for number in correlation]
  return found


def _worth_more(broken: Runs, trained: Runs) -> dict[str, float]:
  """By measure, the share of pairs in which a structure that broke down is worth more."""
  if not broken or not trained:
    return {}
  return {
    measure: round(
      float(np.greater.outer(_values(broken, measure), _values(trained, measure)).mean()), 2
    )
    for measure in broken[0][0]['values']
  }


def _values(runs: Runs, measure: str) -> list[float]:
  """What each structure is worth, in the mean of its seeds."""
  return [float(np.mean([run['values'][measure] for run in of_seeds])) for of_seeds in runs]
