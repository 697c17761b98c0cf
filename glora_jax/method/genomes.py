"""Genomes: what each costs, which are the same, and how a person reads them.

A *genome* is an int8 array [rows, 5]: for every adapted layer the allele of A, B, C, D and E (see
`glora_jax.method.equation` for the codes). Populations have leading axes. A `Spec` holds what the
rows are. Nothing in this file knows of models.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import TypedDict

from glora_jax.files import first_line
from glora_jax.limits import listed, shown
from glora_jax.method.space import FLAT_FORMS, TENSORS, Layer, Spec, Tensor, check_spec
from glora_jax.records import check_shape

_BLOCK = 8192  # genomes looked up at a time, which bounds memory
_NO_NUMBERS = 'OUSMm'  # kinds of dtypes
# Rows that have C or E but never both, where `SearchSpace.one_shift` says so: E as a vector reaches
# every bias that C reaches, so both in a row are parameters spent twice. The two genes are drawn,
# mutated and crossed as one, in arrays of NumPy or of JAX.
C, E = TENSORS.index('C'), TENSORS.index('E')
_E_FOR_C = np.array([E if column == C else column for column in range(len(TENSORS))])
_EXPECTED = 'give what genome_to_json returned'


def check_genome(spec: Spec, genome: Any) -> None:
  """Checks that genomes fit a spec.

  Args:
    spec: the layers.
    genome: [..., rows, 5]; may be traced, and then only shape and dtype are checked.

  Raises:
    ValueError: the spec is none, the shape or the dtype is wrong, or a code does not exist.
  """
  check_spec(spec)
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
  last = (spec.num_codes - 1).astype(np.int8).astype(codes.dtype)
  wrong = (codes < 0) | (codes > last)
  if wrong.any():
    index = tuple(np.argwhere(wrong)[0])
    row, column = index[-2:]
    layer, tensor = spec.layers[row], TENSORS[column]
    raise ValueError(
      f'The genome says {codes[index]} for {tensor} of layer {row} ({layer.name}); the codes there '
      f'are 0 to {spec.num_codes[row, column] - 1}: {", ".join(layer.space.names(tensor))}.'
    )


def _check_known(spec: Spec, genomes: Any) -> None:
  """`check_genome`, where the codes themselves are needed."""
  check_genome(spec, genomes)
  if isinstance(genomes, jax.core.Tracer):
    raise ValueError(
      'The genome is traced, and its codes are needed here; call this outside of jax.jit, jax.vmap '
      'and jax.grad.'
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
    ValueError: the genomes do not fit the spec, or are traced.

  Example:
    >>> from glora_jax import Layer, Spec, count_params, preset
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> count_params(spec, preset(spec, 'lora'))  # 4 * (8 + 32)
    160
  """
  _check_known(spec, genomes)
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
    ValueError: the genomes do not fit the spec, or are traced.

  Example:
    >>> import numpy as np
    >>> from glora_jax import Layer, Spec
    >>> spec = Spec((Layer('no_bias', 8, 32, bias=False),))
    >>> canonicalize(spec, np.array([[0, 3, 2, 2, 2]])).tolist()
    [[0, 3, 0, 0, 0]]
  """
  _check_known(spec, genomes)
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
    yield table.take(flat[start : start + _BLOCK].astype(np.int64) + offsets)


def smallest_genome(spec: Spec) -> np.ndarray:
  """The cheapest subnet on offer, int8 [rows, 5]."""
  costs = np.take_along_axis(spec.cost_table, spec.offered_table.astype(np.int64), axis=-1)
  return alleles_at(spec, costs.argmin(-1))


def largest_genome(spec: Spec) -> np.ndarray:
  """The subnet with most parameters on offer, the last allele of every gene, int8 [rows, 5].

  Of C and E, where a row may have one of them, it has the one with more parameters.
  """
  return alleles_at(spec, largest_places(spec))


def alleles_at(spec: Spec, choice: np.ndarray) -> np.ndarray:
  """The codes of alleles [..., rows, 5] that are given by their places among those on offer."""
  table = spec.offered_table.reshape((1,) * (choice.ndim - 2) + spec.offered_table.shape)
  return np.take_along_axis(table, choice[..., None], axis=-1)[..., 0]


def num_shifts(spec: Spec) -> np.ndarray:
  """How many choices C and E leave a row that has one of them at most, int64 [rows]."""
  return spec.num_offered[:, C] + spec.num_offered[:, E] - 1


def drawn_apart(spec: Spec, places: Any, shifts: Any) -> Any:
  """Drawn genes in which rows that got C and E are drawn anew, uniformly over what they may have.

  A row that is drawn uniformly and rejected where it has both is then uniform over the others.

  Args:
    spec: the layers.
    places: of each gene its place among the alleles on offer, int [..., rows, 5].
    shifts: a choice for each row, int [..., rows], below `num_shifts`.

  Returns:
    Places like those given, int [..., rows, 5].
  """
  xp = places.__array_namespace__()
  num_c = spec.num_offered[:, C]
  has_both = spec.one_shift & (places[..., C] > 0) & (places[..., E] > 0)
  c = xp.where(has_both, xp.where(shifts < num_c, shifts, 0), places[..., C])
  e = xp.where(has_both, xp.where(shifts < num_c, 0, shifts - num_c + 1), places[..., E])
  columns = [places[..., column] for column in range(len(TENSORS))]
  columns[C], columns[E] = c, e
  return xp.stack(columns, axis=-1)


def linked(spec: Spec, chosen: Any) -> Any:
  """Chosen genes, where C is chosen if and only if E is in rows with one shift.

  Taking C and E of a row from the same genome keeps the row as valid as it was there.

  Args:
    spec: the layers.
    chosen: whether a gene is chosen, bool [..., rows, 5].

  Returns:
    bool [..., rows, 5].
  """
  rows = spec.one_shift[:, None]
  return (chosen & ~rows) | (chosen[..., _E_FOR_C] & rows)


def largest_places(spec: Spec) -> np.ndarray:
  """The last place of every gene; of C and E, where one must give way, the one that costs more.

  Returns:
    int64 [rows, 5].
  """
  places = spec.num_offered - 1
  costs = np.take_along_axis(spec.cost_table, spec.offered_table.astype(np.int64), axis=-1)[..., -1]
  c_gives_way = costs[:, C] <= costs[:, E]
  places[spec.one_shift & c_gives_way, C] = 0
  places[spec.one_shift & ~c_gives_way, E] = 0
  return places


def with_one_shift(spec: Spec, genomes: np.ndarray) -> np.ndarray:
  """Genomes in which no row of a space with one shift has both C and E.

  The one that costs less gives way, and C wherever it is not on offer.

  Args:
    spec: the layers.
    genomes: int8 [..., rows, 5].

  Returns:
    int8 [..., rows, 5].
  """
  rows = np.arange(len(spec))
  c, e = genomes[..., C], genomes[..., E]
  c_costs_more = spec.cost_table[rows, C, c] > spec.cost_table[rows, E, e]
  has_both = spec.one_shift & (c > 0) & (e > 0)
  refused = spec.one_shift & (spec.num_offered[:, C] == 1)
  repaired = genomes.copy()
  repaired[..., C] = np.where((has_both & ~c_costs_more) | refused, 0, c)
  repaired[..., E] = np.where(has_both & c_costs_more & ~refused, 0, e)
  return repaired


@dataclasses.dataclass(frozen=True)
class InUse:
  """For each tensor the codes that may occur in a stack of layers.

  Attributes:
    codes: those of A, B, C, D and E, ascending.
  """

  codes: tuple[tuple[int, ...], ...]

  @classmethod
  def of_alleles(cls, alleles: np.ndarray) -> InUse:
    """The codes that occur in alleles [layer, 5].

    Example:
      >>> found = InUse.of_alleles(np.array([[0, 3, 0, 0, 0], [0, 0, 0, 0, 2]]))
      >>> found.tensors, found.goes_by_output
      (('B', 'E'), True)
    """
    return cls.of_tensors(column.tolist() for column in alleles.T)

  @classmethod
  def of_tensors(cls, codes: Iterable[Iterable[int]]) -> InUse:
    """The codes of each tensor, in any order."""
    return cls(tuple(tuple(sorted(set(column))) for column in codes))

  @property
  def tensors(self) -> tuple[Tensor, ...]:
    """The tensors that may take part."""
    pairs = zip(TENSORS, self.codes, strict=True)
    return tuple(tensor for tensor, codes in pairs if codes != (0,))

  @property
  def goes_by_output(self) -> bool:
    """Whether no layer has a LoRA for A, so that no merged kernel is needed."""
    return max(self.codes[0]) < len(FLAT_FORMS['A'])


class NamedAlleles(TypedDict):
  """The names of a row's alleles."""

  A: str
  B: str
  C: str
  D: str
  E: str


