"""Labelled images by index, wherever they lie: a TFDS data set, files and their labels, parts of either."""

from __future__ import annotations

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
      self._labels = np.array(
        [self.label_of(self.source[i]) for i in range(len(self.source))], np.int32
      )
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
