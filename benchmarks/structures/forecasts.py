"""Does the forecast know on which tasks the choice of a structure matters?

Before anything is trained `allocate` says how much more its structure is worth than random ones of
its size. What was trained says how much better it is, and how far random structures differ.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.structures import laboratory as lab
from benchmarks.structures import methods, plan
from benchmarks.structures.jobs import Store
from benchmarks.structures.plan import Method
from benchmarks.structures.tables import compared, rows_of
from glora_jax.search.forecast import forecast

SEED = 0


def against_random(
  store: Store, names: Sequence[str], rates: Mapping[Method, float], budget: int
) -> dict[str, dict[str, Any]]:
  """By task: the forecast, and what the structure gained over random ones; JSON types."""
  found = {}
  for name in names:
    ours = rows_of(store, name, rates, [(plan.OURS, budget)])
    drawn = rows_of(store, name, rates, plan.randoms(budget))
    if ours and drawn:
      expected = _forecast(name, budget)
      gains = [compared(ours[0], row).mean for row in drawn]
      found[name] = {
        'advantage': round(expected.advantage, 2),
        'reliability': round(expected.reliability, 2),
        'word': expected.word,
        'gain': round(statistics.mean(gains), 2),
      }
  return found


def _forecast(name: str, budget: int) -> Any:
  """What `allocate` says on a task, of a structure of this size."""
  setting = lab.setting(name, SEED)
  values = methods.allocation(setting).values
  spec = methods.distinct(setting.adapted.spec)
  return forecast(spec, values, budget, np.random.default_rng(SEED))


def agreement(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """Rank correlation over tasks of what was forecast with what was gained."""
  gains = [line['gain'] for line in found.values()]
  return {
    name: round(float(stats.spearmanr([line[name] for line in found.values()], gains).statistic), 2)
    for name in ('advantage', 'reliability')
  }
