"""A classification task: its classes, and its splits of labelled images.

Images are decoded when they are read, whether they are files, a part of other examples, or several
sets joined.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
from PIL import Image

from glora_jax.checks import shown, validate_fields
from glora_jax.vision.data import image

SourceKind = Literal['tfds', 'noah', 'lists']


class Example(NamedTuple):
  """An image, which is decoded when `image` is called.

  Attributes:
    key: its name: unique in a split, and the same wherever the images are.
    image: returns it as RGB; with `draft=True` perhaps at a smaller size, enough to check that it
      can be decoded. Raises OSError if it cannot.
    path: its file; None if it has no separate file.
  """

  key: str
  image: Callable[..., Image.Image]
  path: str | None = None


class Examples(Protocol):
  """Labelled images by index, which are not decoded yet."""

  @property
  def labels(self) -> np.ndarray:
    """The class of every example, int32 [n]; no image is decoded."""
    ...

  def __getitem__(self, index: int) -> Example:
    """The example at a position."""
    ...


@dataclasses.dataclass
class Files:
  """Image files and their labels.

  Attributes:
    paths: paths of the image files.
    given_labels: the class of each file.
    root: folder that keys are relative to.
    groups: the group of each file, which no split cuts; empty for no groups.
  """

  paths: list[str]
  given_labels: list[int]
  root: str = ''
  groups: list[str] = dataclasses.field(default_factory=list)

  @property
  def labels(self) -> np.ndarray:
    """The class of every file, int32 [n]."""
    return np.asarray(self.given_labels, np.int32)

  def __getitem__(self, index: int) -> Example:
    """The file at a position."""
    path = self.paths[index]
    key = path.removeprefix(os.path.join(self.root, ''))
    return Example(key, functools.partial(image.decode, path), path)


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


@dataclasses.dataclass(frozen=True)
class Task:
  """One classification task.

  Attributes:
    name: its name in configs and reports.
    classes: names of the classes, in the order of the labels.
    splits: 'train', 'val', 'test', and further test sets if the task has them. A function is called
      when its examples are needed, and reads nothing before.
    origin: data set and version, or folder; printed in every result.
    notes: remarks on the data that a reader of the results must know.
    masked: names of the test sets that have only a part of the classes: answers are chosen among
      those.
    missing: returns the data that must be fetched or prepared before the task can be opened, and
      how; None if nothing is missing.

  Example:
    >>> split = Files(['cat.png', 'dog.png'], [0, 1])
    >>> splits = {'train': split, 'val': split, 'test': split}
    >>> task = Task('pets', ('cat', 'dog'), splits, origin='two photographs')
    >>> task.num_classes, task.tests, task.open('train+val').labels.tolist()
    (2, ('test',), [0, 1, 0, 1])
  """

  name: str
  classes: tuple[str, ...]
  splits: Mapping[str, Examples | Callable[[], Examples]]
  origin: str
  notes: tuple[str, ...] = ()
  masked: tuple[str, ...] = ()
  missing: Callable[[], str | None] = lambda: None

  @property
  def num_classes(self) -> int:
    """The number of classes."""
    return len(self.classes)

  @property
  def tests(self) -> tuple[str, ...]:
    """Names of all test sets; 'test' is the first."""
    return ('test', *(name for name in self.splits if name not in ('train', 'val', 'test')))

  def open(self, split: str) -> Examples:
    """The examples of a split, or of several joined with '+', in their stored order.

    Raises:
      ValueError: the split is empty, or a label is not one of the classes.
    """
    stored = [self.splits[part] for part in split.split('+')]
    parts = [part() if callable(part) else part for part in stored]
    examples = parts[0] if len(parts) == 1 else Joined(parts)
    labels = examples.labels
    if not len(labels):
      raise ValueError(f'{self.name} has no images in {split}.')
    if labels.min() < 0 or labels.max() >= self.num_classes:
      raise ValueError(
        f'{self.name} {split} has labels {labels.min()} to {labels.max()}, '
        f'but {self.num_classes} classes.'
      )
    return examples

  def opened(self) -> Task:
    """The task with all splits opened, so that each is listed once.

    Raises:
      ValueError, OSError: a split cannot be opened; see `open`.
    """
    return dataclasses.replace(self, splits={split: self.open(split) for split in self.splits})

  def mask(self, split: str) -> np.ndarray | None:
    """The classes that occur in a masked test set, bool [classes]; None for all others."""
    if split not in self.masked:
      return None
    return np.isin(np.arange(self.num_classes), self.open(split).labels)


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a task's images come from.

  A folder may begin with the user's home, `~`.

  Attributes:
    dir: folder of TFDS; None for its default.
    source: 'tfds', 'noah' (VTAB folders in the layout of NOAH) or 'lists' (NOAH's few-shot lists);
      None for the first kind that the task has.
    root: folder of the data for 'noah' and 'lists'.
    version: version of the TFDS data set, in place of the benchmark's.
    groups: groups of images that no split separates, for instance those of a patient: a column of
      the CSV, or a regular expression that is searched in the path of each image within the folder,
      such as 'patient[0-9]+'. The group is its first pair of brackets, or the whole match.

  Example:
    >>> Source(source='lists', root='/data').folder('lists', 'few-shot tasks', 'the lists')
    '/data'
  """

  dir: str | None = None
  source: SourceKind | None = None
  root: str | None = None
  version: str | None = None
  groups: str | None = None

  def __post_init__(self):
    validate_fields(self)
    for name in ('dir', 'root'):
      if (path := getattr(self, name)) is not None:
        object.__setattr__(self, name, os.path.expanduser(path))

  def folder(self, kind: SourceKind, user: str, content: str) -> str | None:
    """The folder that a task is read from, which is `root`; None if it is read from TFDS.

    Args:
      kind: the kind of folder that the task can be read from.
      user: name of the task in an error message.
      content: content of the folder in an error message.

    Raises:
      ValueError: the task does not have this source, the source needs `root`, or `root` or
        `version` has no effect with it.
    """
    if self.source not in (None, 'tfds', kind):
      raise ValueError(
        f"data.source='{self.source}' is unknown for {user}; use 'tfds' or '{kind}'."
      )
    if self.source == kind and self.version is not None:
      raise ValueError(
        f"data.version={shown(self.version)} is for TFDS data sets, and data.source='{kind}' reads "
        'folders; leave it out.'
      )
    if self.source == kind and self.root is None:
      raise ValueError(f"data.source='{kind}' needs data.root, the folder with {content}.")
    if self.source != kind and self.root is not None:
      raise ValueError(
        f"data.root={shown(self.root)} is only read with data.source='{kind}'; set that, or leave "
        'data.root out.'
      )
    return self.root


