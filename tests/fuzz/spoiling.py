"""What hypothesis draws: values that are wrong somewhere, genomes, and files that are spoilt."""

import json
import math
import os
import shutil

import hypothesis.strategies as st
import numpy as np
import safetensors
import safetensors.numpy

from glora_jax.files import STAMP
from glora_jax.method.draws import random_genomes
from glora_jax.models.containers import open_tensors, write_npz

NUMBERS = (0, 1, -1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf, -math.inf)
TEXTS = ('', 'a', ' ', '\0', 'ü\n', '\ud800', '1', 'x' * 100_000)
JSON_VALUES = (None, True, False, *NUMBERS, *TEXTS, [], {}, {'a': 1}, [{}], [[]], ['a'], [1, 2, 3])
NASTY = (
  *(*JSON_VALUES, 10**5000, 1e-320, (), (1,), ('a',), (None,), (math.nan,), [[1]]),
  *({'a': math.nan}, {1: 2}, b'x', 1 + 2j, ...),
)
EXTREMES = (b'\xff' * 4, b'\0' * 4, b'\x7f\xff\xff\xff', b'\0\0\0\1')
PIECES = (
  b'[' * 100_000,
  b'{"a":' * 2000,
  b'9' * 5000,
  b'NaN',
  b'\r',
  b'"',
  b'\0',
  b'\xff\xfe',
  b',',
)
DTYPES = ('float16', 'float64', 'int64', 'int8', 'uint8', 'bool', 'complex64', 'U4')
ODD_PLACES = ('fifo', 'folder', 'itself', 'device', 'nothing')

nasty = st.sampled_from(NASTY)
counts = st.sampled_from([0, 1, 2, 3, 4, 8, 20, np.int64(2), 4.0])
rates = st.sampled_from([0, 0.0, 0.1, 0.5, 1.0, 1e-3, np.float32(0.5), 1 - 1e-12])


def near(*valid, odds=4):
  """One of the right values or strategies, but for one case of so many any value."""
  strategies = [each if isinstance(each, st.SearchStrategy) else st.just(each) for each in valid]
  right = st.one_of(strategies)
  return st.integers(1, odds).flatmap(lambda number: nasty if number == odds else right)


@st.composite
def damaged(draw, content, most=5):
  """Bytes after a few mutations: cut off, bits flipped, parts put in, copied or taken out."""
  changed = bytearray(content)
  for _ in range(draw(st.integers(1, most))):
    if not changed:
      break
    reach = draw(st.sampled_from([20, 200, len(changed)]))  # most of a format is at its beginning
    at = draw(st.integers(0, min(len(changed), reach) - 1))
    match draw(st.sampled_from(['cut', 'flip', 'extreme', 'insert', 'piece', 'copy', 'remove'])):
      case 'cut':
        del changed[at:]
      case 'flip':
        changed[at] ^= 1 << draw(st.integers(0, 7))
      case 'extreme':
        changed[at : at + 4] = draw(st.sampled_from(EXTREMES))
      case 'insert':
        changed[at:at] = draw(st.binary(max_size=20))
      case 'piece':
        changed[at:at] = draw(st.sampled_from(PIECES))
      case 'copy':
        start = draw(st.integers(0, len(changed) - 1))
        changed[at : at + 8] = changed[start : start + 8]
      case 'remove':
        del changed[at : at + draw(st.sampled_from([1, 2, 10]))]
  return bytes(changed)


@st.composite
def changed_json(draw, content, values=JSON_VALUES):
  """JSON with one node replaced, removed, doubled or renamed."""
  if not isinstance(content, dict | list) or not content or draw(st.integers(0, 6)) == 6:
    return draw(st.sampled_from(values))
  is_list = isinstance(content, list)
  items = dict(enumerate(content)) if is_list else dict(content)
  key = draw(st.sampled_from(sorted(items, key=str)))
  match draw(st.sampled_from(['inside'] * 7 + ['removed', 'added'])):
    case 'inside':
      items[key] = draw(changed_json(items[key], values))
    case 'removed':
      del items[key]
    case 'added':
      other = len(items) if is_list else draw(st.sampled_from(['', 'x', 'ü', 'format', STAMP]))
      items[other] = items[key] if is_list else draw(st.sampled_from(values))
  return list(items.values()) if is_list else items


