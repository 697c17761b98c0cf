"""Reads back our own files of JSON, checked for their kind, format and shape.

The shape of JSON is an annotation: `dict[str, float]`, `list[int] | None`, a `TypedDict`. Errors
name the file, the place in it and what to do.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from glora_jax.checks import validate
from glora_jax.files import (
  AGAIN,
  STAMP,
  Path,
  check_stamp,
  damaged,
  open_regular,
  read_json,
  write_json,
)

log = logging.getLogger(__name__)

FORMAT_FILE = 'format.json'  # in which a folder says its kind and format


def read_record(path: Path, kind: str, shape: Any, remedy: str = AGAIN) -> Any:
  """Reads a JSON file that `files.write_json` wrote.

  Args:
    path: path of the file.
    kind: kind that the file must be of.
    shape: annotation of its content; a `TypedDict` allows further names.
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
  try:
    return validate(content, shape, '')
  except (TypeError, ValueError) as error:
    raise damaged(path, error, remedy) from None


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
