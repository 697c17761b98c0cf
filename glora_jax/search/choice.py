"""The choice of a structure by scores: greedy by score per parameter, up to a budget.

Every layer has three *decisions*: the form of A, the form of B, and its shift, which is the vector
of C or that of E. The forms that a decision may choose are its `Option`s, the cheapest first. The
choice starts with the cheapest option of every decision, and then buys, again and again, the option
with the most additional score per additional parameter. D is not decided: it has the cheapest form
that the space allows.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glora_jax.method.adapter import num_params
from glora_jax.method.genomes import canonicalize, count_params, smallest_genome
from glora_jax.method.space import FLAT_FORMS, TENSORS, WEIGHT_TENSORS, Layer, Spec, Tensor
from glora_jax.search.unit_scores import UNIT_FORMS, UnitScores

_A, _B, _C, _D, _E = range(len(TENSORS))  # columns of a genome
_VECTOR = {tensor: forms.index('vector') for tensor, forms in FLAT_FORMS.items()}
# Codes by column, as in `Option.codes`.
_VECTOR_OF_A = {_A: _VECTOR['A']}
_VECTOR_OF_C = {_C: _VECTOR['C'], _E: 0}
_VECTOR_OF_E = {_C: 0, _E: _VECTOR['E']}
_FLOOR = (_VECTOR_OF_A, _VECTOR_OF_E)  # forms that every layer gets first, if the budget is ample
_FLOOR_FACTOR = 1.5  # a budget is ample if it is at least this multiple of the floor's cost


class Option(NamedTuple):
  """The choices of one decision of one layer.

  Attributes:
    row: the layer's row of the genome.
    codes: the codes that it sets there, by column; two columns for a shift, else one.
    cost: number of their trained parameters.
    score: their score; 0 for the cheapest.
  """

  row: int
  codes: Mapping[int, int]
  cost: int
  score: float

  @property
  def decision(self) -> int:
    """A number of the layer's decision: equal for options that exclude each other."""
    return len(TENSORS) * self.row + min(self.codes)


class Curve(NamedTuple):
  """The score that each number of parameters can have, if the best units are bought first.

  Attributes:
    params: trained parameters, int64 [purchase + 1], ascending.
    scores: total score of all purchases so far, float64 [purchase + 1].
    knee: index of the proposed budget, at which the curve is highest above its chord.
  """

  params: np.ndarray
  scores: np.ndarray
  knee: int


def choose(
  spec: Spec,
  scores: UnitScores,
  budget: int,
  *,
  rho: float = 2.0,
  floor: bool = True,
) -> np.ndarray:
  """The structure with the highest score within a budget, bought by score per parameter.

  Ranks are nested, a tensor has one form in a layer, and a layer has one of C and E, C only if it
  has fewer inputs than outputs. The LoRA of A may replace its vector. Units with score zero are
  never bought. An option that no longer fits is passed over, so that units with positive scores
  fill the budget as far as the search space allows.

  Args:
    spec: the layers, with their search spaces.
    scores: see `UnitScores`.
    budget: maximum number of trained parameters.
    rho: largest rank of a layer, as a multiple of the rank that the budget buys in every layer;
      rounded up.
    floor: whether all layers get the vectors of A and E first, if the budget is at least 1.5 times
      their cost.

  Returns:
    Canonical genome, int8 [layers, 5].

  Raises:
    ValueError: the spaces allow none of the units, or the budget fits none.

  Example: one gradient gives the scores for all budgets.
    >>> import flax.linen as nn, glora_jax, jax, jax.numpy as jnp
    >>> x, labels = jax.random.normal(jax.random.key(0), (32, 4)), jnp.arange(32) % 3
    >>> adapted = glora_jax.adapt(nn.Dense(3), x, space=glora_jax.SearchSpace((1, 2)))
    >>> params = nn.Dense(3).init(jax.random.key(1), x)['params']
    >>> variables = adapted.init(jax.random.key(2), params)
    >>> loss, key = glora_jax.classification(), jax.random.key(3)
    >>> batches = [(x[:16], labels[:16]), (x[16:], labels[16:])]
    >>> scores = glora_jax.allocate(
    ...   adapted, variables, loss, batches, budget=7, key=key, progress=False
    ... ).scores
    >>> [glora_jax.count_params(adapted.spec, choose(adapted.spec, scores, n)) for n in (3, 7, 10)]
    [3, 7, 10]
  """
  require_something(spec, budget)
  options = list_options(spec, scores, rank_limit(spec, budget, rho))
  chosen, genome = cheapest(options), smallest_genome(spec)
  forced = count_params(spec, genome) - _cost(chosen)  # forms of D that cannot be left out
  floors = chosen | {option.decision: option for option in options if option.codes in _FLOOR}
  if floor and budget - forced >= _FLOOR_FACTOR * _cost(floors):
    chosen = floors
  remaining = budget - forced - _cost(chosen)
  for option in (*chosen.values(), *purchases(options, chosen, remaining)):
    genome[option.row, [*option.codes]] = [*option.codes.values()]
  return canonicalize(spec, genome)


