"""Genomes: what each costs, which are the same, how to draw them.

A *genome* is an int8 array [rows, 5]: for every adapted layer the allele of A, B, C, D and E (see
`glora_jax.method.equation` for the codes). Populations have leading axes. A `Spec` holds what the
rows are. Nothing in this file knows of models.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.limits import Domain, Limits, shown
from glora_jax.method import one_shift
from glora_jax.method.space import TENSORS, Spec

_NUMBER = Domain(int, limits=Limits(at_least=0))
_SHARE = Domain(float, limits=Limits(at_least=0, at_most=1))
_BLOCK = 8192  # genomes looked up at a time, which bounds memory
_NO_NUMBERS = 'OUSMm'  # kinds of dtypes
_ROUNDS = 8  # of rejection, after which genomes are repaired instead


def check_genome(spec: Spec, genome: Any) -> None:
  """Checks that genomes fit a spec.

  Args:
    spec: the layers.
    genome: [..., rows, 5]; may be traced, and then only shape and dtype are checked.

  Raises:
    ValueError: the shape or the dtype is wrong, or a code does not exist.
  """
  genome = _as_array(genome)
  shape, dtype = jnp.shape(genome), jax.dtypes.result_type(genome)
  rows = len(spec)
  if len(shape) < 2 or shape[-2:] != (rows, 5):
    raise ValueError(
      f'The genome has shape {shape}; this model has {rows} adapted layers, so it must be '
      f'[..., {rows}, 5].'
    )
  if not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError(
      f'The genome has dtype {dtype}; it must be an integer type, int8 by convention.'
    )
  if isinstance(genome, jax.core.Tracer):
    return
  codes = np.asarray(genome)
  # In the genome's own type a million genomes are compared in no time.
  limit = spec.num_codes.astype(np.int8).astype(codes.dtype)
  wrong = (codes < 0) | (codes >= limit)
  if wrong.any():
    index = tuple(np.argwhere(wrong)[0])
    row, column = index[-2:]
    layer, tensor = spec.layers[row], TENSORS[column]
    raise ValueError(
      f'The genome says {codes[index]} for {tensor} of layer {row} ({layer.name}); the codes there '
      f'are 0 to {spec.num_codes[row, column] - 1}: {", ".join(layer.space.names(tensor))}.'
    )


def _as_array(genome: Any) -> Any:
  """Codes as an array, where they are none yet.

  Raises:
    ValueError: they are no table of numbers.
  """
  if isinstance(genome, jax.Array):
    return genome
  try:
    codes = np.asarray(genome)
  except (ValueError, TypeError, OverflowError):  # lists of several lengths, for instance
    codes = np.array(None)
  if codes.dtype.kind in _NO_NUMBERS:
    raise ValueError(f'The genome {shown(genome)} is no table of codes; it must be [rows, 5].')
  return codes


def count_params(spec: Spec, genomes: Any) -> Any:
  """Trained parameters of subnets, heads not counted.

  Args:
    spec: the layers.
    genomes: int [..., rows, 5].

  Returns:
    int64 [...]; an int for one genome.

  Raises:
    ValueError: the genomes do not fit the spec.

  Example:
    >>> from glora_jax import Layer, Spec, count_params, preset
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> count_params(spec, preset(spec, 'lora'))  # 4 * (8 + 32)
    160
  """
  check_genome(spec, genomes)
  blocks = [block.sum(axis=(1, 2)) for block in _lookup(spec.cost_table, genomes)]
  counts = np.concatenate([np.zeros(0, np.int64), *blocks]).reshape(np.shape(genomes)[:-2])
  return counts if counts.ndim else int(counts)


def canonicalize(spec: Spec, genomes: Any) -> np.ndarray:
  """Genomes with every gene that cannot matter set to its cheapest equal.

  Args:
    spec: the layers.
    genomes: int [..., rows, 5].

  Returns:
    int8 [..., rows, 5].

  Raises:
    ValueError: the genomes do not fit the spec.

  Example:
    >>> import numpy as np
    >>> from glora_jax import Layer, Spec, canonicalize
    >>> spec = Spec((Layer('no_bias', 8, 32, bias=False),))
    >>> canonicalize(spec, np.array([[0, 3, 2, 2, 2]])).tolist()
    [[0, 3, 0, 0, 0]]
  """
  check_genome(spec, genomes)
  blocks = list(_lookup(spec.canonical_table, genomes))
  return np.concatenate([np.zeros((0, len(spec), 5), np.int8), *blocks]).reshape(np.shape(genomes))


def _lookup(table: np.ndarray, genomes: Any) -> Iterator[np.ndarray]:
  """Blocks of `table[row, tensor, genomes[..., row, tensor]]`, [block, rows, 5].

  Args:
    table: a value for every code, [rows, 5, codes].
    genomes: int [..., rows, 5].
  """
  rows, tensors, codes = table.shape
  flat = np.asarray(genomes).reshape(-1, rows, tensors)
  offsets = (np.arange(rows * tensors) * codes).reshape(rows, tensors)
  for start in range(0, len(flat), _BLOCK):
    yield table.take(flat[start : start + _BLOCK] + offsets)


def smallest_genome(spec: Spec) -> np.ndarray:
  """The cheapest subnet on offer, int8 [rows, 5]."""
  costs = np.take_along_axis(spec.cost_table, spec.offered_table.astype(np.int64), axis=-1)
  return _alleles(spec, costs.argmin(-1))


def largest_genome(spec: Spec) -> np.ndarray:
  """The subnet with most parameters on offer, the last allele of every gene, int8 [rows, 5].

  Of C and E, where a row may have one of them, it has the one with more parameters.
  """
  return _alleles(spec, one_shift.largest_places(spec))


def sample_genome(key: jax.Array, spec: Spec, largest: float = 0.0) -> jax.Array:
  """A random genome, each gene independent and uniform over the alleles on offer.

  Where a row may have C or E but not both, the two together are uniform over what the row may have.
  It works under `jit`.

  Args:
    key: random key.
    spec: the layers.
    largest: probability that a gene takes its last allele on offer, the one with most parameters,
      without a draw.

  Returns:
    int8 [rows, 5].

  Raises:
    ValueError: `largest` is no probability.

  Example:
    >>> import jax
    >>> from glora_jax import Layer, SearchSpace, Spec, sample_genome
    >>> space = SearchSpace(A='none', B='lora', C='none', D='none')
    >>> spec = Spec((Layer('fc1', 8, 32, space=space),))
    >>> genome = sample_genome(jax.random.key(0), spec)
    >>> genome.shape, genome[0, :4].tolist(), int(genome[0, 4]) in (0, 1, 2)
    ((1, 5), [0, 3, 0, 0], True)
  """
  _SHARE.check(largest, 'largest')
  choice = jax.random.randint(key, (len(spec), 5), 0, spec.num_offered)
  if spec.one_shift.any():
    shift_key = jax.random.fold_in(key, 2)
    shifts = jax.random.randint(shift_key, (len(spec),), 0, one_shift.num_shifts(spec))
    choice = one_shift.drawn_apart(spec, choice, shifts)
  if largest:
    takes_largest = jax.random.bernoulli(jax.random.fold_in(key, 1), largest, choice.shape)
    takes_largest = one_shift.linked(spec, takes_largest)
    choice = jnp.where(takes_largest, one_shift.largest_places(spec), choice)
  return jnp.take_along_axis(jnp.asarray(spec.offered_table), choice[..., None], axis=-1)[..., 0]


def check_budget(budget: Any) -> int | None:
  """A budget as an int, or None for no limit.

  Raises:
    ValueError: the budget is negative, fractional or no number.
  """
  if budget is None:
    return None
  if not _is_whole_number(budget) or budget < 0:
    shown = f'{budget:g}' if isinstance(budget, numbers.Real) else repr(budget)
    raise ValueError(
      f'budget={shown} must be a whole number of trained parameters, 0 (the linear subnet) or '
      'more, or None.'
    )
  return int(budget)


def _is_whole_number(value: Any) -> bool:
  is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return is_number and float(value).is_integer()


def require_feasible(spec: Spec, budget: Any) -> int | None:
  """`check_budget`, for the budget of a search.

  Raises:
    ValueError: the budget is none, or below the cheapest subnet on offer.
  """
  budget = check_budget(budget)
  least = count_params(spec, smallest_genome(spec))
  if budget is not None and least > budget:
    raise ValueError(
      f'budget={budget} is below the {least} parameters of the smallest subnet on offer; raise it, '
      'or offer cheaper alleles.'
    )
  return budget


def random_genomes(
  rng: np.random.Generator, spec: Spec, number: int, budget: int | None = None
) -> np.ndarray:
  """Random subnets within a budget.

  Uniform over the subnets within the budget (by rejection) where enough of the space fits; what
  eight rounds of rejection leave empty is filled with repaired genomes, so that any budget gets its
  population at once.

  Args:
    rng: NumPy's generator.
    spec: the layers.
    number: number of genomes.
    budget: most trained parameters of each; None for no limit.

  Returns:
    int8 [number, rows, 5].

  Raises:
    ValueError: the number is no whole number of 0 or more; the budget is no whole number, negative,
      or below the smallest subnet on offer.

  Example:
    >>> import numpy as np
    >>> from glora_jax import Layer, Spec, count_params, random_genomes
    >>> spec = Spec((Layer('fc1', 8, 32), Layer('fc2', 32, 8)))
    >>> population = random_genomes(np.random.default_rng(0), spec, 100, budget=200)
    >>> population.shape, bool(count_params(spec, population).max() <= 200)
    ((100, 2, 5), True)
  """
  _NUMBER.check(number, 'number')
  if require_feasible(spec, budget) is None:
    return _draw(rng, spec, number)
  kept = np.zeros((0, len(spec), 5), np.int8)
  for _ in range(_ROUNDS):
    drawn = _draw(rng, spec, number)
    kept = np.concatenate([kept, drawn[count_params(spec, drawn) <= budget]])[:number]
    if len(kept) == number:
      return kept
  return np.concatenate([kept, shrink(rng, spec, _draw(rng, spec, number - len(kept)), budget)])


def shrink(
  rng: np.random.Generator, spec: Spec, genomes: np.ndarray, budget: int | None
) -> np.ndarray:
  """Genomes repaired to respect a budget.

  While a genome is over it, a random gene of it gets a random cheaper allele. A row with both C and
  E, where its space has one shift, first loses the cheaper of the two.

  Args:
    rng: NumPy's generator.
    spec: the layers.
    genomes: int8 [n, rows, 5].
    budget: most trained parameters of each; None for no limit.

  Returns:
    int8 [n, rows, 5].
  """
  genomes = one_shift.with_one_shift(spec, genomes)
  if require_feasible(spec, budget) is None:
    return genomes
  # Rows and tensors as one axis of genes.
  codes = genomes.reshape(len(genomes), -1)  # a view: what is written there, the genomes get
  costs_of_codes = spec.cost_table.reshape(codes.shape[1], -1)
  offered = spec.offered_table.astype(np.int64).reshape(codes.shape[1], -1)
  offered_costs = np.take_along_axis(costs_of_codes, offered, axis=-1)
  # `offered` repeats its last code as filling; a repeated code must not be drawn more often.
  exists = np.arange(offered.shape[1]) < spec.num_offered.reshape(-1, 1)

  genes = np.arange(codes.shape[1])
  costs = costs_of_codes[genes, codes]
  while len(over := np.flatnonzero(costs.sum(1) > budget)):
    can_get_cheaper = costs[over] > offered_costs.min(1)
    gene = (rng.random((len(over), len(genes))) * can_get_cheaper).argmax(1)
    cheaper = (offered_costs[gene] < costs[over, gene, None]) & exists[gene]
    choice = (rng.random(cheaper.shape) * cheaper).argmax(1)
    codes[over, gene] = offered[gene, choice]
    costs[over, gene] = offered_costs[gene, choice]
  return genomes


def _draw(rng: np.random.Generator, spec: Spec, number: int) -> np.ndarray:
  """Genomes drawn uniformly among those on offer, int8 [number, rows, 5]."""
  places = rng.integers(0, spec.num_offered, (number, len(spec), 5))
  if spec.one_shift.any():
    shifts = rng.integers(0, one_shift.num_shifts(spec), (number, len(spec)))
    places = one_shift.drawn_apart(spec, places, shifts)
  return _alleles(spec, places)


def _alleles(spec: Spec, choice: np.ndarray) -> np.ndarray:
  """The codes of alleles [..., rows, 5] that are given by their places among those on offer."""
  table = spec.offered_table.reshape((1,) * (choice.ndim - 2) + spec.offered_table.shape)
  return np.take_along_axis(table, choice[..., None], axis=-1)[..., 0]
