"""Files of runs and of images: arrays, lines of JSON, tables as CSV."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from glora_jax import files
from glora_jax.checks import printable, validate
from glora_jax.files import STAMP, Path, atomic, check_stamp, open_regular

log = logging.getLogger(__name__)


class Array(NamedTuple):
  """The kind and shape that an array of a file must have.

  Attributes:
    kind: kinds of its dtype as NumPy's letters: 'i' integers, 'f' floats, 'b' booleans.
    shape: its sides; a text stands for any length, the same each time it occurs.
    finite: whether its numbers are finite.
  """

  kind: str
  shape: tuple[int | str, ...] = ()
  finite: bool = True


def sha256_of(path: Path) -> str:
  """SHA-256 of a file's contents, hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_array(path: Path, array: np.ndarray) -> None:
  """Writes an array with a checksum as an npz file, whole or not at all.

  Raises:
    OSError: it cannot be written there.
  """
  with atomic(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, array=array)


def read_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray | None:
  """The array of an npz file that can be made again; None if missing, damaged or different."""
  try:
    with open_regular(path) as file, np.load(file, allow_pickle=False) as content:
      array = content['array']
  except Exception:  # zipfile, NumPy and the parser of its headers each raise their own
    return None
  return array if (array.shape, array.dtype) == (shape, np.dtype(dtype)) else None


def check_arrays(arrays: Mapping[str, np.ndarray], expected: Mapping[str, Array]) -> None:
  """Raises ValueError with the reason if arrays are not as expected.

  Example:
    >>> arrays = {'genomes': np.zeros((3, 7, 5), np.int8), 'loss': np.zeros(2)}
    >>> check_arrays(arrays, {'genomes': Array('i', ('n', 7, 5)), 'loss': Array('f', ('n',))})
    Traceback (most recent call last):
    ValueError: loss is float64 [2], expected [3]
  """
  if lacking := expected.keys() - arrays.keys():
    raise ValueError(f'it lacks {min(lacking)}')
  if unknown := arrays.keys() - expected.keys():
    raise ValueError(f'it has the unknown {min(unknown)}')
  lengths: dict[int | str, int] = {}
  for name, array in arrays.items():
    kind, shape, finite = expected[name]
    described = f'{name} is {array.dtype} {list(array.shape)}'
    if array.dtype.kind not in kind:
      raise ValueError(f'{described}, expected a dtype of kind {kind}')
    for side, length in zip(shape, array.shape, strict=False):
      if isinstance(side, str):
        lengths.setdefault(side, length)
    wanted = [lengths.get(side, side) for side in shape]
    if wanted != list(array.shape):
      raise ValueError(f'{described}, expected {wanted}')
    if finite and array.dtype.kind == 'f' and not np.isfinite(array).all():
      raise ValueError(f'{described} with non-finite numbers')


def read_lines(path: Path, kind: str, shape: Any) -> list[Any]:
  """Reads a file with a JSON text in every line, except damaged lines.

  A kill cuts off the last line; a warning counts other damaged lines. The first line has kind and
  format.

  Args:
    path: path of the file.
    kind: kind that the file must be of.
    shape: annotation of the content of a line, see `checks.validate`.

  Raises:
    OSError: there is no such file, or it cannot be read.
    ValueError: the file is of another kind, or of a later version.
  """
  lines, damaged_lines = [], 0
  with open_regular(path) as file:
    for text in file:
      try:
        content = json.loads(text)
        is_stamp = isinstance(content, dict) and content.keys() == {STAMP}
        if not is_stamp:
          content = validate(content, shape, '')
      except (TypeError, ValueError, RecursionError):
        damaged_lines += text.endswith(b'\n')
        continue
      if is_stamp:
        check_stamp(path, content[STAMP], kind)
      else:
        lines.append(content)
  if damaged_lines:
    log.warning('%s: ignoring %d damaged lines.', path, damaged_lines)
  return lines


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """Writes a CSV, whole or not at all; the names of files in it keep their bytes.

  Args:
    path: path of the file.
    header: names of the columns.
    rows: the lines, which may be made while they are written.

  Raises:
    OSError: it cannot be written there.
  """
  with (
    atomic(path) as temporary,
    open(temporary, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file,
  ):
    csv.writer(file).writerows(itertools.chain([header], rows))


def write_predictions(path: Path, classes: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
  """Writes predictions with `write_csv`.

  Args:
    path: path of the file.
    classes: names of the classes.
    rows: for each image its file, the name of its class, the model's answer, and the probability of
      each class; unknown values are empty.
  """
  write_csv(path, ['file', 'label', 'answer', *classes], rows)


def require_free(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
  """Checks that a command may write a file.

  Args:
    path: path of the file.
    overwrite: whether it may replace a file.
    inputs: paths of the files that the command reads, which it never replaces.

  Raises:
    FileExistsError: it may not write the file.
  """
  files.require_other_than(path, inputs)
  if os.path.lexists(path) and not overwrite:
    raise FileExistsError(
      f'{printable(path)} already exists; choose another path, or pass --overwrite to replace it.'
    )
