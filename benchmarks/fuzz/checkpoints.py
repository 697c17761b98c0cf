"""Checkpoints of every format and container, damaged in their bytes, tensors or side files."""

import functools
import json
import os
import random
from typing import Any

import flax
import numpy as np
import safetensors.numpy

from benchmarks.fuzz.models import CLASSES, IMAGE_SIZE, vit
from benchmarks.fuzz.oracle import Case, Fault, same
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import changed_json, damaged
from glora_jax.models import weights
from glora_jax.models.containers.npz import write_npz
from glora_jax.models.containers.opening import open_tensors
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
DTYPES = ('float32', 'float16', 'float64', 'int32', 'int8', 'bool', 'complex64', 'uint8')


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
    facts = {name: value for name, value in metadata.items() if name != 'source'}
    return [str(model), params, facts, str(metadata.get('source'))]

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
  for name in os.listdir(folder):
    with open(os.path.join(folder, name), 'rb') as file:
      place.write(name, content=file.read())
  action = rng.random()
  path = _tensors_in(place.given)
  config = os.path.join(place.given, 'config.json')
  if action < 0.05:
    return 'as it was'
  if action < 0.35 and os.path.exists(config):
    return _spoil_json(rng, config)
  if action < 0.45 and OURS in folder:
    return _spoil_header(rng, path)
  if action < 0.7:
    return _spoil_tensors(rng, path)
  return _spoil_bytes(rng, path if rng.random() < 0.9 or not os.path.exists(config) else config)


def _spoil_bytes(rng: random.Random, path: str) -> str:
  with open(path, 'rb') as file:
    content = file.read()
  with open(path, 'wb') as file:
    file.write(damaged(rng, content))
  return f'bytes of {os.path.basename(path)}'


def _spoil_json(rng: random.Random, path: str) -> str:
  with open(path) as file:
    content = changed_json(rng, json.load(file))
  with open(path, 'w') as file:
    json.dump(content, file)
  return f'{os.path.basename(path)} {content!r:.800}'


def _spoil_header(rng: random.Random, path: str) -> str:
  """Changes what a file of our own format says of its model."""
  with safetensors.safe_open(path, 'numpy') as file:
    metadata = json.loads(file.metadata()['glora_jax'])
  content = changed_json(rng, metadata)
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(tensors, path, {'glora_jax': json.dumps(content)})
  return f'header {content!r:.800}'


def _spoil_tensors(rng: random.Random, path: str) -> str:
  """Changes a tensor: its name, shape, type or numbers."""
  opened = open_tensors(path)
  tensors = {name: np.array(opened.read(name)) for name in opened.specs}
  name = rng.choice(list(tensors))
  action = rng.choice(['drop', 'rename', 'copy', 'transpose', 'cut', 'flat', 'dtype', 'number'])
  value = tensors.pop(name)
  other = rng.choice([f'{name}x', 'x', name.replace('0', '9'), name.replace('block', 'blok', 1)])
  spoilt = {
    'drop': {},
    'rename': {other: value},
    'copy': {name: value, other: value},
    'transpose': {name: np.ascontiguousarray(value.T)},
    'cut': {name: value[: rng.randrange(max(1, len(value)))] if value.ndim else value},
    'flat': {name: value.reshape(-1)},
    'dtype': {name: value.astype(rng.choice(DTYPES))},
    'number': {name: _with_number(rng, value)},
  }
  tensors.update(spoilt[action])
  if opened.container == 'npz':
    write_npz(path, tensors)
  else:
    metadata = dict(opened.metadata)
    kept = {key: np.ascontiguousarray(x) for key, x in tensors.items() if x.dtype.kind != 'c'}
    safetensors.numpy.save_file(kept, path, metadata)
  return f'tensor {name}: {action}'


def _with_number(rng: random.Random, value: np.ndarray) -> np.ndarray:
  changed = np.array(value)
  if changed.size:
    odd = rng.choice([np.nan, np.inf, 1e30, 0.0])
    changed.reshape(-1)[rng.randrange(changed.size)] = odd
  return changed
