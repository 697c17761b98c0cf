"""Genomes: their cost, which of them are equivalent, and genomes as JSON.

A *genome* is an int8 array [layer, 5]: for every adapted layer the form of A, B, C, D and E (see
`glora_jax.method.equation` for the codes). Populations have leading axes. A `Spec` lists the
layers. Nothing in this file knows of models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import listed, shown, validate
from glora_jax.files import first_line
from glora_jax.method.space import FLAT_FORMS, LORA_TENSORS, TENSORS, Layer, Spec, check_spec

Codes = tuple[tuple[int, ...], ...]  # for A, B, C, D, E the codes that a stack of layers may have
_NO_NUMBERS = 'OUSMm'  # kinds of dtypes
# With `SearchSpace.one_shift` a layer has C or E but never both: E as a vector reaches every bias
# that C reaches, so both would be parameters spent twice. The two are drawn, mutated and crossed as
# one, in arrays of NumPy or of JAX.
C, E = TENSORS.index('C'), TENSORS.index('E')
_E_FOR_C = np.array([E if column == C else column for column in range(len(TENSORS))])
_EXPECTED = 'pass the result of genome_to_json'


def check_genome(spec: Spec, genome: Any, concrete: bool = False) -> None:
  """Checks that genomes fit a spec.

  Args:
    spec: the layers.
    genome: [..., layer, 5]; may be traced, and then only shape and dtype are checked.
    concrete: whether the codes themselves are needed.

  Raises:
    TypeError: the spec is not a Spec, or the genome not an array of integers.
    ValueError: the shape is wrong, a code does not exist, or codes that are needed are traced.
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
    raise TypeError(
      f'The genome has dtype {dtype}; it must be an integer type, int8 by convention.'
    )
  if isinstance(genome, jax.core.Tracer):
    if concrete:
      raise ValueError(
        'The genome is traced, but its codes are needed here; call this outside of jax.jit, '
        'jax.vmap and jax.grad.'
      )
    return
  codes = np.asarray(genome)
  # Compared in the genome's type, since a cast of a million genomes takes most of the time.
  last = (spec.num_codes - 1).astype(np.int8).astype(codes.dtype)
  wrong = (codes < 0) | (codes > last)
  if wrong.any():
    index = tuple(np.argwhere(wrong)[0])
    row, column = index[-2:]
    layer, tensor = spec.layers[row], TENSORS[column]
    raise ValueError(
      f'The genome has {codes[index]} for {tensor} of layer {row} ({layer.name}); the codes are 0 '
      f'to {spec.num_codes[row, column] - 1}: {", ".join(layer.names(tensor))}.'
    )


def check_one_genome(spec: Spec, genome: Any, call: str) -> None:
  """Checks that a genome is one and fits a spec.

  Args:
    spec: the layers.
    genome: [layer, 5]; may be traced, and then only shape and dtype are checked.
    call: name of the function that it is an argument of.

  Raises:
    ValueError: it is a population, does not fit, or has a code that does not exist.
  """
  check_genome(spec, genome)
  if np.ndim(genome) != 2:
    raise ValueError(
      f'{call} needs one genome [{len(spec)}, 5], got {np.shape(genome)}; pass genomes one at a '
      'time, or use jax.vmap over a population where it computes.'
    )


def check_population(spec: Spec, genomes: Any) -> None:
  """Checks that genomes are a population, int [candidate, layer, 5], and fit a spec.

  Raises:
    ValueError: they are not or do not.
  """
  check_genome(spec, genomes)
  if np.ndim(genomes) != 3:
    raise ValueError(
      f'The genomes have shape {np.shape(genomes)}; expected [candidate, {len(spec)}, 5], with '
      'genome[None] for one genome.'
    )


def _as_array(genome: Any) -> Any:
  """Codes as an array.

  Raises:
    TypeError: they are not a table of numbers.
  """
  if isinstance(genome, jax.Array):
    return genome
  try:
    codes = np.asarray(genome)
  except (ValueError, TypeError, OverflowError):  # lists of several lengths, for instance
    codes = np.array(None)
  if codes.dtype.kind in _NO_NUMBERS:
    raise TypeError(f'The genome must be a table of codes [layer, 5], got {shown(genome)}.')
  return codes


