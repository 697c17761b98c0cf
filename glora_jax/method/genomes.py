"""Genomes: what each costs, and which are the same.

A *genome* is an int8 array [rows, 5]: for every adapted layer the allele of A, B, C, D and E (see
`glora_jax.method.equation` for the codes). Populations have leading axes. A `Spec` holds what the
rows are. Nothing in this file knows of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.limits import shown
from glora_jax.method import one_shift
from glora_jax.method.space import TENSORS, Spec, check_spec

_BLOCK = 8192  # genomes looked up at a time, which bounds memory
_NO_NUMBERS = 'OUSMm'  # kinds of dtypes


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
    >>> from glora_jax import Layer, Spec, canonicalize
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
  return alleles_at(spec, one_shift.largest_places(spec))


def alleles_at(spec: Spec, choice: np.ndarray) -> np.ndarray:
  """The codes of alleles [..., rows, 5] that are given by their places among those on offer."""
  table = spec.offered_table.reshape((1,) * (choice.ndim - 2) + spec.offered_table.shape)
  return np.take_along_axis(table, choice[..., None], axis=-1)[..., 0]
