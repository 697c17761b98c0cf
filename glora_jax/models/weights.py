"""Checkpoints of the ViT as files."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import flax
import jax
import numpy as np
import safetensors
import safetensors.numpy

from glora_jax.models.vit import ViT, describe

EMBEDDED = 'embedded'  # the name that configs give to the backbone in the package
EMBEDDED_FILE = os.path.join(os.path.dirname(__file__), 'fashion_mnist_vit.safetensors')


def save(path: str | os.PathLike, model: ViT, params: Any, metadata: dict[str, Any] | None = None) -> None:
  """Writes a plain safetensors file: one tensor per parameter, named by its path, the model's shape in the metadata.

  Args:
    path: of the file; written beside it first and then moved, so that it is whole or not there.
    model: whose `describe` goes into the metadata as 'model'.
    params: its parameters.
    metadata: more to remember, JSON types ('image_size', 'normalization', 'classes', ...).
  """
  tensors = {name: np.ascontiguousarray(value) for name, value in flax.traverse_util.flatten_dict(params, sep='/').items()}
  described = {'format': 'glora_jax_vit', 'model': json.dumps(describe(model))}
  described |= {name: json.dumps(value) for name, value in (metadata or {}).items()}
  temporary = f'{os.fspath(path)}.partial'
  safetensors.numpy.save_file(tensors, temporary, described)
  os.replace(temporary, path)


def load(path: str | os.PathLike) -> tuple[ViT, dict[str, Any], dict[str, Any]]:
  """Reads what `save` wrote: (model, params as numpy arrays, metadata).

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is damaged, or not such a file, or its tensors are not those of its model; the sentence says which.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f'There is no checkpoint {path}; give the path of a safetensors file, or {EMBEDDED!r}.')
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      metadata = file.metadata() or {}
      tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
  except Exception as error:  # safetensors raises its own type, and others for odd contents
    raise ValueError(f'The checkpoint {path} is damaged or not a safetensors file ({error}); get it again.') from error
  if metadata.get('format') != 'glora_jax_vit':
    raise ValueError(f"The checkpoint {path} was not written by glora_jax (its format is {metadata.get('format')!r}).")
  metadata = {name: json.loads(value) for name, value in metadata.items() if name != 'format'}
  model = ViT(**metadata.pop('model'))
  size = metadata['image_size']
  expected = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), np.float32))
  check(tensors, flax.traverse_util.flatten_dict(expected['params'], sep='/'), f'The checkpoint {path}')
  return model, flax.traverse_util.unflatten_dict(tensors, sep='/'), metadata


def check(tensors: dict[str, Any], expected: dict[str, Any], what: str) -> None:
  """Raises ValueError naming every missing, unexpected, misshaped and non-finite tensor; both arguments are flat."""
  problems = []
  for title, names in (
      ('missing', sorted(expected.keys() - tensors.keys())),
      ('unexpected', sorted(tensors.keys() - expected.keys())),
      ('misshaped', [f'{name} is {tensors[name].shape} and should be {expected[name].shape}'
                     for name in sorted(expected.keys() & tensors.keys()) if tensors[name].shape != expected[name].shape]),
      ('not finite', [name for name, value in sorted(tensors.items()) if not np.isfinite(value).all()]),
  ):
    if names:
      problems.append(f'{title}: {", ".join(names)}')
  if problems:
    raise ValueError(f'{what} does not hold the tensors of its model. ' + '; '.join(problems) + '.')


def fingerprint(params: Any) -> str:
  """SHA-256 over names, shapes, types and contents of all tensors."""
  digest = hashlib.sha256()
  for name, value in sorted(flax.traverse_util.flatten_dict(params, sep='/').items()):
    value = np.ascontiguousarray(value)
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
