"""Whether it will matter which structure is chosen, read off the values before anything is trained.

On tasks where any structure of the size does as well as the best, nobody should pay for a choice.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from glora_jax.method.space import Spec
from glora_jax.search.allocation import Values
from glora_jax.search.choice import choose, unit_costs, value_of

Word = Literal['matters', 'may matter', 'hardly matters']

_RANDOM_STRUCTURES = 16
_MATTERS, _MAY_MATTER = 2.0, 1.25  # of the advantage
_RELIABLE = 0.5


class Forecast(NamedTuple):
  """What the values say of the choice.

  Attributes:
    advantage: value of the structure that half of the folds choose, over that of a random
      structure of the same budget, floor and cap, each as the other half of the folds values it.
    reliability: share of the units' differences in value per parameter that is not noise of the
      folds, from 0 to 1 (an intraclass correlation).
    word: 'matters', 'may matter' or 'hardly matters'. Held against five tasks it was 'matters' on
      all, where the chosen structure gained -1.3 to 6.7 points over random ones, and neither number
      foretold which; `python -m benchmarks.structures forecast`.
  """

  advantage: float
  reliability: float
  word: Word


def forecast(
  spec: Spec,
  values: Values,
  budget: int,
  rng: np.random.Generator,
  *,
  rho: float = 2.0,
  floor: bool = True,
) -> Forecast:
  """Whether a chosen structure will beat a random one of its size.

  Args:
    spec: the layers, with their alleles on offer.
    values: with the axis of the folds; see `allocation.Values`.
    budget: most trained parameters.
    rng: source of the random structures.
    rho: see `choose`.
    floor: see `choose`.
  """
  halves = [Values(*(part[half::2].mean(0) for part in values)) for half in (0, 1)]
  chosen, drawn = 0.0, 0.0
  for chooser, judge in (halves, halves[::-1]):
    chosen += value_of(spec, judge, choose(spec, chooser, budget, rho=rho, floor=floor))
  for _ in range(_RANDOM_STRUCTURES):
    guessed = random_values(rng, spec, values.B_lora.shape[-1])
    genome = choose(spec, guessed, budget, rho=rho, floor=floor)
    drawn += value_of(spec, values.mean(), genome)
  advantage = (chosen / 2) / (drawn / _RANDOM_STRUCTURES) if drawn > 0 else 1.0
  reliable = reliability(spec, values)
  return Forecast(advantage, reliable, _word(advantage, reliable))


def _word(advantage: float, reliable: float) -> Word:
  if advantage >= _MATTERS and reliable >= _RELIABLE:
    return 'matters'
  return 'may matter' if advantage >= _MAY_MATTER else 'hardly matters'


def random_values(rng: np.random.Generator, spec: Spec, number: int) -> Values:
  """Values that know nothing: every unit's value per parameter is drawn uniformly.

  Those of a LoRA's rank-one parts fall, as of singular vectors.

  Args:
    rng: NumPy's generator.
    spec: the layers.
    number: number of rank-one parts.

  Returns:
    Values without an axis of folds.
  """
  costs = unit_costs(spec, number)
  draws = Values(*(rng.random(cost.shape) for cost in costs))
  falling = {
    name: -np.sort(-draw) for name, draw in draws._asdict().items() if name.endswith('_lora')
  }
  draws = draws._replace(**falling)
  return Values(*(cost * draw for cost, draw in zip(costs, draws, strict=True)))


def reliability(spec: Spec, values: Values) -> float:
  """Share of the units' differences in value per parameter that is not noise of the folds."""
  costs = unit_costs(spec, values.B_lora.shape[-1])
  densities = [value / cost for value, cost in zip(values, costs, strict=True)]
  by_fold = np.concatenate([density.reshape(len(density), -1) for density in densities], axis=1)
  by_fold = by_fold[:, np.any(by_fold != 0, axis=0)]  # units that do not exist are worth nothing
  if by_fold.shape[1] < 2:
    return 0.0
  between = by_fold.mean(0).var(ddof=1)
  noise = by_fold.var(axis=0, ddof=1).mean() / len(by_fold)
  return float(np.clip(1 - noise / between, 0, 1)) if between > 0 else 0.0
