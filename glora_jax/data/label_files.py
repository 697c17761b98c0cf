"""Lists and CSV files of images with labels."""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from glora_jax.data.examples import Files

_NAMED_AT_MOST = 3  # missing files that a sentence names


class LabelledPath(NamedTuple):
  """One image of a label file.

  Attributes:
    line: line number in the label file, from 1.
    path: path of the image as the label file has it.
    label: label as the label file has it.
  """

  line: int
  path: str
  label: str


def read_list(path: str | os.PathLike, root: str | os.PathLike, num_classes: int) -> Files:
  """Reads lines `path label`, as NOAH's VTAB folders and few-shot lists have them.

  Args:
    path: path of the list.
    root: folder that the paths in the list are relative to.
    num_classes: number of classes; labels are 0 and above, and below it.

  Raises:
    FileNotFoundError: there is no such list, or images that it names are not there; they are
      counted, and the first ones named.
    ValueError: a line without path and label, a label that is no class, or an image that occurs
      twice; with its line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no list {path}; lines of an image path and a label are expected there.'
    )
  with open(path) as file:
    rows = [_parse_line(number, line) for number, line in enumerate(file, 1) if line.strip()]
  for row in rows:
    _check_label(path, row, num_classes)
  require_unique(path, rows)
  if not rows:
    raise ValueError(f'{path} is empty; lines of an image path and a label are expected.')
  paths = [os.path.join(root, row.path) for row in rows]
  require_files(paths, path)
  return Files(paths, [int(row.label) for row in rows])


def _parse_line(number: int, line: str) -> LabelledPath:
  path, _, label = line.rstrip('\n').rpartition(' ')
  return LabelledPath(number, path, label)


def _check_label(path: str | os.PathLike, row: LabelledPath, num_classes: int) -> None:
  if not row.path or not row.label.lstrip('-').isdigit():
    text = f'{row.path} {row.label}'.strip()
    raise ValueError(f'{path}, line {row.line}: {text!r} does not hold a path and a whole number.')
  if not 0 <= int(row.label) < num_classes:
    raise ValueError(
      f'{path}, line {row.line}: the label {row.label} is none of the {num_classes} classes '
      f'0 to {num_classes - 1}.'
    )


def read_csv(path: str | os.PathLike) -> list[LabelledPath]:
  """Reads a CSV with the columns `path` and `label`, or of two columns without a header.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is empty, a row has no path or no label, or an image occurs twice; with
      its line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no file {path}; a CSV with the columns path and label is expected.'
    )
  with open(path, newline='', encoding='utf-8-sig') as file:
    lines = [(number, row) for number, row in enumerate(csv.reader(file), 1) if any(row)]
  if not lines:
    raise ValueError(f'{path} is empty; rows of a path and a label are expected.')
  path_column, label_column = 0, 1
  header = [cell.strip().lower() for cell in lines[0][1]]
  if {'path', 'label'} <= set(header):
    path_column, label_column = header.index('path'), header.index('label')
    lines = lines[1:]
  rows = []
  for number, cells in lines:
    cells = [cell.strip() for cell in cells]
    complete = len(cells) > max(path_column, label_column)
    if not complete or not cells[path_column] or not cells[label_column]:
      raise ValueError(
        f'{path}, line {number}: {",".join(cells)!r} does not hold a path and a label.'
      )
    rows.append(LabelledPath(number, cells[path_column], cells[label_column]))
  require_unique(path, rows)
  return rows


def require_unique(source: str | os.PathLike, rows: Iterable[LabelledPath]) -> None:
  """Raises ValueError for the first image that a label file names a second time."""
  first_lines = {}
  for row in rows:
    first_line = first_lines.setdefault(row.path, row.line)
    if first_line != row.line:
      raise ValueError(
        f'{source}, line {row.line}: {row.path} occurs a second time, first in line {first_line}.'
      )


def require_files(paths: Sequence[str], source: str | os.PathLike) -> None:
  """Raises FileNotFoundError where images are not there that a label file names.

  Args:
    paths: paths of all images.
    source: path of the label file.
  """
  missing = [path for path in paths if not os.path.isfile(path)]
  if missing:
    named = ', '.join(missing[:_NAMED_AT_MOST])
    instance = ' for instance' if len(missing) > _NAMED_AT_MOST else ''
    raise FileNotFoundError(
      f'{len(missing)} of {len(paths)} images that {source} names are not there, {named}{instance}.'
    )


@dataclasses.dataclass(frozen=True)
class ListedSplit:
  """A split whose images a list of lines `path label` names.

  Attributes:
    path: path of the list.
    roots: folders that the paths in the list may be relative to; the first that holds the first
      image is taken, else the last.
    num_classes: number of classes.
  """

  path: str
  roots: tuple[str, ...]
  num_classes: int

  def open(self) -> Files:
    """The images and labels of the list; errors as `read_list` raises them."""
    return read_list(self.path, self._root(), self.num_classes)

  def _root(self) -> str:
    *alternatives, last = self.roots
    if not alternatives or not os.path.isfile(self.path):
      return last
    with open(self.path) as file:
      first_image = file.readline().rpartition(' ')[0]
    holding = (root for root in alternatives if os.path.exists(os.path.join(root, first_image)))
    return next(holding, last)