def is_count(text: str) -> bool:
  """Whether a part of a task's name is a whole number of at most nine digits.

  Example:
    >>> [is_count(text) for text in ('16', '-1', '²', '')]
    [True, False, False, False]
  """
  return re.fullmatch('[0-9]{1,9}', text) is not None


def require_printable(origin: str, names: Iterable[str]) -> None:
  """Checks that names can be written to files and terminals.

  Args:
    origin: origin of the names in an error message.
    names: names of classes or paths.

  Raises:
    ValueError: a name is not UTF-8, or has a control character, a line end for instance.
  """
  for name in names:
    if any(unicodedata.category(character) in ('Cc', 'Cs') for character in name):
      raise ValueError(
        f'{origin} has the name {shown(name)}, which is not UTF-8 or has control characters; '
        'rename it.'
      )


def require_measurable(
  origin: str, classes: Sequence[str], labels: Mapping[str, np.ndarray]
) -> None:
  """Checks that accuracies on a task's splits are meaningful.

  Args:
    origin: name of the task in an error message.
    classes: names of the classes.
    labels: the labels of every split, int [n]. 'train', 'val' and 'test', if they are among them,
      each need two classes, and the last two a class in common.

  Raises:
    ValueError: they are not.
  """
  present = {
    split: np.unique(labels[split]) for split in ('train', 'val', 'test') if split in labels
  }
  for split, found in present.items():
    if len(found) == 1:
      raise ValueError(
        f'{origin}: all images of {split} are of the class {classes[found[0]]}, so accuracy on '
        'them is meaningless; add images of the others.'
      )
  if {'val', 'test'} <= present.keys() and not np.intersect1d(present['val'], present['test']).size:
    raise ValueError(
      f'{origin}: val and test have no class in common; put images of every class into both.'
    )
