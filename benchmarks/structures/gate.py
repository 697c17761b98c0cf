"""Do summed values say which structure of a size will be good?

Random structures of one size are trained on the development tasks; the rank correlation of the
value that each measure gives them with their test loss is the gate. Its ceiling is the correlation
of the losses of one seed with those of another.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.structures import plan
from benchmarks.structures.jobs import Job, Store
from benchmarks.structures.statistics import rank_correlation

BUDGET = 9_216
STRUCTURES = 60
SEEDS = 2


def jobs(names: Sequence[str], rate: float) -> list[Job]:
  """Every structure on every task and seed, with its values noted."""
  methods = [((f'random({number})+valued', BUDGET), rate) for number in range(STRUCTURES)]
  return plan.jobs_of(methods, names, range(SEEDS))


def correlations(store: Store, task: str) -> dict[str, Any]:
  """Rank correlations by measure, with the ceiling; JSON types."""
  results = [
    (job, result)
    for job, result in sorted(store.results.items())
    if job.task == task and 'values' in result
  ]
  if not results:
    return {}
  structures = sorted({job.method for job, _ in results})
  by_job = {(job.method, job.seed): result for job, result in results}
  complete = [name for name in structures if all((name, seed) in by_job for seed in range(SEEDS))]
  losses = np.array([[by_job[name, seed]['test'][1] for seed in range(SEEDS)] for name in complete])
  found: dict[str, Any] = {'structures': len(complete)}
  if len(complete) < 10:
    return found
  found['ceiling'] = round(float(stats.spearmanr(*losses.T).statistic), 2)
  for measure in results[0][1]['values']:
    values = [
      np.mean([by_job[name, seed]['values'][measure] for seed in range(SEEDS)]) for name in complete
    ]
    correlation = rank_correlation(values, losses.mean(1))
    found[measure] = [round(number, 2) for number in correlation]
  return found