def trace_curve(spec: Spec, scores: UnitScores) -> Curve:
  """The curve of score by budget, without floor and without a limit of ranks."""
  options = list_options(spec, scores)
  steps = [*purchases(options, cheapest(options))]
  least = count_params(spec, smallest_genome(spec))
  params = least + np.cumsum([0, *(step.cost for step in steps)])
  totals = np.cumsum([0.0, *(step.score for step in steps)])
  return Curve(params, totals, find_knee(params, totals))


def find_knee(params: np.ndarray, scores: np.ndarray) -> int:
  """Index of the point of a rising curve that is highest above the chord of its ends.

  It is never the first point, which has no units, even if no point is above the chord.
  """
  if len(params) < 3 or params[-1] == params[0] or scores[-1] == scores[0]:
    return len(params) - 1
  along = (params - params[0]) / (params[-1] - params[0])
  above = (scores - scores[0]) / (scores[-1] - scores[0])
  return 1 + int(np.argmax((above - along)[1:]))


def rank_limit(spec: Spec, budget: int, rho: float) -> int:
  """The largest rank of a layer: `rho` times the one that the budget buys in all, rounded up."""
  sides = (layer.in_features + layer.out_features for layer in spec if not layer.ids)
  return math.ceil(rho * budget / sum(sides))


def purchases(
  options: Sequence[Option], chosen: Mapping[int, Option], remaining: float = math.inf
) -> Iterator[Option]:
  """The options in the order of buying, each with the most score per parameter of those that fit.

  Args:
    options: all options.
    chosen: the option that each decision has at first.
    remaining: number of parameters that all purchases together may add.

  Yields:
    The option that is bought. Its cost and score are differences from the option that it replaces;
    both are positive.
  """
  gains = [option.score - chosen[option.decision].score for option in options]
  costs = [option.cost - chosen[option.decision].cost for option in options]
  by_decision: dict[int, list[int]] = {}
  offers: list[tuple[float, int, int]] = []  # a heap: (-score per parameter, option, cost)

  def offer(index: int) -> None:
    if gains[index] > 0 and costs[index] > 0:
      heapq.heappush(offers, (-gains[index] / costs[index], index, costs[index]))

  for index, option in enumerate(options):
    by_decision.setdefault(option.decision, []).append(index)
    offer(index)
  while offers:
    _, best, cost = heapq.heappop(offers)
    if cost != costs[best] or cost > remaining:  # an offer from before a purchase, or too expensive
      continue
    gain = gains[best]
    yield options[best]._replace(cost=cost, score=gain)
    remaining -= cost
    # From now on the decision's other options replace this one.
    for index in by_decision[options[best].decision]:
      gains[index] -= gain
      costs[index] -= cost
      offer(index)


def list_options(spec: Spec, scores: UnitScores, most_rank: float = math.inf) -> list[Option]:
  """The options of all decisions of all layers, the cheapest of each decision before its others.

  Args:
    spec: the layers, with their search spaces.
    scores: scores of their units.
    most_rank: largest rank of a LoRA; the smallest rank of a space is always an option.
  """
  options = []
  for row, (layer, base) in enumerate(zip(spec, smallest_genome(spec).tolist(), strict=True)):
    layer_scores = UnitScores(*(field[row] for field in scores))
    for codes, score in _layer_options(layer, base, layer_scores, most_rank):
      cost = sum(layer.costs(TENSORS[column])[code] for column, code in codes.items())
      options.append(Option(row, codes, cost, float(score)))
  return options


