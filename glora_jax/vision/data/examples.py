"""Labelled images by index, wherever they lie: image files, parts of others, several joined."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from glora_jax.vision.data import image as images


class Example(Protocol):
  """An image, which is decoded when it is asked for."""

  @property
  def name(self) -> str:
    """Its name in messages, with its place."""
    ...

  @property
  def key(self) -> str:
    """Its name in records: unique in a split, and the same wherever the images are."""
    ...

  @property
  def path(self) -> str | None:
    """The file that holds it alone; None if there is none."""
    ...

  def image(self, *, draft: bool = False) -> Image.Image:
    """The image as RGB.

    Args:
      draft: whether it may come out smaller: enough to see that it can be decoded.

    Raises:
      OSError: it cannot be decoded.
    """
    ...


class Examples(Protocol):
  """Labelled images by index; nothing is decoded before it is asked for."""

  @property
  def labels(self) -> np.ndarray:
    """The class of every example, int32 [n]; no image is decoded for it."""
    ...

  def __getitem__(self, index: int) -> Example:
    """The example at a position."""
    ...


Split = Examples | Callable[[], Examples]  # of the latter nothing is read before it is called


def opened(split: Split) -> Examples:
  """The examples of a split, fetched and prepared first where they have to be."""
  return split() if callable(split) else split


@dataclasses.dataclass(frozen=True)
class ImageFile:
  """An image in a file.

  Attributes:
    path: path of the file.
    root: folder that the key is relative to.
  """

  path: str
  root: str = ''

  @property
  def name(self) -> str:
    """The path."""
    return self.path

  @property
  def key(self) -> str:
    """The path below the root."""
    return self.path.removeprefix(os.path.join(self.root, ''))

  def image(self, *, draft: bool = False) -> Image.Image:
    """The image as RGB."""
    return images.decode(self.path, draft=draft)


@dataclasses.dataclass
class Files:
  """Image files and their labels.

  Attributes:
    paths: paths of the image files.
    given_labels: the class of each file.
    root: see `ImageFile`.
  """

  paths: list[str]
  given_labels: list[int]
  root: str = ''

  @property
  def labels(self) -> np.ndarray:
    """The class of every file, int32 [n]."""
    return np.asarray(self.given_labels, np.int32)

  def __getitem__(self, index: int) -> ImageFile:
    """The file at a position."""
    return ImageFile(self.paths[index], self.root)


@dataclasses.dataclass(frozen=True)
class Numbered:
  """An example of a data set whose images are not separate files.

  Attributes:
    data_set: name of the data set, with all that its order depends on.
    index: position of the example.
  """

  data_set: str
  index: int
  path = None

  @property
  def name(self) -> str:
    """The key."""
    return self.key

  @property
  def key(self) -> str:
    """The position in the data set."""
    return f'example {self.index} of {self.data_set}'


@dataclasses.dataclass
class Part:
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

  def __getitem__(self, index: int) -> Example:
    """The example at a position of the selection."""
    return self.whole[int(self.indices[index])]


@dataclasses.dataclass
class Joined:
  """Examples one after another.

  Attributes:
    parts: the examples that are joined, in order.
  """

  parts: Sequence[Examples]

  @property
  def labels(self) -> np.ndarray:
    """The class of every example of every part, int32 [n]."""
    return np.concatenate([part.labels for part in self.parts])

  @functools.cached_property
  def _starts(self) -> np.ndarray:
    return np.cumsum([0, *(len(part.labels) for part in self.parts)])

  def __getitem__(self, index: int) -> Example:
    """The example at a position of all parts together."""
    number = int(np.searchsorted(self._starts, index, side='right')) - 1
    return self.parts[number][int(index - self._starts[number])]
