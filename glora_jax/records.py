"""Files of ours read back: JSON and npz of the kind, the format and the shape that were written.

The shape of JSON is an annotation: `dict[str, float]`, a `TypedDict`, `list[int] | None`. That of
arrays is an `Array` for each name. What does not fit is one sentence that names the file, the place
in it and what to do; a bug of ours in reading cannot hide behind it, since nothing is caught.
"""

from __future__ import annotations

import json
import logging
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from glora_jax.files import (
  AGAIN,
  STAMP,
  LaterVersionError,
  Path,
  check_stamp,
  damaged,
  open_regular,
  read_arrays,
  read_json,
  write_json,
)
from glora_jax.limits import shown

log = logging.getLogger(__name__)

FORMAT_FILE = 'format.json'  # in which a folder says its kind and format

_NOUNS = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a finite number',
  str: 'a text',
  types.NoneType: 'null',
}


class Array(NamedTuple):
  """What an array of a file must be.

  Attributes:
    kind: kinds of its dtype as NumPy's letters: 'i' whole numbers, 'f' numbers, 'b' truths, 'U' a
      text.
    shape: its sides; a text stands for any length, the same wherever it occurs.
    finite: whether its numbers are finite.
  """

  kind: str
  shape: tuple[int | str, ...] = ()
  finite: bool = True


def read_record(path: Path, kind: str, shape: Any, remedy: str = AGAIN) -> Any:
  """Reads a JSON file that `files.write_json` wrote.

  Args:
    path: path of the file.
    kind: kind that the file must be of.
    shape: annotation of its content; a `TypedDict` takes more names than it has.
    remedy: what to do where the file is damaged.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: the file is damaged, of another kind, of a later version, or holds something else.

  Example:
    >>> import os, tempfile
    >>> from glora_jax.files import write_json
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = os.path.join(folder, 'seconds.json')
    ...   write_json(path, {'test': 1.5}, 'seconds')
    ...   read_record(path, 'seconds', dict[str, float])
    {'test': 1.5}
  """
  content = read_json(path, kind, remedy)
  if (reason := mismatch(content, shape)) is not None:
    raise damaged(path, reason, remedy)
  return content


def read_array_record(
  path: Path, kind: str, expected: Mapping[str, Array], remedy: str = AGAIN
) -> dict[str, np.ndarray]:
  """Reads an npz file that `files.write_arrays` wrote.

  Args:
    path: path of the file.
    kind: kind that the file must be of.
    expected: the arrays that it must hold, by name, and no other.
    remedy: what to do where the file is damaged.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: the file is damaged, of another kind, of a later version, or holds something else.
  """
  arrays = read_arrays(path, kind, remedy)
  if (reason := mismatch_of_arrays(arrays, expected)) is not None:
    raise damaged(path, reason, remedy)
  return arrays


def stamp_folder(folder: Path, kind: str) -> None:
  """Writes into a folder of which kind and format it is.

  Raises:
    OSError: it cannot be written.
  """
  write_json(os.path.join(folder, FORMAT_FILE), {}, kind)


def check_folder(folder: Path, kind: str) -> None:
  """Checks what a folder says of itself; one that says nothing is new.

  Raises:
    ValueError: it is of another kind, or of a later version.
  """
  path = os.path.join(folder, FORMAT_FILE)
  if os.path.exists(path):
    read_record(path, kind, dict[str, Any], 'remove it')


def read_if_whole(path: Path, kind: str) -> dict[str, np.ndarray] | None:
  """The arrays of an npz file that can be made again; None where it is missing or damaged.

  Args:
    path: path of the file.
    kind: kind that the file must be of.

  Raises:
    LaterVersionError: a later version wrote it.
  """
  try:
    return read_arrays(path, kind)
  except LaterVersionError:
    raise
  except (OSError, ValueError):
    return None


def read_lines(path: Path, kind: str, shape: Any) -> list[Any]:
  """Reads a file with a JSON text in every line, but for lines that are damaged.

  A kill cuts off the last line; a warning says how many others there are. The first line says kind
  and format.

  Args:
    path: path of the file.
    kind: kind that the file must be of.
    shape: annotation of the content of a line.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: the file is of another kind, or of a later version.
  """
  lines, damaged_lines = [], 0
  with open_regular(path) as file:
    for text in file:
      try:
        content = json.loads(text)
      except (ValueError, RecursionError):
        content = None
      if isinstance(content, dict) and content.keys() == {STAMP}:
        check_stamp(path, content[STAMP], kind)
      elif mismatch(content, shape) is None:
        lines.append(content)
      elif text.endswith(b'\n'):
        damaged_lines += 1
  if damaged_lines:
    log.warning('%s: %d lines are damaged and left out.', path, damaged_lines)
  return lines


