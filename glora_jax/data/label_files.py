"""Lists and CSV files of images with labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

from glora_jax.data.examples import Files


def read_list(
  path: str | os.PathLike, root: str | os.PathLike, num_classes: int | None = None
) -> Files:
  """Reads lines `path label`, as NOAH's VTAB folders and few-shot lists have them; paths are relative to `root`.

  Raises:
    FileNotFoundError: no such list, or images that it names are not there; they are counted, and the first ones named.
    ValueError: a line without path and label, a label that is no class, or an image that occurs twice; with its line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no list {path}; lines of an image path and a label are expected there.'
    )
  with open(path) as file:
    rows = [
      (number, *line.rstrip('\n').rpartition(' ')[::2])
      for number, line in enumerate(file, 1)
      if line.strip()
    ]
  return _files(path, root, rows, num_classes)


def read_csv(path: str | os.PathLike) -> tuple[list[tuple[int, str, str]], str]:
  """Rows (line number, path, label) of a CSV with the columns `path` and `label`, or of two columns without a header.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a row that has not both, with its line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no file {path}; a CSV with the columns path and label is expected.'
    )
  with open(path, newline='', encoding='utf-8-sig') as file:
    rows = [
      (number, [cell.strip() for cell in row])
      for number, row in enumerate(csv.reader(file), 1)
      if any(row)
    ]
  if not rows:
    raise ValueError(f'{path} is empty; rows of a path and a label are expected.')
  header = [cell.lower() for cell in rows[0][1]]
  columns = (
    (header.index('path'), header.index('label')) if {'path', 'label'} <= set(header) else (0, 1)
  )
  rows = rows[1:] if {'path', 'label'} <= set(header) else rows
  for number, cells in rows:
    if len(cells) <= max(columns) or not all(cells[column] for column in columns):
      raise ValueError(
        f'{path}, line {number}: {",".join(cells)!r} does not hold a path and a label.'
      )
  return [
    (number, cells[columns[0]], cells[columns[1]]) for number, cells in rows
  ], os.path.dirname(os.path.abspath(path))


def _files(path, root, rows, num_classes):
  seen, paths, labels = {}, [], []
  for number, name, label in rows:
    if not name or not label.lstrip('-').isdigit():
      raise ValueError(
        f'{path}, line {number}: {" ".join((name, label)).strip()!r} does not hold a path and a whole number.'
      )
    if int(label) < 0 or (num_classes is not None and int(label) >= num_classes):
      raise ValueError(
        f'{path}, line {number}: the label {label} is none of the {num_classes} classes 0 to {num_classes and num_classes - 1}.'
      )
    if name in seen:
      raise ValueError(
        f'{path}, line {number}: {name} occurs a second time, first in line {seen[name]}.'
      )
    seen[name] = number
    paths.append(os.path.join(root, name))
    labels.append(int(label))
  if not paths:
    raise ValueError(f'{path} is empty; lines of an image path and a label are expected.')
  require_files(paths, f'that {path} names')
  return Files(paths, labels)


def require_files(paths: Sequence[str], what: str) -> None:
  """Raises FileNotFoundError with the number of files that are not there, and the first of them."""
  if missing := [path for path in paths if not os.path.isfile(path)]:
    raise FileNotFoundError(
      f'{len(missing)} of {len(paths)} images {what} are not there, {", ".join(missing[:3])}'
      f'{" for instance" if len(missing) > 3 else ""}.'
    )