@st.composite
def changed_arrays(draw, arrays):
  """Arrays of which one is missing, doubled, renamed, or has another shape, type or number."""
  name = draw(st.sampled_from(sorted(arrays)))
  value = np.array(arrays[name])
  kept = {key: array for key, array in arrays.items() if key != name}
  match draw(st.sampled_from(['missing', 'renamed', 'doubled', 'shape', 'type', *['number'] * 4])):
    case 'renamed' | 'doubled' as way:
      other = draw(st.sampled_from(['x', f'{name}/x', f'{name}x', '', '/', name.upper()]))
      return {**kept, other: value} if way == 'renamed' else {**kept, other: value, name: value}
    case 'shape':
      shapes = [value.T, np.atleast_1d(value)[:0], np.atleast_1d(value)[:1], value.reshape(-1)]
      value = draw(st.sampled_from([*shapes, value[..., None]]))
    case 'type' if value.dtype.kind != 'U':
      value = value.astype(draw(st.sampled_from(DTYPES)))
    case 'number' if value.size:
      odd = [np.nan, np.inf, -1.0, 1e30] if value.dtype.kind == 'f' else [-1, 127, 99, 1, 0]
      at = draw(st.integers(0, value.size - 1))
      value.reshape(-1)[at] = np.array(draw(st.sampled_from(odd))).astype(value.dtype)
    case 'missing':
      return kept
  return {**kept, name: value}


def spoil(draw, path):
  """Spoils a file as its format allows, or puts something in its place that is not a file."""
  ways = {'.json': ['json', 'json'], '.npz': ['tensors'], '.safetensors': ['tensors', 'header']}
  way = draw(st.sampled_from(['bytes', 'bytes', 'place', *2 * ways.get(path.suffix, [])]))
  match way:
    case 'bytes':
      path.write_bytes(draw(damaged(path.read_bytes())))
    case 'json':
      path.write_text(json.dumps(draw(changed_json(json.loads(path.read_text())))))
    case 'header':
      with safetensors.safe_open(path, 'numpy') as file:
        header = dict(file.metadata() or {})
      if STAMP in header:
        header[STAMP] = json.dumps(draw(changed_json(json.loads(header[STAMP]))))
      safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, header)
    case 'tensors':
      _spoil_tensors(draw, path)
    case 'place':
      odd_place(draw, path)


def _spoil_tensors(draw, path):
  opened = open_tensors(str(path))
  tensors = draw(changed_arrays({name: np.array(opened.read(name)) for name in opened.specs}))
  if opened.container == 'npz':
    write_npz(str(path), tensors)
  else:
    kept = {name: np.ascontiguousarray(x) for name, x in tensors.items() if x.dtype.kind in 'fiub'}
    safetensors.numpy.save_file(kept, path, dict(opened.metadata))


def odd_place(draw, path):
  """Puts a FIFO, a folder, a link or nothing in a file's place; which."""
  path.unlink(missing_ok=True)
  kind = draw(st.sampled_from(ODD_PLACES))
  if kind == 'fifo':
    os.mkfifo(path)
  elif kind == 'folder':
    path.mkdir()
  elif kind != 'nothing':
    path.symlink_to('/dev/zero' if kind == 'device' else path.name)
  return kind


def spoilt_copy(draw, source, target):
  """Copies a folder, in which up to two files are spoilt."""
  shutil.copytree(source, target, dirs_exist_ok=True)
  for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
    files = [path for path in target.rglob('*') if path.is_file() and not path.is_symlink()]
    if files:
      # Random names, as Orbax gives them, decide nothing.
      files.sort(key=lambda path: (path.stat().st_size, str(path)))
      try:
        spoil(draw, draw(st.sampled_from(files)))
      except (ValueError, OSError, safetensors.SafetensorError):
        continue  # it is spoilt already


@st.composite
def codes(draw, spec, leading=()):
  """Genomes of a spec [*leading, layer, 5], now and then with wrong codes, types or shapes."""
  rng = np.random.default_rng(draw(st.integers(0, 50)))
  population = random_genomes(rng, spec, int(np.prod(leading, initial=1)))
  genome = population.reshape(*leading, len(spec), 5)
  match draw(st.sampled_from(['right'] * 6 + ['code', 'type', 'shape', 'list', 'other', 'more'])):
    case 'code':
      genome[..., 0, draw(st.integers(0, 4))] = draw(st.sampled_from([-1, 9, 127, -128]))
    case 'type':
      types = ['int64', 'uint8', 'float32', 'bool', 'uint64', 'complex64', 'object', 'U3']
      return genome.astype(draw(st.sampled_from(types)))
    case 'shape':
      shapes = [(), (0,), (5,), (1, 5), (2, 4), (0, len(spec), 5), (len(spec), 0), (1, 1, 1, 5)]
      return np.zeros(draw(st.sampled_from(shapes)), np.int8)
    case 'list':
      return genome.tolist()
    case 'other':
      return draw(nasty)
    case 'more':
      return np.stack([genome] * draw(st.integers(1, 2)))
  return genome