def genome_to_json(spec: Spec, genome: Any) -> dict[str, Any]:
  """A genome that a person can read.

  Args:
    spec: the layers.
    genome: int [rows, 5].

  Returns:
    `genome`, the codes as lists; `params`, the trained parameters; `layers`, for every layer its
    name and the names of its alleles.

  Raises:
    ValueError: the genome does not fit the spec.

  Example:
    >>> from glora_jax import Layer, Spec, genome_to_json, preset
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> genome_to_json(spec, preset(spec, 'lora'))['layers']
    [{'layer': 'fc1', 'A': 'none', 'B': 'lora:4', 'C': 'none', 'D': 'none', 'E': 'none'}]
  """
  check_genome(spec, genome)
  codes = np.asarray(genome)
  if codes.ndim != 2:
    raise ValueError(
      f'genome_to_json takes one genome [{len(spec)}, 5], not {codes.shape}; give it one after the '
      'other.'
    )
  layers = []
  for layer, row in zip(spec, codes, strict=True):
    names = {
      tensor: layer.space.names(tensor)[code] for tensor, code in zip(TENSORS, row, strict=True)
    }
    layers.append({'layer': layer.name, **names})
  return {'genome': codes.tolist(), 'params': count_params(spec, codes), 'layers': layers}


def genome_from_json(spec: Spec, content: str | Mapping[str, Any] | Sequence) -> np.ndarray:
  """The genome of what `genome_to_json` returned.

  Alleles are read by their names where there are names, so that a genome means the same in a space
  with other ranks, in which its codes are others. Rows that have the names of all the spec's layers
  go by these, in whatever order layers were found; rows of other names, another library's for
  instance, are taken as they stand.

  Args:
    spec: the layers.
    content: the dictionary, its JSON text, or the bare list of codes.

  Returns:
    int8 [rows, 5].

  Raises:
    ValueError: it is not a genome, does not fit the spec, or has an allele that the spec does not
      have.

  Example:
    >>> from glora_jax import Layer, Spec, genome_from_json
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> genome_from_json(spec, '{"genome": [[0, 3, 0, 0, 0]]}').tolist()
    [[0, 3, 0, 0, 0]]
  """
  codes, names = content, None
  if isinstance(content, str):
    try:
      codes = json.loads(content)
    except (ValueError, RecursionError) as error:
      raise ValueError(
        f'The genome {shown(content)} is no JSON ({first_line(error)}); {_EXPECTED}.'
      ) from error
  if isinstance(codes, Mapping):
    names, codes = codes.get('layers'), codes.get('genome')
  if names is not None:
    try:
      check_shape(names, list[NamedAlleles], 'layers')
    except ValueError as error:
      raise ValueError(f'The genome cannot be read: {error}; {_EXPECTED}.') from None
  if names is not None and len(names) == len(spec):
    ordered = _in_order(spec, names)
    codes = [_codes_of_names(layer, row) for layer, row in zip(spec, ordered, strict=True)]
  check_genome(spec, codes)
  genome = np.asarray(codes)
  if genome.ndim != 2 or len(genome if names is None else names) != len(genome):
    raise ValueError(
      f'The genome has shape {genome.shape} and names for {len(names or ())} layers; {_EXPECTED}.'
    )
  return genome.astype(np.int8)


def _in_order(spec: Spec, rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
  """The rows of a file by the names of a spec's layers, where they have all of these."""
  by_name = {name: row for row in rows if isinstance(name := row.get('layer'), str)}
  own = [layer.name for layer in spec]
  is_complete = by_name.keys() == {*own} and len(by_name) == len(own)
  return [by_name[name] for name in own] if is_complete else rows


def _codes_of_names(layer: Layer, names: Mapping[str, str]) -> list[int]:
  """Codes of A, B, C, D, E in a layer, from the names of the alleles by tensor.

  Raises:
    ValueError: the layer does not have one of them.
  """
  codes = [layer.space.code(tensor, names[tensor]) for tensor in TENSORS]
  for tensor, code in zip(TENSORS, codes, strict=True):
    if code is None:
      raise ValueError(
        f'The genome says {listed([names[tensor]])} for {tensor} of {layer.name}; the alleles '
        f'there are {", ".join(layer.space.names(tensor))}.'
      )
  return [code for code in codes if code is not None]