def count_params(spec: Spec, genomes: Any) -> Any:
  """Counts the trained parameters of structures, without heads.

  Args:
    spec: the layers.
    genomes: int [..., layer, 5].

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
  check_genome(spec, genomes, concrete=True)
  counts = lookup(spec.cost_table, genomes).sum((-2, -1))
  return counts if counts.ndim else int(counts)


def canonicalize(spec: Spec, genomes: Any) -> np.ndarray:
  """Genomes with each form replaced by the cheapest that is the same function.

  Args:
    spec: the layers.
    genomes: int [..., layer, 5].

  Returns:
    int8 [..., layer, 5].

  Raises:
    ValueError: the genomes do not fit the spec, or are traced.

  Example:
    >>> import numpy as np
    >>> from glora_jax import Layer, Spec
    >>> spec = Spec((Layer('no_bias', 8, 32, bias=False),))
    >>> canonicalize(spec, np.array([[0, 3, 2, 2, 2]])).tolist()
    [[0, 3, 0, 0, 0]]
  """
  check_genome(spec, genomes, concrete=True)
  return lookup(spec._canonical_table, genomes)


def lookup(table: np.ndarray, genomes: Any) -> np.ndarray:
  """`table[row, tensor, code]` of each code of genomes, [..., layer, 5]."""
  rows, tensors, codes = table.shape
  starts = (np.arange(rows * tensors) * codes).reshape(rows, tensors)
  return table.take(np.asarray(genomes).astype(np.int64) + starts)


def smallest_genome(spec: Spec) -> np.ndarray:
  """The cheapest structure of the search space, int8 [layer, 5]."""
  costs = np.take_along_axis(spec.cost_table, spec._choices_table.astype(np.int64), axis=-1)
  return forms_at(spec, costs.argmin(-1))


def largest_genome(spec: Spec) -> np.ndarray:
  """The structure with most parameters, the last choice for every tensor, int8 [layer, 5].

  If a layer may have C or E but not both, it has the one with more parameters.
  """
  return enforce_one_shift(spec, forms_at(spec, spec._num_choices - 1))


def forms_at(spec: Spec, choice: np.ndarray) -> np.ndarray:
  """The codes of choices [..., layer, 5], which count among the choices of each tensor."""
  table = spec._choices_table.reshape((1,) * (choice.ndim - 2) + spec._choices_table.shape)
  return np.take_along_axis(table, choice[..., None], axis=-1)[..., 0]


def num_shifts(spec: Spec) -> np.ndarray:
  """Number of pairs of choices for C and E with at most one that is not none, int64 [layer]."""
  return spec._num_choices[:, C] + spec._num_choices[:, E] - 1


def redraw_shifts(spec: Spec, places: Any, shifts: Any) -> Any:
  """Replaces C and E of layers that got both by a pair drawn uniformly among those allowed.

  Pairs that are drawn uniformly and replaced if not allowed are uniform over the allowed ones.

  Args:
    spec: the layers.
    places: drawn choices, see `forms_at`, int [..., layer, 5].
    shifts: a pair for each layer, int [..., layer], below `num_shifts`.

  Returns:
    Choices like `places`, int [..., layer, 5].
  """
  xp = places.__array_namespace__()
  num_c = spec._num_choices[:, C]
  has_both = spec._one_shift & (places[..., C] > 0) & (places[..., E] > 0)
  c = xp.where(has_both, xp.where(shifts < num_c, shifts, 0), places[..., C])
  e = xp.where(has_both, xp.where(shifts < num_c, 0, shifts - num_c + 1), places[..., E])
  columns = [places[..., column] for column in range(len(TENSORS))]
  columns[C], columns[E] = c, e
  return xp.stack(columns, axis=-1)


def link_shifts(spec: Spec, chosen: Any) -> Any:
  """Chooses C if and only if E is chosen, in layers with one shift.

  C and E of a layer then come from the same genome, so the pair stays allowed.

  Args:
    spec: the layers.
    chosen: which tensors of which layers are chosen, bool [..., layer, 5].

  Returns:
    bool [..., layer, 5].
  """
  rows = spec._one_shift[:, None]
  return (chosen & ~rows) | (chosen[..., _E_FOR_C] & rows)


def enforce_one_shift(spec: Spec, genomes: np.ndarray) -> np.ndarray:
  """Genomes without layers that have both C and E though their space has one shift.

  The cheaper of the two becomes none; if C can only be none, it is C.

  Args:
    spec: the layers.
    genomes: int8 [..., layer, 5].

  Returns:
    int8 [..., layer, 5].
  """
  rows = np.arange(len(spec))
  c, e = genomes[..., C], genomes[..., E]
  c_costs_more = spec.cost_table[rows, C, c] > spec.cost_table[rows, E, e]
  has_both = spec._one_shift & (c > 0) & (e > 0)
  never_c = spec._one_shift & (spec._num_choices[:, C] == 1)
  repaired = genomes.copy()
  repaired[..., C] = np.where((has_both & ~c_costs_more) | never_c, 0, c)
  repaired[..., E] = np.where(has_both & c_costs_more & ~never_c, 0, e)
  return repaired


def distinct_codes(forms: np.ndarray) -> Codes:
  """The different codes in forms [layer, 5], for each tensor.

  Example:
    >>> distinct_codes(np.array([[0, 3, 0, 0, 0], [0, 0, 0, 0, 2]]))
    ((0,), (0, 3), (0,), (0,), (0, 2))
  """
  return tuple(tuple(sorted(set(column.tolist()))) for column in forms.T)


def goes_by_output(codes: Codes) -> bool:
  """Whether no layer has a LoRA for A, so that no merged kernel is needed."""
  return max(codes[0]) < len(FLAT_FORMS['A'])


class NamedForms(TypedDict):
  """The names of a layer's forms."""

  A: str
  B: str
  C: str
  D: str
  E: str


