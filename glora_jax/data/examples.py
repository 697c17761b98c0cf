"""Labelled images by index, wherever they lie: a TFDS data set, files and their labels, parts of either."""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from glora_jax.data.image import decode, from_array


class Examples(Protocol):
  """Labelled images by index.

  Attributes:
    identity: text that changes when the examples do; caches are keyed by it.
    labels: int32 [n], without decoding an image.
  """

  identity: str

  @property
  def labels(self) -> np.ndarray: ...

  def image(self, index: int) -> Image.Image:
    """The image as RGB; OSError where it cannot be decoded."""

  def name(self, index: int) -> str:
    """How messages call an example."""


@dataclasses.dataclass
class Files:
  """Image files and their labels.

  Attributes:
    paths: of the files.
    given_labels: int, one each.
  """

  paths: Sequence[str]
  given_labels: Sequence[int]

  @property
  def labels(self) -> np.ndarray:
    return np.asarray(self.given_labels, np.int32)

  @property
  def identity(self) -> str:
    digest = hashlib.sha256()
    for path, label in zip(self.paths, self.given_labels, strict=True):
      status = os.stat(path)
      digest.update(f'{path}:{status.st_size}:{status.st_mtime_ns}:{label};'.encode())
    return f'files {digest.hexdigest()}'

  def image(self, index: int) -> Image.Image:
    return decode(self.paths[index])

  def name(self, index: int) -> str:
    return self.paths[index]


@dataclasses.dataclass
class Records:
  """Examples of a TFDS data set: anything with `len` and `[index]` that gives dictionaries.

  Attributes:
    source: of the dictionaries.
    identity: see `Examples`.
    image_of: example -> encoded bytes or uint8 array [height, width, channels].
    label_of: example -> class.
  """

  source: Any
  identity: str
  image_of: Callable[[Mapping[str, Any]], bytes | np.ndarray]
  label_of: Callable[[Mapping[str, Any]], int]
  _labels: np.ndarray | None = None

  @property
  def labels(self) -> np.ndarray:
    if self._labels is None:
      self._labels = np.array([self.label_of(self.source[i]) for i in range(len(self.source))], np.int32)
    return self._labels

  def image(self, index: int) -> Image.Image:
    found = self.image_of(self.source[index])
    return from_array(found) if isinstance(found, np.ndarray) else decode(found)

  def name(self, index: int) -> str:
    return f'example {index} of {self.identity}'


@dataclasses.dataclass
class Part:
  """Some examples of others, in a given order."""

  whole: Examples
  indices: np.ndarray

  @property
  def labels(self) -> np.ndarray:
    return self.whole.labels[self.indices]

  @property
  def identity(self) -> str:
    return f'{self.whole.identity} [{hashlib.sha256(np.asarray(self.indices, np.int64).tobytes()).hexdigest()}]'

  def image(self, index: int) -> Image.Image:
    return self.whole.image(int(self.indices[index]))

  def name(self, index: int) -> str:
    return self.whole.name(int(self.indices[index]))


@dataclasses.dataclass
class Joined:
  """Examples one after another."""

  parts: Sequence[Examples]

  @property
  def labels(self) -> np.ndarray:
    return np.concatenate([part.labels for part in self.parts])

  @property
  def identity(self) -> str:
    return ' + '.join(part.identity for part in self.parts)

  @functools.cached_property
  def _sizes(self):
    return [len(part.labels) for part in self.parts]

  def _find(self, index):
    for part, size in zip(self.parts, self._sizes, strict=True):
      if index < size:
        return part, index
      index -= size
    raise IndexError(index)

  def image(self, index: int) -> Image.Image:
    part, index = self._find(index)
    return part.image(index)

  def name(self, index: int) -> str:
    part, index = self._find(index)
    return part.name(index)


def read_list(path: str | os.PathLike, root: str | os.PathLike, num_classes: int | None = None) -> Files:
  """Reads lines `path label`, as NOAH's VTAB folders and few-shot lists have them; paths are relative to `root`.

  Raises:
    FileNotFoundError: no such list, or images that it names are not there; they are counted, and the first ones named.
    ValueError: a line without path and label, a label that is no class, or an image that occurs twice; with its line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f'There is no list {path}; lines of an image path and a label are expected there.')
  with open(path) as file:
    rows = [(number, *line.rstrip('\n').rpartition(' ')[::2]) for number, line in enumerate(file, 1) if line.strip()]
  return _files(path, root, rows, num_classes)


def read_csv(path: str | os.PathLike) -> tuple[list[tuple[int, str, str]], str]:
  """Rows (line number, path, label) of a CSV with the columns `path` and `label`, or of two columns without a header.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a row that has not both, with its line number.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f'There is no file {path}; a CSV with the columns path and label is expected.')
  with open(path, newline='', encoding='utf-8-sig') as file:
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if any(row)]
  if not rows:
    raise ValueError(f'{path} is empty; rows of a path and a label are expected.')
  header = [cell.lower() for cell in rows[0][1]]
  columns = (header.index('path'), header.index('label')) if {'path', 'label'} <= set(header) else (0, 1)
  rows = rows[1:] if {'path', 'label'} <= set(header) else rows
  for number, cells in rows:
    if len(cells) <= max(columns) or not all(cells[column] for column in columns):
      raise ValueError(f'{path}, line {number}: {",".join(cells)!r} does not hold a path and a label.')
  return [(number, cells[columns[0]], cells[columns[1]]) for number, cells in rows], os.path.dirname(os.path.abspath(path))


def _files(path, root, rows, num_classes):
  seen, paths, labels = {}, [], []
  for number, name, label in rows:
    if not name or not label.lstrip('-').isdigit():
      raise ValueError(f'{path}, line {number}: {" ".join((name, label)).strip()!r} does not hold a path and a whole number.')
    if int(label) < 0 or (num_classes is not None and int(label) >= num_classes):
      raise ValueError(f'{path}, line {number}: the label {label} is none of the {num_classes} classes 0 to {num_classes and num_classes - 1}.')
    if name in seen:
      raise ValueError(f'{path}, line {number}: {name} occurs a second time, first in line {seen[name]}.')
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
    raise FileNotFoundError(f'{len(missing)} of {len(paths)} images {what} are not there, {", ".join(missing[:3])}'
                            f'{" for instance" if len(missing) > 3 else ""}.')


def deal(labels: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
  """Splits indices at random into disjoint parts of given shares, stratified: every part has its share of every class.

  Args:
    labels: int [n].
    shares: of the parts, summing to at most 1; the last part takes what rounding leaves if they sum to 1.
    seed: decides who goes where.

  Returns:
    Ascending indices for each part; every class that has as many examples as there are parts is in all of them.
  """
  rng = np.random.default_rng(seed)
  parts = [[] for _ in shares]
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    ends = np.round(np.cumsum(shares) * len(members)).astype(int)
    if len(members) >= len(shares):  # nobody goes without
      ends = np.maximum(ends, np.arange(1, len(shares) + 1))
      ends = np.minimum(ends, len(members) - np.arange(len(shares) - 1, -1, -1))
    for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
      part.append(members[start:end])
  return [np.sort(np.concatenate(part)).astype(np.int64) for part in parts]


def shots(labels: np.ndarray, per_class: int, seed: int, skip: int = 0) -> np.ndarray:
  """Indices of `per_class` random examples of every class, after leaving out the first `skip` of the same draw; ascending."""
  rng = np.random.default_rng(seed)
  chosen = [rng.permutation(np.flatnonzero(labels == label))[skip:skip + per_class] for label in np.unique(labels)]
  return np.sort(np.concatenate(chosen))
