"""A structure as users give it: a preset's name, choices by layer, a genome, or a file with one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.files import STAMP, check_stamp, load_json, read_tensors
from glora_jax.limits import printable
from glora_jax.method.genomes import canonicalize, genome_from_json
from glora_jax.method.presets import (
  begins_as_preset,
  custom_genome,
  parse_preset_name,
  preset,
)
from glora_jax.method.space import SearchSpace, Spec
from glora_jax.method.validation import check_one_genome, check_spaces

Structure = str | os.PathLike | Mapping[str, Any] | Sequence | np.ndarray


def read_structure(structure: Structure | None) -> Any:
  """What the file of a structure holds; a structure that is no path is returned as it is.

  A string is a path where it has a suffix or a separator, and does not begin as a preset does.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, or of another kind.
  """
  if isinstance(structure, str):
    is_path = os.path.basename(structure) != structure or os.path.splitext(structure)[1]
    if begins_as_preset(structure) or not is_path:
      return structure
  elif not isinstance(structure, os.PathLike):
    return structure
  path = os.path.expanduser(os.fspath(structure))
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"structure='{printable(path)}' does not exist; give a genome.json, an adapter, or the name "
      'of a preset.'
    )
  if not path.endswith('.json'):
    return read_tensors(path, 'adapter')[1]
  content = load_json(path, 'give what genome_to_json returned')
  if isinstance(content, dict) and STAMP in content:  # what a user wrote has none
    check_stamp(path, content.pop(STAMP), 'genome')
  return content


def genome_of(spec: Spec, structure: Structure, call: str = 'fix') -> np.ndarray:
  """The canonical genome of a structure, int8 [rows, 5].

  Args:
    spec: the layers.
    structure: a preset's name (see `preset`), choices by layer (`custom_genome`), a genome int
      [rows, 5], what `genome_to_json` returned, or the path of a genome file or of an adapter.
    call: the function that it was given to.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the layers cannot have it.
  """
  structure = read_structure(structure)
  if isinstance(structure, str):
    return preset(spec, structure)
  if isinstance(structure, Mapping):
    is_file = 'genome' in structure
    genome = (genome_from_json if is_file else custom_genome)(spec, structure)
    return canonicalize(spec, genome)
  check_one_genome(spec, structure, call)
  return canonicalize(spec, structure)


def space_for(
  structure: Structure | None,
  space: SearchSpace | Mapping[str, SearchSpace] | None,
  scale: float | None,
) -> SearchSpace | Mapping[str, SearchSpace]:
  """The search space of a model that is adapted.

  Args:
    structure: the structure, out of its file; None while it is free.
    space: what the user gave; None for the smallest that has the structure: the LoRA ranks that it
      names, or rank 4.
    scale: what LoRAs of B are multiplied by; None for the space's own, or that of the file.
  """
  if space is None:
    of_file = structure if isinstance(structure, Mapping) and 'genome' in structure else {}
    ranks = sorted(set(_ranks(of_file.get('layers') if of_file else structure)))
    rows = {name: of_file.get(name) for name in ('tied', 'scale')}
    by_row = {name: row[0] for name, row in rows.items() if isinstance(row, list) and row}
    space = SearchSpace(ranks=tuple(ranks) or (4,), **by_row)
  if scale is None:
    return space
  check_spaces(space)
  if isinstance(space, Mapping):
    return {name: dataclasses.replace(each, scale=scale) for name, each in space.items()}
  return dataclasses.replace(space, scale=scale)


def _ranks(structure: Any) -> Iterator[int]:
  """The ranks that a structure names, in any order; an allele 'lora:4' reads as the preset does."""
  if isinstance(structure, str):
    rank = parse_preset_name(structure).rank if begins_as_preset(structure) else None
    yield from () if rank is None else (rank,)
  elif isinstance(structure, Mapping):
    for value in structure.values():
      yield from _ranks(value)
  elif isinstance(structure, list | tuple):
    for value in structure:
      yield from _ranks(value)
