"""The best structure for given values: greedy by value per parameter, up to a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glora_jax.method.adapter import num_params
from glora_jax.method.genomes import canonicalize, count_params, smallest_genome
from glora_jax.method.space import FLAT_FORMS, TENSORS, WEIGHT_TENSORS, Layer, Spec, Tensor
from glora_jax.search.allocation import UNIT_FORMS, Values

_A, _B, _C, _D, _E = range(len(TENSORS))
_VECTOR = {tensor: forms.index('vector') for tensor, forms in FLAT_FORMS.items()}
_VECTOR_OF_A = {_A: _VECTOR['A']}
_VECTOR_OF_C = {_C: _VECTOR['C'], _E: 0}
_VECTOR_OF_E = {_C: 0, _E: _VECTOR['E']}
_FLOOR = (_VECTOR_OF_A, _VECTOR_OF_E)  # what every row gets first, where the budget is ample
_FLOOR_FACTOR = 1.5


class Option(NamedTuple):
  """What one row may take for a gene: for A, for B, or for its shift, which is C or E.

  D is no gene: it stays as cheap as the space allows, and what it costs then is not in a gene's.

  Attributes:
    row: row of the genome.
    codes: what it sets there, by column.
    cost: what that costs, in trained parameters.
    value: what it is worth; 0 for the cheapest on offer.
  """

  row: int
  codes: Mapping[int, int]
  cost: int
  value: float

  @property
  def gene(self) -> int:
    """The same number for options that exclude each other."""
    return len(TENSORS) * self.row + min(self.codes)


class Curve(NamedTuple):
  """What can be had for how many parameters, when the best is bought first.

  Attributes:
    params: trained parameters, int64 [purchase + 1], ascending.
    values: value of all that is bought by then, float64 [purchase + 1].
    knee: index of the proposed budget: where the curve stands highest above its chord.
  """

  params: np.ndarray
  values: np.ndarray
  knee: int


def choose(
  spec: Spec,
  values: Values,
  budget: int,
  *,
  rho: float = 2.0,
  floor: bool = True,
) -> np.ndarray:
  """The structure within a budget that pays best, bought greedily by value per parameter.

  Ranks are nested, a tensor has one form in a row, and of C and E a row takes one, C only where it
  has fewer inputs than outputs. The LoRA of A may take the place of its vector. What is worth
  nothing is never bought, and what no longer fits is passed over: where everything is worth
  something, the budget is filled as far as the forms on offer allow.

  Args:
    spec: the layers, with their forms on offer.
    values: see `allocation.Values`.
    budget: most trained parameters.
    rho: a row's rank is at most so many times the rank that every row could have, rounded up.
    floor: whether all rows get the vectors of A and E first, where the budget is 1.5 times what
      these cost or more.

  Returns:
    Canonical genome, int8 [rows, 5].

  Raises:
    ValueError: nothing is on offer, or the budget fits no unit.
  """
  require_something(spec, budget)
  options = all_options(spec, values, most_rank(spec, budget, rho))
  genome, chosen = smallest_genome(spec), cheapest(options)
  # A form of D that cannot be left out is paid first.
  left = budget - count_params(spec, genome) + _cost(chosen)
  floors = chosen | {option.gene: option for option in options if option.codes in _FLOOR}
  if floor and left >= _FLOOR_FACTOR * _cost(floors):
    chosen = floors
  for option in (*chosen.values(), *purchases(options, chosen, left - _cost(chosen))):
    genome[option.row, [*option.codes]] = [*option.codes.values()]
  return canonicalize(spec, genome)


def bought(spec: Spec, genome: np.ndarray, number: int) -> Values:
  """Which units a structure has, in the form of `Values`.

  Where a layer has one output, a constant is its vector, and counts as that.

  Args:
    spec: the layers.
    genome: int [rows, 5].
    number: number of rank-one parts.
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
      ranks = [[*without, *row.space.ranks][code] for row, code in zip(spec, codes, strict=True)]
      fields.append(np.arange(number) < np.array(ranks)[:, None])
  return Values(*fields)


def trace_curve(spec: Spec, values: Values) -> Curve:
  """The curve of value by budget, without floor and without a cap on ranks."""
  options = all_options(spec, values)
  steps = [*purchases(options, cheapest(options))]
  least = count_params(spec, smallest_genome(spec))
  params = least + np.cumsum([0, *(step.cost for step in steps)])
  worth = np.cumsum([0.0, *(step.value for step in steps)])
  return Curve(params, worth, knee(params, worth))


def knee(params: np.ndarray, values: np.ndarray) -> int:
  """The point of a rising curve that is highest above the chord from its first to its last.

  It is never the first, where nothing is bought, also where no point is above the chord.
  """
  if len(params) < 3 or params[-1] == params[0] or values[-1] == values[0]:
    return len(params) - 1
  along = (params - params[0]) / (params[-1] - params[0])
  above = (values - values[0]) / (values[-1] - values[0])
  return 1 + int(np.argmax((above - along)[1:]))


