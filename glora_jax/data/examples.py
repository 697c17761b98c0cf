"""Labelled images by index, wherever they lie: image files, parts of others, several joined."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from glora_jax.data.image import decode


class Examples(Protocol):
  """Labelled images by index; nothing is decoded before it is asked for."""

  @property
  def identity(self) -> str:
    """Text that changes when the examples do; caches are keyed by it."""
    ...

  @property
  def labels(self) -> np.ndarray:
    """The class of every example, int32 [n]; no image is decoded for it."""
    ...

  def image(self, index: int, *, draft: bool = False) -> Image.Image:
    """The image as RGB.

    Args:
      index: position of the example.
      draft: whether it may come out smaller: enough to see that it can be decoded.

    Raises:
      OSError: it cannot be decoded.
    """
    ...

  def name(self, index: int) -> str:
    """What messages call the example: the path of the file that holds it alone, where one does."""
    ...


Split = Examples | Callable[[], Examples]  # of the latter nothing is read before it is called


def opened(split: Split) -> Examples:
  """The examples of a split, fetched and prepared first where they have to be."""
  return split() if callable(split) else split


class Numbered:
  """Examples that are no files of their own: their number is their name."""

  identity: str

  def name(self, index: int) -> str:
    """The position among them."""
    return f'example {index} of {self.identity}'


@dataclasses.dataclass
class Files:
  """Image files and their labels.

  Attributes:
    paths: paths of the image files.
    given_labels: the class of each file.
  """

  paths: list[str]
  given_labels: list[int]

  @property
  def labels(self) -> np.ndarray:
    """The class of every file, int32 [n]."""
    return np.asarray(self.given_labels, np.int32)

  @property
  def identity(self) -> str:
    """A digest of paths, sizes, modification times and labels."""
    digest = hashlib.sha256()
    for path, label in zip(self.paths, self.given_labels, strict=True):
      try:
        status = os.stat(path)
        state = f'{path}:{status.st_size}:{status.st_mtime_ns}'
      except OSError:  # a link to nowhere: an image that cannot be decoded, as others
        state = f'{path}:missing'
      digest.update(f'{state}:{label};'.encode(errors='surrogateescape'))
    return f'files {digest.hexdigest()}'

  def image(self, index: int, *, draft: bool = False) -> Image.Image:
    """The image as RGB."""
    return decode(self.paths[index], draft=draft)

  def name(self, index: int) -> str:
    """The path of the file."""
    return self.paths[index]


class _OfOthers:
  """Examples that are those of others, under other indices."""

  def _locate(self, index: int) -> tuple[Examples, int]:
    """The examples that have one, and its index there."""
    raise NotImplementedError

  def image(self, index: int, *, draft: bool = False) -> Image.Image:
    """The image as RGB."""
    others, index = self._locate(index)
    return others.image(index, draft=draft)

  def name(self, index: int) -> str:
    """What the others call the example."""
    others, index = self._locate(index)
    return others.name(index)


@dataclasses.dataclass
class Part(_OfOthers):
  """A selection of other examples, in a given order.

  Attributes:
    whole: the examples that are selected from.
    indices: int [n], positions in `whole`.
  """

  whole: Examples
  indices: np.ndarray

  @property
  def labels(self) -> np.ndarray:
    """The class of every selected example, int32 [n]."""
    return self.whole.labels[self.indices]

  @property
  def identity(self) -> str:
    """The identity of the whole, and a digest of the indices."""
    digest = hashlib.sha256(np.asarray(self.indices, np.int64).tobytes()).hexdigest()
    return f'{self.whole.identity} [{digest}]'

  def _locate(self, index: int) -> tuple[Examples, int]:
    return self.whole, int(self.indices[index])


@dataclasses.dataclass
class Joined(_OfOthers):
  """Examples one after another.

  Attributes:
    parts: the examples that are joined, in order.
  """

  parts: Sequence[Examples]

  @property
  def labels(self) -> np.ndarray:
    """The class of every example of every part, int32 [n]."""
    return np.concatenate([part.labels for part in self.parts])

  @property
  def identity(self) -> str:
    """The identities of all parts."""
    return ' + '.join(part.identity for part in self.parts)

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([len(part.labels) for part in self.parts])

  def _locate(self, index: int) -> tuple[Examples, int]:
    number = int(np.searchsorted(self._ends, index, side='right'))
    part = self.parts[number]
    return part, int(index - self._ends[number] + len(part.labels))
