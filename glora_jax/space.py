"""Alleles, genomes and search spaces: which subnets there are, what each costs, how to draw them.

A *genome* is an int8 array [rows, 5]: for every adapted layer the allele of A, B, C, D and E (codes in `reparam`). Populations
have leading axes. A `Spec` says what the rows are. Nothing here knows of models.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TENSORS = ('A', 'B', 'C', 'D', 'E')
_BLOCK = 8192  # genomes looked up at a time, which bounds memory


@dataclasses.dataclass(frozen=True)
class SearchSpace:
  """The alleles on offer.

  Attributes:
    ranks: LoRA ranks, ascending; the largest is the size of the storage.
    A, B, C, D, E: the alleles on offer for each tensor, as codes or names ('none', 'constant', 'vector', 'lora4' or, where
      there is one rank, 'lora'); None offers all.
    tied: whether all forms of a tensor share storage, as in the official code.

  Example:
    >>> SearchSpace(ranks=(2, 4), A=('none',)).names('C')
    ('none', 'vector', 'lora2', 'lora4')
  """

  ranks: tuple[int, ...] = (4,)
  A: tuple[int, ...] | None = None
  B: tuple[int, ...] | None = None
  C: tuple[int, ...] | None = None
  D: tuple[int, ...] | None = None
  E: tuple[int, ...] | None = None
  tied: bool = True

  def __post_init__(self):
    ranks = (self.ranks,) if isinstance(self.ranks, numbers.Integral) else tuple(self.ranks)
    if not ranks or any(not isinstance(r, numbers.Integral) or r < 1 for r in ranks) or list(ranks) != sorted(set(ranks)):
      raise ValueError(f'ranks={self.ranks} must be positive integers in ascending order, (4,) or (2, 4, 8) for instance.')
    object.__setattr__(self, 'ranks', tuple(int(r) for r in ranks))
    for tensor in TENSORS:
      object.__setattr__(self, tensor, self._offer(tensor, getattr(self, tensor)))

  def _offer(self, tensor, offered):
    names = self.names(tensor)
    if offered is None:
      return tuple(range(len(names)))
    codes = dict(zip(names, range(len(names)), strict=True))
    if len(self.ranks) == 1 and f'lora{self.ranks[0]}' in codes:
      codes['lora'] = codes[f'lora{self.ranks[0]}']
    chosen = (offered,) if isinstance(offered, (str, numbers.Integral)) else tuple(offered)
    chosen = {codes.get(allele, allele) for allele in chosen}
    if not chosen or not chosen <= set(range(len(names))):
      raise ValueError(f'{tensor}={offered} is not a choice among {", ".join(names)} (codes 0 to {len(names) - 1}).')
    return tuple(sorted(int(code) for code in chosen))

  def names(self, tensor: str) -> tuple[str, ...]:
    """Names of all forms of a tensor, in the order of their codes."""
    loras = tuple(f'lora{rank}' for rank in self.ranks)
    return {'A': ('none', 'constant', 'vector', *loras), 'C': ('none', 'vector', *loras),
            'D': ('none', 'constant', 'vector')}[{'B': 'A', 'E': 'D'}.get(tensor, tensor)]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One row of a genome: a linear layer (or one slice of a stacked one)."""

  name: str
  in_features: int
  out_features: int
  bias: bool = True
  space: SearchSpace = SearchSpace()

  def offered(self, tensor: str) -> tuple[int, ...]:
    """Codes on offer; a layer without bias has only 'none' for C, D and E."""
    return getattr(self.space, tensor) if self.bias or tensor in 'AB' else (0,)

  def costs(self, tensor: str) -> tuple[int, ...]:
    """Trained parameters of every form of a tensor."""
    fan_in, fan_out, ranks = self.in_features, self.out_features, self.space.ranks
    if tensor in 'AB':
      return (0, 1, fan_out, *(r * (fan_in + fan_out) for r in ranks))
    if not self.bias:
      return (0,) * len(self.space.names(tensor))
    return (0, fan_in, *(r * (fan_in + 1) for r in ranks)) if tensor == 'C' else (0, 1, fan_out)

  def canonical(self, tensor: str) -> tuple[int, ...]:
    """For every code the cheapest one that is the same function whatever the values of the supports are."""
    codes = range(len(self.space.names(tensor)))
    if not self.bias and tensor in 'CDE':
      return tuple(0 for _ in codes)
    # One output: a vector is one number, and in tied storage the very same one.
    vector_is_constant = self.out_features == 1 and tensor != 'C' and self.space.tied
    return tuple(1 if code == 2 and vector_is_constant else code for code in codes)


