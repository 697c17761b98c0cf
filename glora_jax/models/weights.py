"""Checkpoints of the ViT as files."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np

from glora_jax.files import read_tensors, write_tensors
from glora_jax.merge import differences
from glora_jax.models.vit import ViT, describe

EMBEDDED = 'embedded'  # the name that configs give to the backbone in the package
EMBEDDED_FILE = os.path.join(os.path.dirname(__file__), 'fashion_mnist_vit.safetensors')


def save(path: str | os.PathLike, model: ViT, params: Any, metadata: dict[str, Any] | None = None) -> None:
  """Writes a plain safetensors file: one tensor per parameter, named by its path, the model's shape in the metadata.

  Args:
    path: of the file.
    model: whose `describe` goes into the metadata as 'model'.
    params: its parameters.
    metadata: more to remember, JSON types ('image_size', 'normalization', 'classes', ...).
  """
  tensors = flax.traverse_util.flatten_dict(params, sep='/')
  write_tensors(path, tensors, 'vit', {'model': describe(model), **(metadata or {})})


def load(path: str | os.PathLike) -> tuple[ViT, dict[str, Any], dict[str, Any]]:
  """Reads what `save` wrote: (model, params as numpy arrays, metadata).

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is damaged, or not such a file, or its tensors are not those of its model; the sentence says which.
  """
  tensors, metadata = read_tensors(path, 'vit')
  model = ViT(**metadata.pop('model'))
  size = metadata['image_size']
  expected = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), np.float32))
  check(tensors, flax.traverse_util.flatten_dict(expected['params'], sep='/'), f'The checkpoint {path}')
  return model, flax.traverse_util.unflatten_dict(tensors, sep='/'), metadata


def check(tensors: dict[str, Any], expected: dict[str, Any], what: str) -> None:
  """Raises ValueError naming every missing, unexpected, misshaped and non-finite tensor; both arguments are flat."""
  problems = differences(tensors, expected)
  if wild := [name for name, value in sorted(tensors.items()) if not np.isfinite(value).all()]:
    problems.append(f'not finite: {", ".join(wild)}')
  if problems:
    raise ValueError(f'{what} does not hold the tensors of its model. ' + '; '.join(problems) + '.')


def fingerprint(params: Any) -> str:
  """SHA-256 over names, shapes, types and contents of all tensors."""
  digest = hashlib.sha256()
  for name, value in sorted(flax.traverse_util.flatten_dict(params, sep='/').items()):
    value = np.ascontiguousarray(nn.meta.unbox(value))
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
