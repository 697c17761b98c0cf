"""The structure that pays best by given values: greedy by value per parameter, up to a budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from glora_jax.method.genomes import canonicalize, count_params, smallest_genome
from glora_jax.method.space import FLAT_FORMS, TENSORS, Layer, Spec, Tensor
from glora_jax.search.allocation import UNIT_FORMS, Values

_A, _B, _C, _D, _E = range(len(TENSORS))
_VECTOR_OF_WEIGHT = _VECTOR_OF_BIAS = 2
_VECTOR_OF_PROMPT = 1
_FLOOR_FACTOR = 1.5


class Option(NamedTuple):
  """A choice among alleles of one row that exclude each other.

  Attributes:
    alleles: (column of the genome, code) of each gene that it sets.
    cost: what they cost, in trained parameters.
    unit: field of `Values` that says what they are worth; None for what is worth nothing.
    parts: number of rank-one parts of a LoRA; 0 for a vector.
    in_floor: whether it is what every row gets first, where the budget is ample.
  """

  alleles: tuple[tuple[int, int], ...]
  cost: int
  unit: str | None = None
  parts: int = 0
  in_floor: bool = False

  def value(self, values: Values, row: int) -> float:
    """What it is worth in a row."""
    if self.unit is None:
      return 0.0
    worth = getattr(values, self.unit)[row]
    return float(worth[: self.parts].sum() if self.parts else worth)


class Gene(NamedTuple):
  """What one row may take for A, for B, or for its shift, which is C or E.

  D is no gene: it stays as cheap as the space allows, and what it costs then is not in a gene's.

  Attributes:
    row: row of the genome.
    options: the cheapest on offer first, then every form that is considered.
  """

  row: int
  options: tuple[Option, ...]

  def floor(self) -> int:
    """Index of the option that is in the floor, or of the cheapest."""
    return next((index for index, option in enumerate(self.options) if option.in_floor), 0)


class Move(NamedTuple):
  """One purchase: a gene takes another option."""

  gene: int
  option: int


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
  something, the budget is filled as far as the alleles on offer allow.

  Args:
    spec: the layers, with their alleles on offer.
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
  genes = all_genes(spec, most_rank(spec, budget, rho))
  # A form of D that cannot be left out is paid first.
  smallest = smallest_genome(spec)
  cheapest = sum(gene.options[0].cost for gene in genes)
  left = budget - (count_params(spec, smallest) - cheapest)
  chosen = np.zeros(len(genes), int)
  floors = [gene.floor() for gene in genes]
  cost = sum(gene.options[index].cost for gene, index in zip(genes, floors, strict=True))
  if floor and left >= _FLOOR_FACTOR * cost:
    chosen[:] = floors
  for gene, option in moves(genes, values, chosen.tolist(), left):
    chosen[gene] = option
  genome = smallest.copy()
  for gene, index in zip(genes, chosen, strict=True):
    for column, code in gene.options[index].alleles:
      genome[gene.row, column] = code
  return canonicalize(spec, genome)


def bought(spec: Spec, genome: np.ndarray, number: int) -> Values:
  """Which units a structure has, in the form of `Values`.

  Where a layer has one output, a constant is its vector, and counts as that.

  Args:
    spec: the layers.
    genome: int [rows, 5].
    number: number of rank-one parts.
  """
  fields = []
  same = spec.canonical_table
  canonical = np.take_along_axis(same, genome[..., None].astype(int), axis=-1)[..., 0]
  for tensor, form in UNIT_FORMS:
    column = TENSORS.index(tensor)
    codes = canonical[:, column].astype(int)
    if form == 'vector':
      vectors = same[:, column, FLAT_FORMS[tensor].index('vector')]
      fields.append((codes == vectors) & (vectors > 0))
      continue
    flat = len(FLAT_FORMS[tensor])
    pairs = zip(spec, codes, strict=True)
    ranks = [layer.space.ranks[code - flat] if code >= flat else 0 for layer, code in pairs]
    fields.append(np.arange(number) < np.array(ranks)[:, None])
  return Values(*fields)


def trace_curve(spec: Spec, values: Values) -> Curve:
  """The curve of value by budget, without floor and without a cap on ranks."""
  genes = all_genes(spec)
  start = [0] * len(genes)
  chosen = np.array(start)
  params, worth = [count_params(spec, smallest_genome(spec))], [0.0]
  for gene, option in moves(genes, values, start, None):
    row, options = genes[gene]
    old, new = options[chosen[gene]], options[option]
    params.append(params[-1] + new.cost - old.cost)
    worth.append(worth[-1] + new.value(values, row) - old.value(values, row))
    chosen[gene] = option
  curve = np.array(params, np.int64), np.array(worth)
  return Curve(*curve, knee=knee(*curve))


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


def moves(
  genes: Sequence[Gene], values: Values, start: Sequence[int], budget: int | None
) -> Iterator[Move]:
  """The purchases one after the other, each the best by value per parameter of those that fit.

  Args:
    genes: what can be bought.
    values: what it is worth.
    start: index of the option that each gene has at first.
    budget: most trained parameters; None for no limit.

  Yields:
    The purchases, in order; each costs something and is worth something.
  """
  index = np.arange(len(genes))
  worth = _table(genes, lambda gene, option: option.value(values, gene.row), -np.inf)
  costs = _table(genes, lambda gene, option: option.cost, np.inf)
  gains = worth - worth[index, start][:, None]
  extras = costs - costs[index, start][:, None]
  left = math.inf if budget is None else budget - costs[index, start].sum()
  while True:
    fits = (gains > 0) & (extras > 0) & (extras <= left)
    if not fits.any():
      return
    ratios = np.where(fits, gains / np.where(fits, extras, 1), -np.inf)
    gene, option = np.unravel_index(ratios.argmax(), ratios.shape)
    left -= extras[gene, option]
    gains[gene] -= gains[gene, option]
    extras[gene] -= extras[gene, option]
    yield Move(int(gene), int(option))


def _table(
  genes: Sequence[Gene], number: Callable[[Gene, Option], float], missing: float
) -> np.ndarray:
  """A number of every option, float64 [gene, option]."""
  longest = max(len(gene.options) for gene in genes)
  table = np.full((len(genes), longest), missing)
  for index, gene in enumerate(genes):
    table[index, : len(gene.options)] = [number(gene, option) for option in gene.options]
  return table


@functools.lru_cache(maxsize=64)
def all_genes(spec: Spec, cap: int | None = None) -> tuple[Gene, ...]:
  """What every row may take.

  Args:
    spec: the layers, with their alleles on offer.
    cap: most rank of a LoRA; the smallest rank on offer may always be had. None for no cap.
  """
  cheapest = smallest_genome(spec)
  genes = []
  for row, layer in enumerate(spec):
    base = cheapest[row].tolist()
    genes.append(Gene(row, _weight_options(layer, 'A', base[_A], cap)))
    genes.append(Gene(row, _weight_options(layer, 'B', base[_B], cap)))
    genes.append(Gene(row, _shift_options(layer, base)))
  return tuple(genes)


def _weight_options(layer: Layer, tensor: Tensor, base: int, cap: int | None) -> tuple[Option, ...]:
  """The forms of A or B that are considered, the cheapest on offer first."""
  column, costs, offered = TENSORS.index(tensor), layer.costs(tensor), layer.offered(tensor)
  options = [Option(((column, base),), costs[base])]
  if tensor == 'A' and _VECTOR_OF_WEIGHT in offered:
    alleles = ((column, _VECTOR_OF_WEIGHT),)
    options.append(Option(alleles, costs[_VECTOR_OF_WEIGHT], 'A_vector', in_floor=True))
  loras = [code for code in offered if code >= len(FLAT_FORMS[tensor])]
  for code in loras:
    rank = layer.space.ranks[code - len(FLAT_FORMS[tensor])]
    if cap is None or rank <= cap or code == loras[0]:
      options.append(Option(((column, code),), costs[code], f'{tensor}_lora', rank))
  return tuple(options)


def _shift_options(layer: Layer, base: Sequence[int]) -> tuple[Option, ...]:
  """C or E as a vector, or neither, which stands first."""
  prompt_costs, bias_costs = layer.costs('C'), layer.costs('E')
  least = prompt_costs[base[_C]] + bias_costs[base[_E]]
  options = [Option(((_C, base[_C]), (_E, base[_E])), least)]
  if _VECTOR_OF_BIAS in layer.offered('E') and not base[_C]:
    alleles = ((_C, 0), (_E, _VECTOR_OF_BIAS))
    options.append(Option(alleles, bias_costs[_VECTOR_OF_BIAS], 'E_vector', in_floor=True))
  is_cheaper = layer.in_features < layer.out_features
  if _VECTOR_OF_PROMPT in layer.offered('C') and not base[_E] and is_cheaper:
    alleles = ((_C, _VECTOR_OF_PROMPT), (_E, 0))
    options.append(Option(alleles, prompt_costs[_VECTOR_OF_PROMPT], 'C_vector'))
  return tuple(options)


def require_something(spec: Spec, budget: float | None) -> None:
  """Checks that there is a unit on offer, and one that fits a budget, whatever it is worth.

  Raises:
    ValueError: there is none.
  """
  extras = [
    option.cost - gene.options[0].cost
    for gene in all_genes(spec)
    for option in gene.options[1:]
    if option.cost > gene.options[0].cost
  ]
  if not extras:
    raise ValueError(
      'The search space offers none of the forms that can be allocated; offer A as vector or '
      'LoRA, B as LoRA, C or E as vector (SearchSpace.distinct offers all of these).'
    )
  least = count_params(spec, smallest_genome(spec))
  if budget is not None and least + min(extras) > budget:
    forced = f' beside the {least} that cannot be left out' if least else ''
    raise ValueError(
      f'budget={budget} fits no unit: the cheapest on offer has {min(extras)} parameters{forced}; '
      'raise the budget, or offer cheaper alleles.'
    )


def unit_costs(spec: Spec, number: int) -> Values:
  """Trained parameters of every unit, in the form of `Values` [row] and [row, rank]."""
  fan_in = np.array([layer.in_features for layer in spec], np.int64)
  fan_out = np.array([layer.out_features for layer in spec], np.int64)
  parts = np.repeat((fan_in + fan_out)[:, None], number, axis=1)
  return Values(A_vector=fan_out, A_lora=parts, B_lora=parts, C_vector=fan_in, E_vector=fan_out)
