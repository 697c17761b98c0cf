"""Genomes as JSON that a person can read, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from glora_jax.files import first_line
from glora_jax.limits import listed, shown
from glora_jax.method.genomes import check_genome, count_params
from glora_jax.method.space import TENSORS, Layer, Spec
from glora_jax.records import mismatch

_EXPECTED = 'give what genome_to_json returned'


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
    ValueError: it is no genome, does not fit the spec, or has an allele that the spec does not
      have.

  Example:
    >>> from glora_jax import Layer, Spec, genome_from_json
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> genome_from_json(spec, '{"genome": [[0, 3, 0, 0, 0]]}').tolist()
    [[0, 3, 0, 0, 0]]
  """
  codes = _parsed(content) if isinstance(content, str) else content
  names = None
  if isinstance(codes, Mapping):
    names, codes = codes.get('layers'), codes.get('genome')
  if names is not None and (reason := mismatch(names, list[NamedAlleles], 'layers')) is not None:
    raise ValueError(f'The genome cannot be read: {reason}; {_EXPECTED}.')
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


def _parsed(text: str) -> Any:
  """What a JSON text says.

  Raises:
    ValueError: it is none.
  """
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f'The genome {shown(text)} is no JSON ({first_line(error)}); {_EXPECTED}.'
    ) from error


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
