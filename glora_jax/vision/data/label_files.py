"""Lists and CSV files of images with labels, line by line."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

from glora_jax.checks import listed, printable, shown
from glora_jax.files import open_regular
from glora_jax.vision.data.image import is_image
from glora_jax.vision.data.task import Files

_MOST_BYTES = 2**30  # of a label file
WHOLE_NUMBER = re.compile('[0-9]{1,18}')


class LabelledPath(NamedTuple):
  """One image of a label file.

  Attributes:
    line: line number in the label file, from 1.
    path: path of the image, as in the label file.
    label: label, as in the label file.
    cells: all cells of a CSV's row, by the name of the column in lower case.
  """

  line: int
  path: str
  label: str
  cells: Mapping[str, str] = {}


def read_list(path: str, roots: Sequence[str], num_classes: int) -> Files:
  """The images and labels of a list of lines `path label`: NOAH's VTAB folders, few-shot lists.

  Args:
    path: path of the list.
    roots: folders that the paths in the list may be relative to: the first that has the first
      image is used, else the last.
    num_classes: number of classes; labels are 0 and above, and below it.

  Raises:
    FileNotFoundError: the list does not exist, or images in it do not; they are counted, and the
      first ones named.
    ValueError: the list is not UTF-8 text, a line has no path and label or an invalid label, or an
      image occurs twice; with its line number.
  """
  rows = []
  expected = 'expected lines with an image path and a label'
  for number, line in enumerate(io.StringIO(_text_of(path, expected), newline=None), 1):
    if not line.strip():
      continue
    image, _, label = line.rstrip('\n').rpartition(' ')
    if not image or not WHOLE_NUMBER.fullmatch(label):
      _refuse(path, number, 'is not a path and an integer', line.strip())
    if int(label) >= num_classes:
      raise ValueError(
        f'{path}, line {number}: the label {label} is not one of the classes 0 to '
        f'{num_classes - 1}.'
      )
    rows.append(LabelledPath(number, image, label))
  if not rows:
    raise ValueError(f'{path} is empty; {expected}.')
  holding = (root for root in roots if os.path.exists(os.path.join(root, rows[0].path)))
  root = next(holding, roots[-1])
  return Files(image_paths(path, rows, root), [int(row.label) for row in rows], root)


def _text_of(path: str | os.PathLike, expected: str) -> str:
  """The text of a file, with its line ends.

  Raises:
    FileNotFoundError: it does not exist.
    ValueError: it is not UTF-8, or too long for a list of images.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f'There is no file {path}; {expected}.')
  size = os.path.getsize(path)
  if size > _MOST_BYTES:
    raise ValueError(f'{path} has {size:,} bytes, too many for a list of images.')
  try:
    with open_regular(path) as file:
      return file.read().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = error.object.count(b'\n', 0, error.start) + 1
    raise ValueError(f'{path}, line {line} is not UTF-8; save the file as UTF-8.') from error


def _refuse(path: str | os.PathLike, line: int, what: str, *cells: str) -> NoReturn:
  """Raises ValueError that quotes a line of a label file."""
  raise ValueError(f'{path}, line {line}: {shown(",".join(cells))} {what}.')


def image_paths(source: str | os.PathLike, rows: Sequence[LabelledPath], root: str) -> list[str]:
  """The paths of the images that a label file names.

  Args:
    source: path of the label file.
    rows: its rows.
    root: folder that its paths are relative to.

  Raises:
    ValueError: an image occurs twice.
    FileNotFoundError: images do not exist.
  """
  paths = [os.path.join(root, row.path) for row in rows]
  first_with: dict[str, LabelledPath] = {}
  for row, path in zip(rows, paths, strict=True):
    first = first_with.setdefault(os.path.normpath(path), row)
    if first is not row:
      written_otherwise = '' if first.path == row.path else f' as {printable(first.path)}'
      raise ValueError(
        f'{source}, line {row.line}: {printable(row.path)} is already in line '
        f'{first.line}{written_otherwise}.'
      )
  if missing := [path for path in paths if not os.path.isfile(path)]:
    raise FileNotFoundError(
      f'{len(missing)} of {len(paths)} images in {source} do not exist: {listed(missing)}.'
    )
  return paths


def read_csv(path: str | os.PathLike) -> list[LabelledPath]:
  """Reads a CSV of images.

  Its header has the columns `path` and `label`, and `split` if images are split already. Without a
  header the columns are path and label.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is not UTF-8 text, not a CSV, is empty, or has other columns; or a row has
      no path, no label, or more fields than there are columns; with its line number.
  """
  text = _text_of(path, 'expected a CSV with the columns path and label')
  # A quote after a comma and a space also opens a field; else it would be part of the label.
  reader = csv.reader(io.StringIO(text, newline=''), skipinitialspace=True)
  try:
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
  except csv.Error as error:
    raise ValueError(
      f'{path}, line {reader.line_num} is not a CSV row ({error}); is a quote left open?'
    ) from error
  if not rows:
    raise ValueError(f'{path} is empty; expected rows with a path and a label.')
  first_line, header = rows[0]
  columns = [name.lower() for name in header]
  if {'path', 'label'} <= set(columns):
    rows = rows[1:]
  else:
    is_file = os.path.isfile(os.path.join(os.path.dirname(path), header[0]))
    if not (is_file or is_image(header[0])) or {'path', 'label'} & set(columns):
      what = 'is neither an image nor a header with path and label, separated by commas'
      _refuse(path, first_line, what, *header)
    columns = ['path', 'label']
  wanted = ('path', 'label', 'split') if 'split' in columns else ('path', 'label')
  if repeated := [name for name in wanted if columns.count(name) > 1]:
    what = f'has the column {repeated[0]} more than once; rename the others'
    _refuse(path, first_line, what, *header)
  if not rows:
    raise ValueError(f'{path} has only a header; expected rows with a path and a label.')
  what = (
    f'does not have {" and ".join(f"a {name}" for name in wanted)}, or has more fields than the '
    f'{len(columns)} columns; put fields with a comma in double quotes'
  )
  labelled = []
  for line, cells in rows:
    row = dict(zip(columns, cells, strict=False))
    if any(cells[len(columns) :]) or not all(map(row.get, wanted)):
      _refuse(path, line, what, *cells)
    labelled.append(LabelledPath(line, row['path'], row['label'], row))
  return labelled
