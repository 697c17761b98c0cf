"""Labelled images by index, wherever they lie: image files, parts of others, several joined."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from glora_jax.vision.data import image as images

# A file when it was read: nanoseconds of its last change (0 if it was not read yet, -1 if it cannot
# be read), its size, and a digest of its bytes.
SEEN = np.dtype([('time', 'i8'), ('size', 'i8'), ('digest', 'S16')])


class Examples(Protocol):
  """Labelled images by index; nothing is decoded before it is asked for."""

  @property
  def identity(self) -> str:
    """Text that changes when the examples do, wherever they are; all of them may be read for it."""
    ...

  @property
  def files(self) -> Sequence[Files]:
    """The image files among them."""
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

  def digest(self, index: int) -> bytes:
    """A digest of the file that holds the example alone; empty if there is none."""
    ...


Split = Examples | Callable[[], Examples]  # of the latter nothing is read before it is called


def opened(split: Split) -> Examples:
  """The examples of a split, fetched and prepared first where they have to be."""
  return split() if callable(split) else split


class Numbered:
  """Examples that are no files of their own: their number is their name."""

  identity: str
  files = ()

  def name(self, index: int) -> str:
    """The position among them."""
    return f'example {index} of {self.identity}'

  def digest(self, index: int) -> bytes:
    """Nothing."""
    del index
    return b''


def _state(status: os.stat_result) -> tuple[int, int]:
  """The time, which is never 0, and the size in `SEEN`."""
  return status.st_mtime_ns or 1, status.st_size


@dataclasses.dataclass
class Files:
  """Image files and their labels.

  Attributes:
    paths: paths of the image files.
    given_labels: the class of each file.
    root: folder whose own place and name do not matter; the files are known by what follows it in
      their paths, and by their bytes.
  """

  paths: list[str]
  given_labels: list[int]
  root: str = ''

  @property
  def labels(self) -> np.ndarray:
    """The class of every file, int32 [n]."""
    return np.asarray(self.given_labels, np.int32)

  @property
  def files(self) -> Sequence[Files]:
    """These."""
    return (self,)

  @property
  def names(self) -> list[str]:
    """What follows the root in the path of every file."""
    root = os.path.join(self.root, '')
    return [path.removeprefix(root) for path in self.paths]

  @functools.cached_property
  def seen(self) -> np.ndarray:
    """Every file when it was read, `SEEN` [n]."""
    return np.zeros(len(self.paths), SEEN)

  @functools.cached_property
  def identity(self) -> str:
    """A digest of names, labels and bytes."""
    digest = hashlib.sha256()
    for index, name in enumerate(self.names):
      line = f'{name}\0{self.given_labels[index]}\0'
      digest.update(line.encode(errors='surrogateescape') + self.digest(index) + b'\0')
    return f'files {digest.hexdigest()}'

  def image(self, index: int, *, draft: bool = False) -> Image.Image:
    """The image as RGB; the first time its bytes are digested, too."""
    is_seen = self.seen['time'][index]
    return images.decode(self.paths[index] if is_seen else self._read(index), draft=draft)

  def _read(self, index: int) -> bytes:
    """The bytes of a file, which is seen then."""
    content, status = images.read(self.paths[index])
    digest = hashlib.blake2b(content, digest_size=SEEN['digest'].itemsize).digest()
    self.seen[index] = *_state(status), digest
    return content

  def digest(self, index: int) -> bytes:
    """A digest of a file's bytes; empty if it cannot be read."""
    if not self.seen['time'][index]:
      try:
        self._read(index)
      except OSError:
        self.seen['time'][index] = -1
    return self.seen['digest'][index]

  def recall(self, index: int, seen: np.void) -> None:
    """Takes over what an earlier process saw of a file if size and time are the same."""
    with contextlib.suppress(OSError):
      if _state(os.stat(self.paths[index])) == (seen['time'], seen['size']):
        self.seen[index] = seen

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

  def digest(self, index: int) -> bytes:
    """See `Examples`."""
    others, index = self._locate(index)
    return others.digest(index)


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
  def files(self) -> Sequence[Files]:
    """The image files of the whole."""
    return self.whole.files

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
  def files(self) -> Sequence[Files]:
    """The image files of all parts, each once."""
    return list({id(files): files for part in self.parts for files in part.files}.values())

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