def genome_to_json(spec: Spec, genome: Any) -> dict[str, Any]:
  """Returns a genome as JSON that a person can read.

  Args:
    spec: the layers.
    genome: int [layer, 5].

  Returns:
    `genome`: the codes as lists. `params`: the number of trained parameters. `layers`: for every
    layer its name and the names of its forms.

  Raises:
    ValueError: the genome does not fit the spec.

  Example:
    >>> from glora_jax import Layer, Spec, genome_to_json, preset
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> genome_to_json(spec, preset(spec, 'lora'))['layers']
    [{'layer': 'fc1', 'A': 'none', 'B': 'lora:4', 'C': 'none', 'D': 'none', 'E': 'none'}]
  """
  check_one_genome(spec, genome, 'genome_to_json')
  codes = np.asarray(genome)
  layers = [
    {'layer': layer.name}
    | {tensor: layer.names(tensor)[code] for tensor, code in zip(TENSORS, row, strict=True)}
    for layer, row in zip(spec, codes, strict=True)
  ]
  return {'genome': codes.tolist(), 'params': count_params(spec, codes), 'layers': layers}


def genome_from_json(spec: Spec, content: str | Mapping[str, Any] | Sequence) -> np.ndarray:
  """Reads a genome from the result of `genome_to_json`.

  Forms are read by name if there are names, so a genome means the same in a space with other ranks
  and so other codes. Layers are matched by name, in any order, if all names are those of the spec.
  Otherwise, as with a file of another library, they are matched by their order.

  Args:
    spec: the layers.
    content: the dictionary, its JSON text, or the bare list of codes.

  Returns:
    int8 [layer, 5].

  Raises:
    ValueError: the content is not a genome, does not fit the spec, or has a form that the spec
      lacks.

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
        f'The genome {shown(content)} is not JSON ({first_line(error)}); {_EXPECTED}.'
      ) from error
  if isinstance(codes, Mapping):
    names, codes = codes.get('layers'), codes.get('genome')
  if names is not None:
    try:
      validate(names, list[NamedForms], 'layers')
    except (TypeError, ValueError) as error:
      raise ValueError(f'The genome cannot be read: {str(error)[:-1]}; {_EXPECTED}.') from None
  expected = [layer.name for layer in spec]
  by_name = {str(row.get('layer')): row for row in names or ()}
  if names is not None and len(names) != len(spec):
    raise ValueError(
      f'The structure is of {len(names)} layers, and this model adapts {len(spec)}; only one has '
      f'{listed(sorted(by_name.keys() ^ {*expected}))}. Adapt the same layers, with the same '
      'embeddings=, convs=, select= and heads=.'
    )
  if names is not None:
    if by_name.keys() == {*expected} and len(by_name) == len(expected):
      names = [by_name[name] for name in expected]
    forms = [{tensor: row[tensor] for tensor in TENSORS} for row in names]
    codes = [codes_of(layer, row) for layer, row in zip(spec, forms, strict=True)]
  try:
    check_one_genome(spec, codes, 'genome_from_json')
  except TypeError as error:
    raise ValueError(f'The genome cannot be read: {error}') from None
  return np.asarray(codes).astype(np.int8)


def codes_of(layer: Layer, forms: Mapping[Any, Any]) -> list[int]:
  """Codes of A, B, C, D, E in a layer, from a name or code of each tensor that is not none.

  'lora' is the LoRA of the largest rank. A table's chosen rows have one form, whatever is given.

  Raises:
    ValueError: the layer does not have one of them.
  """
  codes: dict[str, int] = dict.fromkeys(TENSORS, 0)
  for tensor, form in () if layer.ids else forms.items():
    names = layer.space.names(tensor) if tensor in TENSORS else ()
    if form == 'lora' and tensor in LORA_TENSORS:
      form = names[-1]
    code = layer.space.code(tensor, form) if names else None
    if code is None:
      raise ValueError(
        f'The structure has {listed([str(form)])} for {listed([str(tensor)])} of {layer.name}; '
        f'the forms are {", ".join(names) or "none, no such tensor"}.'
      )
    codes[tensor] = code
  return list(codes.values())