@dataclasses.dataclass(frozen=True)
class Spec:
  """The rows of a genome, in execution order. Static and hashable."""

  layers: tuple[Layer, ...]

  def __len__(self) -> int:
    return len(self.layers)

  def __iter__(self) -> Iterator[Layer]:
    return iter(self.layers)

  def _table(self, values, dtype):
    """[rows, 5, codes], the last axis filled up with the last value."""
    rows = [[values(layer, tensor) for tensor in TENSORS] for layer in self.layers]
    width = max((len(v) for row in rows for v in row), default=1)
    return np.array([[(*v, *[v[-1]] * (width - len(v))) for v in row] for row in rows], dtype).reshape(len(rows), 5, width)

  @functools.cached_property
  def cost_table(self) -> np.ndarray:
    return self._table(Layer.costs, np.int64)

  @functools.cached_property
  def canonical_table(self) -> np.ndarray:
    return self._table(Layer.canonical, np.int8)

  @functools.cached_property
  def offered_table(self) -> np.ndarray:
    """Codes on offer, [rows, 5, most], filled up with the last one."""
    return self._table(Layer.offered, np.int8)

  @functools.cached_property
  def num_codes(self) -> np.ndarray:
    """Number of forms that exist, int [rows, 5]."""
    return np.array([[len(layer.space.names(t)) for t in TENSORS] for layer in self.layers]).reshape(len(self), 5)

  @functools.cached_property
  def num_offered(self) -> np.ndarray:
    """Number of forms on offer, int [rows, 5]."""
    return np.array([[len(layer.offered(t)) for t in TENSORS] for layer in self.layers]).reshape(len(self), 5)


def check_genome(spec: Spec, genome: Any) -> None:
  """Raises ValueError unless `genome` is [..., rows, 5], of integers, with (where it is concrete) codes that exist."""
  shape, dtype = jnp.shape(genome), jax.dtypes.result_type(genome)
  if len(shape) < 2 or shape[-2:] != (len(spec), 5):
    raise ValueError(f'The genome has shape {shape}; this model has {len(spec)} adapted layers, so it must be [..., {len(spec)}, 5].')
  if not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError(f'The genome has dtype {dtype}; it must be an integer type, int8 by convention.')
  if isinstance(genome, jax.core.Tracer):
    return
  genome = np.asarray(genome)
  limit = spec.num_codes.astype(np.int8).astype(genome.dtype)  # in the genome's own type, a million are compared in no time
  if (genome < 0).any() or (genome >= limit).any():
    *_, row, column = index = tuple(np.argwhere((genome < 0) | (genome >= limit))[0])
    layer, tensor = spec.layers[row], TENSORS[column]
    raise ValueError(f'The genome says {genome[index]} for {tensor} of layer {row} ({layer.name}); the codes there are 0 to '
                     f'{spec.num_codes[row, column] - 1}: {", ".join(layer.space.names(tensor))}.')


def check_budget(budget: Any) -> int | None:
  """The budget as an int or None (no limit); ValueError where it is negative, fractional or no number."""
  if budget is None:
    return None
  if isinstance(budget, (bool, str)) or not isinstance(budget, numbers.Real) or not float(budget).is_integer() or budget < 0:
    shown = f'{budget:g}' if isinstance(budget, numbers.Real) else repr(budget)
    raise ValueError(f'budget={shown} must be a whole number of trained parameters, 0 (the linear subnet) or more, or None.')
  return int(budget)


def _lookup(table: np.ndarray, genomes: Any) -> Iterator[np.ndarray]:
  """Blocks of `table[row, tensor, genomes[..., row, tensor]]`, [block, rows, 5]."""
  genomes = np.asarray(genomes)
  flat = genomes.reshape(-1, *table.shape[:2])
  offsets = (np.arange(table.shape[0] * 5) * table.shape[2]).reshape(table.shape[:2])
  for start in range(0, len(flat), _BLOCK):
    yield table.take(flat[start:start + _BLOCK] + offsets)


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
    raise ValueError(f'budget={budget} is below the {least} parameters of the smallest subnet on offer; raise it, or offer cheaper alleles.')
  return budget


def shrink(rng: np.random.Generator, spec: Spec, genomes: np.ndarray, budget: int | None) -> np.ndarray:
  """Genomes [n, rows, 5] repaired to respect a budget: while one is over it, a random gene of it gets a random cheaper allele."""
  genomes = genomes.copy()
  if require_feasible(spec, budget) is None:
    return genomes
  offered = spec.offered_table.astype(np.int64)
  offered_costs = np.take_along_axis(spec.cost_table, offered, axis=-1).reshape(-1, offered.shape[-1])  # [genes, most]
  flat, cost_table = genomes.reshape(len(genomes), -1), spec.cost_table.reshape(-1, spec.cost_table.shape[-1])
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


