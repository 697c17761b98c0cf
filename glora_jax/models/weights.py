"""Checkpoints of the ViT as files."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import flax
import flax.linen as nn
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


def write_tensors(path: str | os.PathLike, tensors: dict[str, Any], kind: str, metadata: dict[str, Any]) -> None:
  """Writes a safetensors file of this project, beside the path first and then moved there: it is whole or not there.

  All metadata is one JSON text, since the format keeps several in no order: equal content makes equal bytes.
  """
  described = json.dumps({'kind': kind, **metadata})
  temporary = f'{os.fspath(path)}.partial'
  safetensors.numpy.save_file(
      {name: np.ascontiguousarray(value) for name, value in tensors.items()}, temporary, {'glora_jax': described})
  os.replace(temporary, path)


def read_tensors(path: str | os.PathLike, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """What `write_tensors` wrote: (tensors, metadata).

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is damaged, or not one of this project's files of that kind.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f'There is no file {path}; give the path of a safetensors file.')
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      described = json.loads((file.metadata() or {}).get('glora_jax', '{}'))
      tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
  except Exception as error:  # safetensors raises its own type, and others for odd contents
    raise ValueError(f'{path} is damaged or not a safetensors file ({error}); get it again.') from error
  if described.pop('kind', None) != kind:
    raise ValueError(f'{path} is no {kind} file that glora_jax wrote.')
  return tensors, described


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
    value = np.ascontiguousarray(nn.meta.unbox(value))
    digest.update(f'{name}:{value.shape}:{value.dtype};'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()