def most_rank(spec: Spec, budget: int, rho: float) -> int:
  """The cap on ranks: `rho` times the rank that every row could have, rounded up."""
  return math.ceil(rho * budget / sum(layer.in_features + layer.out_features for layer in spec))


def purchases(
  options: Sequence[Option], chosen: Mapping[int, Option], left: float = math.inf
) -> Iterator[Option]:
  """The purchases one after the other, each the best by value per parameter of those that fit.

  Args:
    options: what can be bought.
    chosen: the option that each gene has at first.
    left: most trained parameters that these may cost more.

  Yields:
    What is bought; cost and value, both above 0, are what it has more than what it replaces.
  """
  genes = np.array([option.gene for option in options])
  gains = np.array([option.value - chosen[option.gene].value for option in options])
  extras = np.array([option.cost - chosen[option.gene].cost for option in options])
  while True:
    fits = (gains > 0) & (extras > 0) & (extras <= left)
    if not fits.any():
      return
    best = int(np.where(fits, gains / np.where(fits, extras, 1), -np.inf).argmax())
    cost, value = extras[best], gains[best]
    yield options[best]._replace(cost=cost, value=value)
    left -= cost
    gains[genes == genes[best]] -= value
    extras[genes == genes[best]] -= cost


def all_options(spec: Spec, values: Values, cap: float = math.inf) -> list[Option]:
  """What every row may take, the cheapest on offer of each gene before its others.

  Args:
    spec: the layers, with their forms on offer.
    values: what that is worth.
    cap: most rank of a LoRA; the smallest rank on offer may always be had.
  """
  options = []
  for row, (layer, base) in enumerate(zip(spec, smallest_genome(spec).tolist(), strict=True)):
    own = Values(*(part[row] for part in values))
    for codes, value in _choices(layer, base, own, cap):
      cost = sum(layer.costs(TENSORS[column])[code] for column, code in codes.items())
      options.append(Option(row, codes, cost, float(value)))
  return options


def _choices(
  layer: Layer, base: Sequence[int], values: Values, cap: float
) -> Iterator[tuple[dict[int, int], Any]]:
  """What a layer may take (see `Option`), with what it is worth."""
  pairs = zip(WEIGHT_TENSORS, (values.A_lora, values.B_lora), strict=True)
  for column, (tensor, parts) in enumerate(pairs):
    yield {column: base[column]}, 0.0
    offered, flat = layer.choices(tensor), len(FLAT_FORMS[tensor])
    if tensor == 'A' and _VECTOR['A'] in offered:
      yield _VECTOR_OF_A, values.A_vector
    loras = [code for code in offered if code >= flat]
    for code in loras:
      rank = layer.space.ranks[code - flat]
      if rank <= cap or code == loras[0]:
        yield {column: code}, parts[:rank].sum()
  yield {_C: base[_C], _E: base[_E]}, 0.0
  if _VECTOR['E'] in layer.choices('E') and not base[_C]:
    yield _VECTOR_OF_E, values.E_vector
  is_cheaper = layer.in_features < layer.out_features
  if _VECTOR['C'] in layer.choices('C') and not base[_E] and is_cheaper:
    yield _VECTOR_OF_C, values.C_vector


def cheapest(options: Sequence[Option]) -> dict[int, Option]:
  """The option of every gene that stands first."""
  return {option.gene: option for option in reversed(options)}


def _cost(chosen: Mapping[int, Option]) -> int:
  return sum(option.cost for option in chosen.values())


def require_something(spec: Spec, budget: float | None) -> None:
  """Checks that there is a unit on offer, and one that fits a budget, whatever it is worth.

  Raises:
    ValueError: there is none.
  """
  options = all_options(spec, unit_costs(spec, 1))
  base = cheapest(options)
  extras = [extra for option in options if (extra := option.cost - base[option.gene].cost) > 0]
  if not extras:
    raise ValueError(
      'The search space offers none of the forms that can be allocated; offer A as vector or '
      'LoRA, B as LoRA, C or E as vector (SearchSpace.distinct offers all of these).'
    )
  least = count_params(spec, smallest_genome(spec))
  if budget is not None and least + min(extras) > budget:
    forced = f' in addition to the {least} that cannot be left out' if least else ''
    raise ValueError(
      f'budget={budget} is too small for any unit: the cheapest on offer has {min(extras)} '
      f'parameters{forced}; raise the budget, or offer cheaper forms.'
    )


def unit_costs(spec: Spec, number: int) -> Values:
  """Trained parameters of every unit, in the form of `Values` [row] and [row, rank]."""

  def costs(tensor: Tensor, form: str) -> np.ndarray:
    sizes = ((layer.in_features, layer.out_features) for layer in spec)
    one = np.array([num_params(tensor, *own, form) for own in sizes], np.int64)
    return np.tile(one[:, None], number) if form == 'lora' else one

  return Values(*itertools.starmap(costs, UNIT_FORMS))
