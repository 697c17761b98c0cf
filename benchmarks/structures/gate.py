"""Do summed values say which structure of a size will be good?

Random structures of one size are trained on the development tasks; the rank correlation of the
value that each measure gives them with their test loss is the gate. Its ceiling is the correlation
of the losses of one seed with those of another.

Some structures break down at the learning rate that all of them have, those of much value more
often. So the gate is reported once more without these, and once with all of them trained on bounded
gradients; the target is held against the first.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.structures import plan
from benchmarks.structures.jobs import Job, Store
from benchmarks.structures.statistics import broken_down, rank_correlation

BUDGET = 9_216
STRUCTURES = 60
SEEDS = 2
FEWEST = 10  # structures that are correlated at all
BOUNDED = 'bounded'  # the option of training

Runs = Sequence[Sequence[Mapping[str, Any]]]  # of each structure one of every seed
Results = Mapping[tuple[str, int], Mapping[str, Any]]  # by structure and seed


def jobs(names: Sequence[str], rate: float) -> list[Job]:
  """Every structure on every task and seed, with its values noted, then with bounded gradients."""
  return [
    job
    for option in ('valued', BOUNDED)
    for job in plan.jobs_of(
      [((f'random({number})+{option}', BUDGET), rate) for number in range(STRUCTURES)],
      names,
      range(SEEDS),
    )
  ]


def correlations(store: Store, task: str) -> dict[str, Any]:
  """Rank correlations by measure, of all structures and of those that trained; JSON types."""
  by_option: dict[str, Any] = {'valued': {}, BOUNDED: {}}
  for job, result in sorted(store.results.items()):
    if job.task == task:
      structure, _, option = job.method.partition('+')
      by_option[option][structure, job.seed] = result
  valued = by_option['valued']
  if not valued:
    return {}
  bounded = {
    place: {**result, 'values': valued[place]['values']}
    for place, result in by_option[BOUNDED].items()
    if place in valued
  }
  found = _with_those_that_trained(valued)
  if bounded:
    found[BOUNDED] = {**_with_those_that_trained(bounded), 'changes': _changes(valued, bounded)}
  return found


def _with_those_that_trained(results: Results) -> dict[str, Any]:
  """The correlations of all structures and, apart, of those of which no seed broke down."""
  structures = dict.fromkeys(structure for structure, _ in results)
  runs = [[results.get((name, seed)) for seed in range(SEEDS)] for name in structures]
  complete = [[run for run in of_seeds if run is not None] for of_seeds in runs if all(of_seeds)]
  accuracies = [run['test'][0] for of_seeds in complete for run in of_seeds]
  any_broke_down = broken_down(accuracies).reshape(-1, SEEDS).any(1)
  trained = list(itertools.compress(complete, ~any_broke_down))
  broken = list(itertools.compress(complete, any_broke_down))
  return {
    **_correlated(complete),
    'trained': _correlated(trained),
    'broken_worth_more': _worth_more(broken, trained),
  }


def _changes(valued: Results, bounded: Results) -> dict[str, Any]:
  """What the bound does to the accuracy of trainings, in points.

  Returns:
    'recovered_to': the accuracies with the bound of those that had broken down, whatever became of
    them; 'newly_broken': how many break down with it alone; 'others_gain': what all others gain;
    'means': of all, without and with it.
  """
  accuracies = [(valued[place]['test'][0], bounded[place]['test'][0]) for place in bounded]
  before, after = 100 * np.array(accuracies).T
  had_broken, breaks = broken_down(before), broken_down(after)
  others = (after - before)[~had_broken & ~breaks]
  return {
    'recovered_to': [_round(accuracy) for accuracy in np.sort(after[had_broken])],
    'newly_broken': int((breaks & ~had_broken).sum()),
    'others_gain': {'mean': _round(others.mean()), 'median': _round(np.median(others))},
    'means': [_round(before.mean()), _round(after.mean())],
  }


def _correlated(runs: Runs) -> dict[str, Any]:
  """Rank correlations of structures, each with a run of every seed."""
  if len(runs) < FEWEST:
    return {'structures': len(runs)}
  losses = np.array([[run['test'][1] for run in of_seeds] for of_seeds in runs])
  ceiling = _round(stats.spearmanr(*losses.T).statistic)
  found: dict[str, Any] = {'structures': len(runs), 'ceiling': ceiling}
  for measure in runs[0][0]['values']:
    correlation = rank_correlation(_values(runs, measure), losses.mean(1))
    found[measure] = [_round(number) for number in correlation]
  return found


def _worth_more(broken: Runs, trained: Runs) -> dict[str, float]:
  """By measure, the share of pairs in which a structure that broke down is worth more."""
  if not broken or not trained:
    return {}
  return {
    measure: _round(np.greater.outer(_values(broken, measure), _values(trained, measure)).mean())
    for measure in broken[0][0]['values']
  }


def _values(runs: Runs, measure: str) -> list[float]:
  """What each structure is worth, in the mean of its seeds."""
  return [float(np.mean([run['values'][measure] for run in of_seeds])) for of_seeds in runs]


def _round(number: float) -> float:
  return round(float(number), 2)
