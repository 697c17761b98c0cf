"""Do summed values say which structure of a size will be good?

Random structures of one size are trained on the development tasks; the rank correlation of the
value that each measure gives them with their test loss is the gate. Its ceiling is the correlation
of the losses of one seed with those of another.

Some structures break down at the learning rate that all of them have, those of much value more
often. So the gate is reported once more without these, and once with all of them trained on bounded
gradients; the target is held against the first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.structures.jobs import Job, Store
from benchmarks.structures.plan import MAIN
from benchmarks.structures.statistics import broken_down, rank_correlation

BUDGET = 9_216
STRUCTURES = 60
SEEDS = 2
FEWEST = 10  # structures that are correlated at all
BOUNDED = 'bounded'  # the option of training

Results = Mapping[tuple[str, int], Mapping[str, Any]]  # by structure and seed


def jobs(names: Sequence[str], rate: float) -> list[Job]:
  """Every structure on every task and seed, with its values noted, then with bounded gradients."""
  return [
    job
    for option in ('valued', BOUNDED)
    for job in MAIN.jobs(
      {(f'random({number})+{option}', BUDGET): rate for number in range(STRUCTURES)},
      names,
      range(SEEDS),
    )
  ]


def correlations(store: Store, task: str) -> dict[str, Any]:
  """Rank correlations by measure, of all structures and of those that trained; JSON types."""
  by_option: dict[str, Any] = {'valued': {}, BOUNDED: {}}
  for job in sorted(store.results):
    if job.task == task:
      structure, _, option = job.method.partition('+')
      by_option[option][structure, job.seed] = store.results[job]
  valued = by_option['valued']
  bounded = {
    place: {**result, 'values': valued[place]['values']}
    for place, result in by_option[BOUNDED].items()
    if place in valued
  }
  found = _with_those_that_trained(valued) if valued else {}
  return {**found, BOUNDED: _with_those_that_trained(bounded)} if bounded else found


def _with_those_that_trained(results: Results) -> dict[str, Any]:
  """The correlations of all structures and, apart, of those of which no seed broke down.

  And the share of pairs in which a structure that broke down is worth more, by measure.
  """
  names = dict.fromkeys(name for name, _ in results)
  seeds = [[results.get((name, seed)) for seed in range(SEEDS)] for name in names]
  runs = [of_seeds for of_seeds in seeds if all(of_seeds)]
  tests = np.array([[run['test'] for run in of_seeds] for of_seeds in runs]).reshape(-1, SEEDS, 2)
  measures = runs[0][0]['values'] if runs else ()
  values = {
    measure: np.mean([[run['values'][measure] for run in of_seeds] for of_seeds in runs], axis=1)
    for measure in measures
  }
  broke = broken_down(tests[..., 0].ravel()).reshape(-1, SEEDS).any(1)

  def correlated(chosen: np.ndarray) -> dict[str, Any]:
    losses, number = tests[chosen, :, 1], int(chosen.sum())
    if number < FEWEST:
      return {'structures': number}
    return {
      'structures': number,
      'ceiling': _round(stats.spearmanr(*losses.T).statistic),
      **{
        measure: _round(rank_correlation(worth[chosen], losses.mean(1)))
        for measure, worth in values.items()
      },
    }

  both = broke.any() and not broke.all()
  return {
    **correlated(np.ones_like(broke)),
    'trained': correlated(~broke),
    'broken_worth_more': {
      measure: _round(np.greater.outer(worth[broke], worth[~broke]).mean())
      for measure, worth in values.items()
      if both
    },
  }


def _round(numbers: Any) -> Any:
  return np.round(np.asarray(numbers, float), 2).tolist()
