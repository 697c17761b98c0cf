"""Alleles, genomes and search spaces: which subnets there are, what each costs, how to draw them.

A *genome* is an int8 array [rows, 5]: for every adapted layer the allele of A, B, C, D and E (codes in `reparam`). Populations
have leading axes. A `Spec` says what the rows are. Nothing here knows of models.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.space import TENSORS, Spec

_BLOCK = 8192  # genomes looked up at a time, which bounds memory


def check_genome(spec: Spec, genome: Any) -> None:
  """Raises ValueError unless `genome` is [..., rows, 5], of integers, with (where it is concrete) codes that exist."""
  shape, dtype = jnp.shape(genome), jax.dtypes.result_type(genome)
  if len(shape) < 2 or shape[-2:] != (len(spec), 5):
    raise ValueError(
      f'The genome has shape {shape}; this model has {len(spec)} adapted layers, so it must be [..., {len(spec)}, 5].'
    )
  if not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError(
      f'The genome has dtype {dtype}; it must be an integer type, int8 by convention.'
    )
  if isinstance(genome, jax.core.Tracer):
    return
  genome = np.asarray(genome)
  limit = spec.num_codes.astype(np.int8).astype(
    genome.dtype
  )  # in the genome's own type, a million are compared in no time
  if (genome < 0).any() or (genome >= limit).any():
    *_, row, column = index = tuple(np.argwhere((genome < 0) | (genome >= limit))[0])
    layer, tensor = spec.layers[row], TENSORS[column]
    raise ValueError(
      f'The genome says {genome[index]} for {tensor} of layer {row} ({layer.name}); the codes there are 0 to '
      f'{spec.num_codes[row, column] - 1}: {", ".join(layer.space.names(tensor))}.'
    )


def check_budget(budget: Any) -> int | None:
  """The budget as an int or None (no limit); ValueError where it is negative, fractional or no number."""
  if budget is None:
    return None
  if (
    isinstance(budget, (bool, str))
    or not isinstance(budget, numbers.Real)
    or not float(budget).is_integer()
    or budget < 0
  ):
    shown = f'{budget:g}' if isinstance(budget, numbers.Real) else repr(budget)
    raise ValueError(
      f'budget={shown} must be a whole number of trained parameters, 0 (the linear subnet) or more, or None.'
    )
  return int(budget)


def _lookup(table: np.ndarray, genomes: Any) -> Iterator[np.ndarray]:
  """Blocks of `table[row, tensor, genomes[..., row, tensor]]`, [block, rows, 5]."""
  genomes = np.asarray(genomes)
  flat = genomes.reshape(-1, *table.shape[:2])
  offsets = (np.arange(table.shape[0] * 5) * table.shape[2]).reshape(table.shape[:2])
  for start in range(0, len(flat), _BLOCK):
    yield table.take(flat[start : start + _BLOCK] + offsets)


def count_params(spec: Spec, genomes: Any) -> Any:
  """Trained parameters of subnets, head not counted: int64 [...] for genomes [..., rows, 5], an int for one genome."""
  check_genome(spec, genomes)
  blocks = [block.sum(axis=(1, 2)) for block in _lookup(spec.cost_table, genomes)]
  counts = np.concatenate([np.zeros(0, np.int64), *blocks]).reshape(np.shape(genomes)[:-2])
  return counts if counts.ndim else int(counts)


def canonicalize(spec: Spec, genomes: Any) -> np.ndarray:
  """Genomes [..., rows, 5] with every gene that cannot matter set to its cheapest equal, int8."""
  check_genome(spec, genomes)
  blocks = list(_lookup(spec.canonical_table, genomes))
  return np.concatenate([np.zeros((0, len(spec), 5), np.int8), *blocks]).reshape(np.shape(genomes))


def sample_genome(key: jax.Array, spec: Spec, largest: float = 0.0) -> jax.Array:
  """A genome of alleles drawn uniformly and independently among those on offer, int8 [rows, 5]; works under `jit`.

  With the probability `largest` a gene takes its last allele on offer, the one with most parameters, without a draw.
  """
  choice = jax.random.randint(key, (len(spec), 5), 0, spec.num_offered)
  if largest:
    takes_largest = jax.random.bernoulli(jax.random.fold_in(key, 1), largest, choice.shape)
    choice = jnp.where(takes_largest, spec.num_offered - 1, choice)
  return jnp.take_along_axis(jnp.asarray(spec.offered_table), choice[..., None], axis=-1)[..., 0]


def _draw(rng: np.random.Generator, spec: Spec, number: int) -> np.ndarray:
  choice = rng.integers(0, spec.num_offered, (number, len(spec), 5))
  return np.take_along_axis(spec.offered_table[None], choice[..., None], axis=-1)[..., 0]


def smallest_genome(spec: Spec) -> np.ndarray:
  """The cheapest subnet on offer."""
  costs = np.take_along_axis(spec.cost_table, spec.offered_table.astype(np.int64), axis=-1)
  return np.take_along_axis(spec.offered_table, costs.argmin(-1)[..., None], axis=-1)[..., 0]


def largest_genome(spec: Spec) -> np.ndarray:
  """The subnet with most parameters on offer: the last allele of every gene."""
  return spec.offered_table[..., -1]


def require_feasible(spec: Spec, budget: Any) -> int | None:
  """`check_budget`, and ValueError where the budget is below the cheapest subnet on offer."""
  budget = check_budget(budget)
  least = count_params(spec, smallest_genome(spec))
  if budget is not None and least > budget:
    raise ValueError(
      f'budget={budget} is below the {least} parameters of the smallest subnet on offer; raise it, or offer cheaper alleles.'
    )
  return budget


def shrink(
  rng: np.random.Generator, spec: Spec, genomes: np.ndarray, budget: int | None
) -> np.ndarray:
  """Genomes [n, rows, 5] repaired to respect a budget: while one is over it, a random gene of it gets a random cheaper allele."""
  genomes = genomes.copy()
  if require_feasible(spec, budget) is None:
    return genomes
  offered = spec.offered_table.astype(np.int64)
  offered_costs = np.take_along_axis(spec.cost_table, offered, axis=-1).reshape(
    -1, offered.shape[-1]
  )  # [genes, most]
  flat, cost_table = (
    genomes.reshape(len(genomes), -1),
    spec.cost_table.reshape(-1, spec.cost_table.shape[-1]),
  )
  genes = np.arange(flat.shape[1])
  costs = cost_table[genes, flat]
  while len(over := np.flatnonzero(costs.sum(1) > budget)):
    # The gene: at random among those that can still get cheaper.
    gene = (rng.random((len(over), len(genes))) * (costs[over] > offered_costs.min(1))).argmax(1)
    cheaper = offered_costs[gene] < costs[over, gene, None]
    # `offered_table` repeats its last code as filling; a repeated code must not be drawn more often.
    cheaper &= np.arange(cheaper.shape[1]) < spec.num_offered.reshape(-1)[gene, None]
    code = (rng.random(cheaper.shape) * cheaper).argmax(1)
    flat[over, gene] = offered.reshape(-1, offered.shape[-1])[gene, code]
    costs[over, gene] = offered_costs[gene, code]
  return genomes


def random_genomes(
  rng: np.random.Generator, spec: Spec, number: int, budget: int | None = None
) -> np.ndarray:
  """Random subnets within a budget, int8 [number, rows, 5].

  Uniform over the subnets within the budget (by rejection) where enough of the space fits; what eight rounds of rejection
  leave empty is filled with repaired genomes, so that any budget gets its population at once.

  Raises:
    ValueError: the budget is no whole number, negative, or below the smallest subnet on offer.
  """
  if require_feasible(spec, budget) is None:
    return _draw(rng, spec, number)
  kept = np.zeros((0, len(spec), 5), np.int8)
  for _ in range(8):
    drawn = _draw(rng, spec, number)
    kept = np.concatenate([kept, drawn[count_params(spec, drawn) <= budget]])[:number]
    if len(kept) == number:
      return kept
  return np.concatenate([kept, shrink(rng, spec, _draw(rng, spec, number - len(kept)), budget)])


def genome_to_json(spec: Spec, genome: Any) -> dict[str, Any]:
  """A genome that a person can read: codes, and for every layer the names of its alleles."""
  check_genome(spec, genome)
  genome = np.asarray(genome)
  layers = [
    {
      'layer': layer.name,
      **{t: layer.space.names(t)[code] for t, code in zip(TENSORS, row, strict=True)},
    }
    for layer, row in zip(spec, genome, strict=True)
  ]
  return {'genome': genome.tolist(), 'params': count_params(spec, genome), 'layers': layers}


def genome_from_json(spec: Spec, content: str | Mapping[str, Any] | Sequence) -> np.ndarray:
  """The genome of what `genome_to_json` returned, as a dictionary, its JSON text, or the bare list of codes."""
  if isinstance(content, str):
    content = json.loads(content)
  codes = content['genome'] if isinstance(content, Mapping) else content
  genome = np.asarray(codes)
  check_genome(spec, genome)
  return genome.astype(np.int8)
