"""Lists and CSV files of images with labels."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from glora_jax.data.examples import Files
from glora_jax.data.image import is_image
from glora_jax.files import open_regular
from glora_jax.limits import listed, printable

_NAMED_AT_MOST = 3  # missing files that a sentence names
_LONGEST_QUOTE = 100  # characters of a line that a sentence repeats
_MOST_BYTES = 2**30  # of a label file
_WHOLE_NUMBER = re.compile('-?[0-9]{1,18}')


class LabelledPath(NamedTuple):
  """One image of a label file.

  Attributes:
    line: line number in the label file, from 1.
    path: path of the image as the label file has it.
    label: label as the label file has it.
    split: split as the label file has it; '' where it says none.
  """

  line: int
  path: str
  label: str
  split: str = ''


def read_list(path: str | os.PathLike, root: str | os.PathLike, num_classes: int) -> Files:
  """Reads lines `path label`, as NOAH's VTAB folders and few-shot lists have them.

  Args:
    path: path of the list.
    root: folder that the paths in the list are relative to.
    num_classes: number of classes; labels are 0 and above, and below it.

  Raises:
    FileNotFoundError: there is no such list, or images that it names are not there; they are
      counted, and the first ones named.
    ValueError: the list is no UTF-8 text; a line has no path and label, or a label that is no
      class; or an image occurs twice; with its line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no list {path}; lines of an image path and a label are expected there.'
    )
  rows = []
  for number, line in enumerate(io.StringIO(_read_text(path), newline=None), 1):
    if line.strip():
      image, _, label = line.rstrip('\n').rpartition(' ')
      rows.append(LabelledPath(number, image, label))
      _check_label(path, rows[-1], num_classes)
  if not rows:
    raise ValueError(f'{path} is empty; lines of an image path and a label are expected.')
  _require_unique(path, rows, root)
  paths = [os.path.join(root, row.path) for row in rows]
  require_files(paths, path)
  return Files(paths, [int(row.label) for row in rows])


def _read_text(path: str | os.PathLike) -> str:
  """The text of a file, with its line ends.

  Raises:
    ValueError: it is not UTF-8, or so long that it is something else.
  """
  size = os.path.getsize(path)
  if size > _MOST_BYTES:
    raise ValueError(f'{path} has {size:,} bytes, more than a list of images that is read here.')
  try:
    with open_regular(path) as file:
      return file.read().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = error.object.count(b'\n', 0, error.start) + 1
    raise ValueError(
      f'{path}, line {line} is no UTF-8 text; save the file with the encoding UTF-8.'
    ) from error


def _check_label(path: str | os.PathLike, row: LabelledPath, num_classes: int) -> None:
  if not row.path or not _WHOLE_NUMBER.fullmatch(row.label):
    text = _shorten(f'{row.path} {row.label}'.strip())
    raise ValueError(f'{path}, line {row.line}: {text!r} does not hold a path and a whole number.')
  if not 0 <= int(row.label) < num_classes:
    raise ValueError(
      f'{path}, line {row.line}: the label {row.label} is none of the {num_classes} classes '
      f'0 to {num_classes - 1}.'
    )


def _shorten(text: str) -> str:
  return text if len(text) <= _LONGEST_QUOTE else f'{text[:_LONGEST_QUOTE]}...'


def read_csv(path: str | os.PathLike) -> list[LabelledPath]:
  """Reads a CSV of images.

  Its header has the columns `path` and `label`, and `split` where it says who goes where; without a
  header they are path and label.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is no UTF-8 text or no CSV, is empty, or has other columns; a row has no
      path or no label or more fields than there are columns; or an image occurs twice; with its
      line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no file {path}; a CSV with the columns path and label is expected.'
    )
  # A quote behind a comma and a space opens a field, too: it was a letter of the label.
  reader = csv.reader(io.StringIO(_read_text(path), newline=''), skipinitialspace=True)
  try:
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
  except csv.Error as error:
    raise ValueError(
      f'{path}, line {reader.line_num} is no row of a CSV ({error}); is a quote left open?'
    ) from error
  if not rows:
    raise ValueError(f'{path} is empty; rows of a path and a label are expected.')
  first_line, header = rows[0]
  columns = [name.lower() for name in header]
  if {'path', 'label'} <= set(columns):
    rows = rows[1:]
  else:
    _require_image(path, first_line, header)
    columns = ['path', 'label']
  wanted = ('path', 'label', 'split') if 'split' in columns else ('path', 'label')
  if repeated := [name for name in wanted if columns.count(name) > 1]:
    raise ValueError(
      f'{path}, line {first_line}: {_quote(header)} has the column {repeated[0]} more than once; '
      'rename those that are not meant.'
    )
  if not rows:
    raise ValueError(f'{path} has a header alone; rows of a path and a label are expected.')
  labelled = []
  for line, cells in rows:
    if any(cells[len(columns) :]):
      raise ValueError(
        f'{path}, line {line}: {_quote(cells)} has {len(cells)} fields in place of '
        f'{len(columns)}; a field with a comma in it stands between double quotes.'
      )
    row = dict(zip(columns, cells, strict=False))
    if not all(map(row.get, wanted)):
      expected = ' and '.join(f'a {name}' for name in wanted)
      raise ValueError(f'{path}, line {line}: {_quote(cells)} does not hold {expected}.')
    labelled.append(LabelledPath(line, *map(row.__getitem__, wanted)))
  _require_unique(path, labelled, os.path.dirname(path))
  return labelled


def _require_image(path: str | os.PathLike, line: int, cells: Sequence[str]) -> None:
  """Raises ValueError where the first row of a CSV without a header names no image."""
  first = cells[0]
  is_file = os.path.isfile(os.path.join(os.path.dirname(path), first))
  if not (is_file or is_image(first)) or {'path', 'label'} & {cell.lower() for cell in cells}:
    remedy = 'rename its columns, or put a path and a label into every line'
    if len(cells) == 1 and re.search('[;\t]', first):
      remedy = 'separate its columns by commas'
    raise ValueError(
      f'{path}, line {line}: {_quote(cells)} names no image, and is no header with the columns '
      f'path and label; {remedy}.'
    )


def _quote(cells: Sequence[str]) -> str:
  return repr(_shorten(','.join(cells)))


def _require_unique(
  source: str | os.PathLike, rows: Sequence[LabelledPath], root: str | os.PathLike
) -> None:
  """Raises ValueError for the first image that a label file names a second time.

  Args:
    source: path of the label file.
    rows: its rows.
    root: folder that its paths are relative to.
  """
  first_with: dict[str, LabelledPath] = {}
  for row in rows:
    first = first_with.setdefault(os.path.normpath(os.path.join(root, row.path)), row)
    if first is not row:
      written_otherwise = '' if first.path == row.path else f' as {printable(first.path)}'
      raise ValueError(
        f'{source}, line {row.line}: {printable(row.path)} occurs a second time, first in line '
        f'{first.line}{written_otherwise}.'
      )


def require_files(paths: Sequence[str], source: str | os.PathLike) -> None:
  """Raises FileNotFoundError where images are not there that a label file names.

  Args:
    paths: paths of all images.
    source: path of the label file.
  """
  missing = [path for path in paths if not os.path.isfile(path)]
  if missing:
    named = listed(missing[:_NAMED_AT_MOST])
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
    lines = io.StringIO(_read_text(self.path), newline=None)
    first_line = next((line for line in lines if line.strip()), '')
    first_image = first_line.rpartition(' ')[0]
    holding = (root for root in alternatives if os.path.exists(os.path.join(root, first_image)))
    return next(holding, last)
