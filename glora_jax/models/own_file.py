"""Reads this project's own format: a safetensors file that says all about its model."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from glora_jax.files import check_metadata
from glora_jax.models.containers import Tensors, finite, read_finite, require_floats, require_shapes
from glora_jax.models.facts import check_metadata_of
from glora_jax.models.formats.rules import BLOCKS
from glora_jax.models.metadata import OURS, Metadata
from glora_jax.models.translate import stack
from glora_jax.models.vit import ViT, expected_params

KIND = 'vit'  # among the kinds of files that `files.write_tensors` writes


class _Header(NamedTuple):
  """What the metadata of a file says; `expected` are the shapes of the parameters by path."""

  model: ViT
  metadata: Metadata
  expected: dict[str, jax.ShapeDtypeStruct]


def read_own(tensors: Tensors) -> tuple[ViT, dict[str, Any], Metadata]:
  """Reads a file that `save` wrote in this project's own format.

  Args:
    tensors: the opened file, in whose metadata the key 'glora_jax' stands.

  Returns:
    (model, nested parameters, metadata).

  Raises:
    ValueError: the file is of another kind, says what cannot be, or its tensors are not those of
      its model.
  """
  model, metadata, expected = _read_header(tensors)
  try:
    check_metadata_of(metadata, model.num_classes)
  except ValueError as error:
    raise ValueError(f'{tensors.path}: {error}') from error
  require_floats(tensors.path, tensors.specs)
  require_shapes(
    tensors.path,
    {name: spec.shape for name, spec in tensors.specs.items()},
    {name: spec.shape for name, spec in expected.items()},
  )
  params = {name: _read_param(tensors, name) for name in expected}
  return model, flax.traverse_util.unflatten_dict(params, sep='/'), metadata


def _read_header(tensors: Tensors) -> _Header:
  refusal = f'{tensors.path} is no vit file that glora_jax wrote.'
  try:
    metadata = json.loads(tensors.metadata[OURS])
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ValueError(refusal) from error
  metadata = check_metadata(tensors.path, metadata, KIND)
  try:
    model = ViT(**metadata.pop('model'))
    return _Header(model, metadata, expected_params(model, metadata['image_size']))
  except (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
  ) as error:
    raise ValueError(refusal) from error


def _read_param(tensors: Tensors, name: str) -> np.ndarray:
  if not name.startswith(BLOCKS):
    return read_finite(tensors, name)
  shape, dtype = tensors.specs[name]
  blocks = (finite(tensors.path, name, block) for block in tensors.blocks(name))
  return stack(shape, dtype, blocks)