def _layer_options(
  layer: Layer, base: Sequence[int], scores: UnitScores, most_rank: float
) -> Iterator[tuple[dict[int, int], Any]]:
  """(codes, score) of the options of a layer, whose cheapest codes are `base` [5]."""
  for tensor, rank_scores in zip(WEIGHT_TENSORS, (scores.A_lora, scores.B_lora), strict=True):
    column, choices, flat = TENSORS.index(tensor), layer.choices(tensor), len(FLAT_FORMS[tensor])
    yield {column: base[column]}, 0.0
    if tensor == 'A' and _VECTOR['A'] in choices:
      yield _VECTOR_OF_A, scores.A_vector
    loras = [code for code in choices if code >= flat]
    for code in loras:
      rank = layer.space.ranks[code - flat]
      if rank <= most_rank or code == loras[0]:
        yield {column: code}, rank_scores[:rank].sum()
  yield {_C: base[_C], _E: base[_E]}, 0.0
  if _VECTOR['E'] in layer.choices('E') and not base[_C]:
    yield _VECTOR_OF_E, scores.E_vector
  is_cheaper = layer.in_features < layer.out_features
  if _VECTOR['C'] in layer.choices('C') and not base[_E] and is_cheaper:
    yield _VECTOR_OF_C, scores.C_vector


def cheapest(options: Sequence[Option]) -> dict[int, Option]:
  """The first option of every decision."""
  return {option.decision: option for option in reversed(options)}


def _cost(chosen: Mapping[int, Option]) -> int:
  return sum(option.cost for option in chosen.values())


def require_something(spec: Spec, budget: float | None) -> None:
  """Checks that the search spaces allow a unit, and that one fits a budget, whatever its score.

  Raises:
    ValueError: there is none.
  """
  options = list_options(spec, unit_costs(spec, 1))
  base = cheapest(options)
  added = [option.cost - base[option.decision].cost for option in options]
  added = [cost for cost in added if cost > 0]
  if not added:
    raise ValueError(
      'The search space has none of the forms that can be allocated; add A as vector or LoRA, B as '
      'LoRA, C or E as vector (SearchSpace.distinct has all of these).'
    )
  least = count_params(spec, smallest_genome(spec))
  if budget is not None and least + min(added) > budget:
    forced = f' in addition to the {least} that cannot be left out' if least else ''
    raise ValueError(
      f'budget={budget} is too small for any unit: the cheapest has {min(added)} parameters'
      f'{forced}; raise the budget, or add cheaper forms to the search space.'
    )


def unit_costs(spec: Spec, ranks: int) -> UnitScores:
  """Trained parameters of every unit, in the fields of `UnitScores`: [layer] and [layer, rank]."""

  def costs(tensor: Tensor, form: str) -> np.ndarray:
    sizes = ((layer.in_features, layer.out_features) for layer in spec)
    each = np.array([num_params(tensor, *size, form) for size in sizes], np.int64)
    return np.tile(each[:, None], ranks) if form == 'lora' else each

  return UnitScores(*itertools.starmap(costs, UNIT_FORMS))


def chosen_units(spec: Spec, genome: np.ndarray, ranks: int) -> UnitScores:
  """Whether a structure has each unit, bool in the fields of `UnitScores`.

  If a layer has one output, a constant is its vector, and counts as that.

  Args:
    spec: the layers.
    genome: int [layers, 5].
    ranks: number of ranks in the fields of LoRAs.
  """
  canonical = canonicalize(spec, genome)
  fields = []
  for tensor, form in UNIT_FORMS:
    column = TENSORS.index(tensor)
    codes = canonical[:, column]
    if form == 'vector':
      vectors = spec._canonical_table[:, column, _VECTOR[tensor]]
      fields.append((codes == vectors) & (vectors > 0))
    else:
      without = [0] * len(FLAT_FORMS[tensor])
      has = [[*without, *layer.space.ranks][code] for layer, code in zip(spec, codes, strict=True)]
      fields.append(np.arange(ranks) < np.array(has)[:, None])
  return UnitScores(*fields)
