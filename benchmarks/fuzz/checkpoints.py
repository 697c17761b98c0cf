"""Checkpoints of every format and container, damaged in their bytes, tensors or side files."""

import functools
import json
import os
import random
import shutil
from typing import Any

import flax
import numpy as np

from benchmarks.fuzz.models import CLASSES, IMAGE_SIZE, vit
from benchmarks.fuzz.oracle import Case, Fault, same
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.spoiling import spoil_bytes, spoil_header, spoil_json, spoil_tensors
from glora_jax.models import weights
from glora_jax.models.formats.table import FORMATS
from glora_jax.models.metadata import OURS
from glora_jax.models.vit import expected_params

METADATA = {'image_size': IMAGE_SIZE, 'normalization': 'imagenet', 'classes': list(CLASSES)}
FIELDS = (
  *({}, {}, {}, {}, {'num_heads': 2}, {'num_heads': 7}, {'num_heads': 0}, {'num_heads': '2'}),
  *({'activation': 'relu6'}, {'image_size': 8}, {'image_size': (8, 16)}, {'image_size': 'x'}),
  *({'normalization': 'unit'}, {'normalization': 'none'}, {'pool': 'gap'}, {'nothing': 1}),
  *({'image_size': 0}, {'drop_path': 2}, {'num_heads': 2.0}, {'normalization': []}),
)


@functools.cache
def originals(folder: str) -> tuple[str, ...]:
  """Folders with the small ViT in each format that can hold it, written once."""
  model, params = vit()
  written = []
  for name in (OURS, *FORMATS):
    path = os.path.join(folder, f'checkpoint_{name}')
    try:
      weights.save(path, model, params, METADATA, name)
    except (ValueError, ImportError):  # no place for the model, or no PyTorch
      continue
    written.append(path)
  return tuple(written)


def checkpoint(rng: random.Random, place: Place) -> Case:
  """A checkpoint read, and written back."""
  folder = rng.choice(originals(place.path('shared')))
  done = _spoil(rng, place, folder)
  fields = rng.choice(FIELDS)
  path = place.given if rng.random() < 0.7 else _tensors_in(place.given)
  link = place.path('here', 'link')
  os.symlink(place.given, link)

  def attempt(path: str = path) -> list:
    model, params, metadata = weights.load(path, **fields)
    read = {name: metadata[name] for name in ('image_size', 'normalization') if name in metadata}
    return [str(model), params, read, str(metadata)]  # what nobody reads may be anything

  def check(_: Any) -> None:
    model, params, metadata = weights.load(path, **fields)
    require_params(model, params, metadata)
    facts = {name: value for name, value in metadata.items() if name != 'source'}
    copy = os.path.join(place.path('given'), 'copy.safetensors')
    try:
      weights.save(copy, model, params, metadata)
      again = weights.load(copy)
    finally:
      if os.path.exists(copy):
        os.remove(copy)
    differs = str(again.model) != str(model) or not same(again.params, params)
    if differs or json.dumps(again.metadata) != json.dumps(facts):
      raise Fault(f'written in our format it reads otherwise: {again.metadata}, {facts}')

  through_link = path.replace(place.given, link)
  alike = {'through a link': functools.partial(attempt, through_link)}
  shown = f'{os.path.basename(folder)}, {done}, {fields}'
  return Case(shown, attempt, check, alike)


def require_params(model: Any, params: Any, metadata: dict[str, Any]) -> None:
  """Raises `Fault` unless parameters are those of the model, and finite."""
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  expected = expected_params(model, metadata['image_size'])
  shapes = {name: value.shape for name, value in flat.items()}
  if shapes != {name: spec.shape for name, spec in expected.items()}:
    raise Fault(f'its parameters are not those of {model}')
  for name, value in flat.items():
    if value.dtype.kind not in 'fV' or not np.isfinite(value.astype(np.float32)).all():
      raise Fault(f'{name} is {value.dtype}, finite: {np.isfinite(value).all()}')


def _tensors_in(folder: str) -> str:
  """The path of the file of tensors in a folder."""
  names = [name for name in os.listdir(folder) if not name.endswith('.json')]
  return os.path.join(folder, sorted(names)[0])


def _spoil(rng: random.Random, place: Place, folder: str) -> str:
  """Copies a folder, one of its files spoilt; what was done."""
  shutil.copytree(folder, place.given, dirs_exist_ok=True)
  action = rng.random()
  path = _tensors_in(place.given)
  config = os.path.join(place.given, 'config.json')
  if action < 0.05:
    return 'as it was'
  if action < 0.35 and os.path.exists(config):
    return spoil_json(rng, config)
  if action < 0.45 and OURS in folder:
    return spoil_header(rng, path)
  if action < 0.7:
    return spoil_tensors(rng, path)
  return spoil_bytes(rng, path if rng.random() < 0.9 or not os.path.exists(config) else config)
