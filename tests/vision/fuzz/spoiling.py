"""What hypothesis draws: values that are wrong somewhere, and files that are spoilt."""

import functools
import json
import math
import os
import shutil

import hypothesis.strategies as st
import safetensors
import safetensors.numpy

from glora_jax.files import STAMP
from glora_jax.vision.models.checkpoint import read_checkpoint

NUMBERS = (0, 1, -1, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, math.nan, math.inf)
TEXTS = ('', 'a', '\0', 'ü\n', '\ud800', '1', 'x' * 100_000)
JSON_VALUES = (None, True, *NUMBERS, *TEXTS, [], {}, {'a': 1}, [{}], [1, 2, 3])
NASTY = (*JSON_VALUES, 10**5000, (), ('a',), (math.nan,), {1: 2}, b'x', 1 + 2j, ...)
PIECES = (b'[' * 100_000, b'9' * 5000, b'\xff' * 4, b'\0' * 4, b'NaN', b'"', b',')
# What puts something in a file's place; `str` leaves nothing there.
PLACES = (
  *(os.mkfifo, os.mkdir, str),
  functools.partial(os.symlink, '/dev/zero'),
  lambda path: path.symlink_to(path),
)


@st.composite
def damaged(draw, content):
  """Bytes after a few mutations: cut off, bits flipped, parts put in or taken out."""
  changed = bytearray(content)
  for _ in range(draw(st.integers(1, 5))):
    if not changed:
      break
    reach = draw(st.sampled_from([20, 200, len(changed)]))  # most of a format is at its beginning
    at = draw(st.integers(0, min(len(changed), reach) - 1))
    match draw(st.sampled_from(['cut', 'flip', 'insert', 'remove'])):
      case 'cut':
        del changed[at:]
      case 'flip':
        changed[at] ^= 1 << draw(st.integers(0, 7))
      case 'insert':
        changed[at:at] = draw(st.sampled_from(PIECES))
      case 'remove':
        del changed[at : at + draw(st.sampled_from([1, 2, 10]))]
  return bytes(changed)


@st.composite
def changed_json(draw, content):
  """JSON with one node replaced, removed or added."""
  if not isinstance(content, dict | list) or not content or draw(st.integers(0, 6)) == 6:
    return draw(st.sampled_from(JSON_VALUES))
  items = dict(enumerate(content) if isinstance(content, list) else content)
  key = draw(st.sampled_from(sorted(items, key=str)))
  match draw(st.sampled_from(['inside'] * 7 + ['removed', 'added'])):
    case 'inside':
      items[key] = draw(changed_json(items[key]))
    case 'removed':
      del items[key]
    case 'added':
      items['x'] = items[key]
  return list(items.values()) if isinstance(content, list) else items


def spoil(draw, path):
  """Spoils a file, or puts something in its place that is not a file.

  Tensors that are missing or of another shape, type or number are in tables of refusals.
  """
  ways = {'.json': ['json'] * 2, '.safetensors': ['header'] * 2}.get(path.suffix, [])
  match draw(st.sampled_from(['bytes', 'place', *ways])):
    case 'bytes':
      path.write_bytes(draw(damaged(path.read_bytes())))
    case 'json':
      path.write_text(json.dumps(draw(changed_json(json.loads(path.read_text())))))
    case 'header':
      header = {**read_checkpoint(str(path)).metadata}
      if STAMP in header:
        header[STAMP] = json.dumps(draw(changed_json(json.loads(header[STAMP]))))
      safetensors.numpy.save_file(safetensors.numpy.load_file(path), path, header)
    case 'place':
      path.unlink()
      draw(st.sampled_from(PLACES))(path)


def spoilt_copy(draw, source, target):
  """Copies a folder, in which up to two files are spoilt; how many."""
  shutil.copytree(source, target, dirs_exist_ok=True)
  number = draw(st.sampled_from([1, 1, 1, 0, 2]))
  for _ in range(number):
    files = [path for path in target.rglob('*') if path.is_file() and not path.is_symlink()]
    if files:
      try:
        spoil(draw, draw(st.sampled_from(sorted(files))))
      except (ValueError, OSError, ImportError, RecursionError, safetensors.SafetensorError):
        continue  # it is spoilt already
  return number