def random_genomes(rng: np.random.Generator, spec: Spec, number: int, budget: int | None = None) -> np.ndarray:
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


# A method that GLoRA contains, as codes A B C D E; -1 is the highest code, the largest rank.
_PRESETS = {
    'linear': (0, 0, 0, 0, 0),
    'bitfit': (0, 0, 0, 0, 2),
    'lora': (0, -1, 0, 0, 0),
    'ssf': (2, 0, 0, 2, 2),
    'prompt': (0, 0, 1, 0, 0),
    'full': (-1, -1, -1, 2, 2),
}
PRESET_NAMES = tuple(_PRESETS)
_OF_BIASES = ('bitfit', 'prompt')  # nothing is left of them where no layer has a bias


def preset(spec: Spec, name: str) -> np.ndarray:
  """The genome of a method that GLoRA contains: 'linear', 'bitfit', 'lora', 'ssf', 'prompt' or 'full'.

  Raises:
    ValueError: unknown name, or a method that needs a bias where no layer has one.
  """
  if name not in _PRESETS:
    raise ValueError(f"The preset '{name}' is unknown; the presets are {', '.join(_PRESETS)}.")
  if name in _OF_BIASES and not any(layer.bias for layer in spec):
    raise ValueError(f"The preset '{name}' trains biases, and no adapted layer has one.")
  codes = np.array(_PRESETS[name])
  return canonicalize(spec, np.where(codes < 0, spec.num_codes - 1, codes).astype(np.int8))


def presets(spec: Spec) -> dict[str, np.ndarray]:
  """All presets that exist for a spec, by name."""
  biased = any(layer.bias for layer in spec)
  return {name: preset(spec, name) for name in _PRESETS if biased or name not in _OF_BIASES}


def custom_genome(spec: Spec, choices: Mapping[str, str | Mapping[str, str | int]]) -> np.ndarray:
  """A genome from a short dictionary by path pattern.

  Args:
    spec: of the genome.
    choices: regular expression (searched in a layer's name) -> the name of a preset, or the alleles by tensor as names or codes
      ('lora' is the largest rank). The first pattern that is found in a name decides; a layer that none is found in gets none.

  Returns:
    Canonical genome, int8 [rows, 5].

  Raises:
    ValueError: a pattern matches no layer, or a tensor, allele or preset does not exist.

  Example:
    >>> custom_genome(spec, {'qkv': {'B': 'lora'}, 'mlp': 'bitfit'})   # doctest: +SKIP
  """
  genome, used = np.zeros((len(spec), 5), np.int8), set()
  for row, layer in enumerate(spec):
    pattern = next((pattern for pattern in choices if re.search(pattern, layer.name)), None)
    if pattern is None:
      continue
    used.add(pattern)
    choice = choices[pattern]
    if isinstance(choice, str):
      genome[row] = preset(Spec((layer,)), choice)[0]
      continue
    for tensor, allele in choice.items():
      names = layer.space.names(tensor) if tensor in TENSORS else ()
      codes = {name: code for code, name in enumerate(names)} | ({'lora': len(names) - 1} if tensor in 'ABC' else {})
      if codes.get(allele, allele) not in range(len(names)):
        raise ValueError(f"custom genome: {layer.name} has no {tensor}={allele!r}; the tensors are A to E, the alleles of {tensor}: "
                         f'{", ".join(names) or "none, no such tensor"}.')
      genome[row, TENSORS.index(tensor)] = codes.get(allele, allele)
  if unused := [pattern for pattern in choices if pattern not in used]:
    raise ValueError(f'custom genome: {", ".join(unused)} matches no layer; there are: {", ".join(layer.name for layer in spec)}.')
  return canonicalize(spec, genome)


def genome_to_json(spec: Spec, genome: Any) -> dict[str, Any]:
  """A genome that a person can read: codes, and for every layer the names of its alleles."""
  check_genome(spec, genome)
  genome = np.asarray(genome)
  layers = [{'layer': layer.name, **{t: layer.space.names(t)[code] for t, code in zip(TENSORS, row, strict=True)}}
            for layer, row in zip(spec, genome, strict=True)]
  return {'genome': genome.tolist(), 'params': count_params(spec, genome), 'layers': layers}


def genome_from_json(spec: Spec, content: str | Mapping[str, Any] | Sequence) -> np.ndarray:
  """The genome of what `genome_to_json` returned, as a dictionary, its JSON text, or the bare list of codes."""
  if isinstance(content, str):
    content = json.loads(content)
  codes = content['genome'] if isinstance(content, Mapping) else content
  genome = np.asarray(codes)
  check_genome(spec, genome)
  return genome.astype(np.int8)