def mismatch(value: Any, shape: Any, where: str = '') -> str | None:
  """Why a value of JSON does not fit an annotation; None where it does.

  Args:
    value: what `json` read.
    shape: bool, int, float, str, None, `Any`, `Literal`, a union, list, dict or `TypedDict`.
    where: what the sentence calls the value.

  Example:
    >>> mismatch({'test': [1, 'two']}, dict[str, list[int]])
    "'two' at test[1] is not a whole number"
  """
  if shape is Any:
    return None
  if typing.is_typeddict(shape):
    return _mismatch_of_typed_dict(value, shape, where)
  origin, arguments = typing.get_origin(shape), typing.get_args(shape)
  if origin in (typing.Union, types.UnionType):
    reasons = [mismatch(value, member, where) for member in arguments]
    return None if None in reasons else reasons[0]
  if origin is Literal:
    return None if value in arguments else _is_not(value, where, f'one of {arguments}')
  if origin is list:
    if not isinstance(value, list):
      return _is_not(value, where, 'a list')
    return _first(mismatch(item, arguments[0], f'{where}[{n}]') for n, item in enumerate(value))
  if origin is dict:
    if not isinstance(value, dict):
      return _is_not(value, where, 'an object')
    return _first(mismatch(item, arguments[1], _joined(where, key)) for key, item in value.items())
  shape = types.NoneType if shape is None else shape
  return None if _is_a(value, shape) else _is_not(value, where, _NOUNS[shape])


def mismatch_of_arrays(
  arrays: Mapping[str, np.ndarray], expected: Mapping[str, Array]
) -> str | None:
  """Why arrays are not those that are expected; None where they are.

  Example:
    >>> arrays = {'genomes': np.zeros((3, 7, 5), np.int8), 'loss': np.zeros(2)}
    >>> expected = {'genomes': Array('i', ('subnet', 7, 5)), 'loss': Array('f', ('subnet',))}
    >>> mismatch_of_arrays(arrays, expected)
    'loss is float64 [2] and not [3]'
  """
  if arrays.keys() != expected.keys():
    lacking, unknown = expected.keys() - arrays.keys(), arrays.keys() - expected.keys()
    return f'it lacks {min(lacking)}' if lacking else f'it has {min(unknown)}, which is unknown'
  lengths: dict[str, int] = {}
  for name, array in arrays.items():
    reason = _mismatch_of_array(array, expected[name], lengths)
    if reason is not None:
      return f'{name} {reason}'
  return None


def _mismatch_of_array(array: np.ndarray, expected: Array, lengths: dict[str, int]) -> str | None:
  """Why an array is not as expected; notes in `lengths` the sides that it is the first to have."""
  described = f'is {array.dtype} {list(array.shape)}'
  if array.dtype.kind not in expected.kind:
    return f'{described} and not of the kind {expected.kind}'
  if array.ndim != len(expected.shape):
    return f'{described} and has not {len(expected.shape)} axes'
  wanted = [
    lengths.setdefault(side, length) if isinstance(side, str) else side
    for side, length in zip(expected.shape, array.shape, strict=True)
  ]
  if wanted != list(array.shape):
    return f'{described} and not {wanted}'
  if expected.finite and array.dtype.kind == 'f' and not np.isfinite(array).all():
    return f'{described} with numbers that are not finite'
  return None


def _mismatch_of_typed_dict(value: Any, shape: Any, where: str) -> str | None:
  if not isinstance(value, dict):
    return _is_not(value, where, 'an object')
  if lacking := shape.__required_keys__ - value.keys():
    return f'{_joined(where, min(lacking))} is missing'
  hints = typing.get_type_hints(shape)
  return _first(
    mismatch(value[name], hint, _joined(where, name))
    for name, hint in hints.items()
    if name in value
  )


def _first(reasons: Any) -> str | None:
  return next((reason for reason in reasons if reason is not None), None)


def _joined(where: str, name: str) -> str:
  return f'{where}.{name}' if where else name


def _is_not(value: Any, where: str, wanted: str) -> str:
  place = f' at {where}' if where else ''
  return f'{shown(value)}{place} is not {wanted}'


def _is_a(value: Any, kind: type) -> bool:
  """Whether a value of JSON is of a type; a whole number is a number, true is none."""
  if kind is float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (isinstance(value, int) or math.isfinite(value))
  return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
