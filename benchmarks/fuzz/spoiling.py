"""Files that are spoilt: their bytes, JSON or tensors, or by what lies in their place."""

import contextlib
import json
import os
import random
from typing import Any

import numpy as np
import safetensors.numpy

from benchmarks.fuzz.values import changed_json, damaged
from glora_jax.files import STAMP
from glora_jax.models.containers import open_tensors, write_npz

KINDS = ('', '', '', '', 'fifo', 'folder', 'link', 'device')
DTYPES = ('float32', 'float16', 'float64', 'int64', 'int32', 'int8', 'uint8', 'bool', 'complex64')


def write(rng: random.Random, path: str, content: bytes) -> str:
  """Writes a file, or puts something that is none in its place; what."""
  with contextlib.suppress(FileNotFoundError):
    os.remove(path)
  kind = rng.choice(KINDS) if rng.random() < 0.1 else ''
  if kind == 'fifo':
    os.mkfifo(path)
  elif kind == 'folder':
    os.mkdir(path)
  elif kind:
    os.symlink('/dev/zero' if kind == 'device' else os.path.basename(path), path)
  else:
    with open(path, 'wb') as file:
      file.write(content)
  return kind


def write_json(rng: random.Random, path: str, content: Any) -> str:
  """Writes JSON that was changed, or its bytes; what was done."""
  for _ in range(rng.choice([0, 1, 1, 1, 2])):
    content = changed_json(rng, content)
  encoded = json.dumps(content).encode()
  if rng.random() < 0.3:
    encoded = damaged(rng, encoded)
  kind = write(rng, path, encoded)
  return f'{os.path.basename(path)} {kind} {encoded!r:.800}'


def spoil_json(rng: random.Random, path: str) -> str:
  """Changes a JSON file; what was done."""
  try:
    with open(path) as file:
      content = json.load(file)
  except ValueError:  # it is spoiled already
    return spoil_bytes(rng, path)
  return write_json(rng, path, content)


def spoil_bytes(rng: random.Random, path: str, most: int = 5) -> str:
  """Damages the bytes of a file; what was done."""
  with open(path, 'rb') as file:
    content = file.read()
  with open(path, 'wb') as file:
    file.write(damaged(rng, content, most))
  return f'bytes of {os.path.basename(path)}'


def spoil_header(rng: random.Random, path: str) -> str:
  """Changes what a safetensors file of ours says of itself; what was done."""
  with safetensors.safe_open(path, 'numpy') as file:
    content = changed_json(rng, json.loads(file.metadata()[STAMP]))
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(tensors, path, {STAMP: json.dumps(content)})
  return f'header {content!r:.800}'


def spoil_tensors(rng: random.Random, path: str) -> str:
  """Changes a tensor of a file: its name, shape, type or numbers; what was done."""
  opened = open_tensors(path)
  original = {name: np.array(opened.read(name)) for name in opened.specs}
  tensors = changed_arrays(rng, original)
  if opened.container == 'npz':
    write_npz(path, tensors)
  else:
    kept = {name: np.ascontiguousarray(x) for name, x in tensors.items() if x.dtype.kind in 'fiub'}
    safetensors.numpy.save_file(kept, path, dict(opened.metadata))
  changed = {
    name: f'{x.dtype} {x.shape}' for name, x in tensors.items() if x is not original.get(name)
  }
  return f'tensors {changed}, without {sorted(original.keys() - tensors.keys())}'


def changed_arrays(rng: random.Random, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Arrays of which one is missing, doubled, renamed, or of another shape, type or number."""
  name = rng.choice(list(arrays))
  value = np.array(arrays[name])
  other = rng.choice(['x', f'{name}/x', f'{name}x', '', '/', name.upper(), name.replace('0', '9')])
  changed = rng.choice(
    [
      {},
      {other: value},
      {other: value, name: value},
      {name: value.T},
      {name: np.atleast_1d(value)[: rng.choice([0, 1, -1])]},
      {name: value.reshape(-1)},
      {name: value.astype(rng.choice((*DTYPES, 'U4')))},
      {name: _with_number(rng, value)},
      {name: np.zeros((*value.shape, 1), value.dtype)},
    ]
  )
  return {**{key: x for key, x in arrays.items() if key != name}, **changed}


def _with_number(rng: random.Random, value: np.ndarray) -> np.ndarray:
  odd = [np.nan, np.inf, -1.0, 1e30, 0.0] if value.dtype.kind == 'f' else [-1, 127, 99, 1, 0]
  changed = np.array(value)
  if changed.size:
    # Of unsigned numbers the largest takes the place of -1.
    changed.reshape(-1)[rng.randrange(changed.size)] = np.array(rng.choice(odd)).astype(value.dtype)
  return changed
