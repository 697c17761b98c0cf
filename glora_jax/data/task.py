"""A task: which images, which labels, which splits. Records only; `pipeline` and `stream` read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from glora_jax.data.examples import Examples, Joined


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a task's images come from; the fields of the config's `data`.

  Attributes:
    dir: of TFDS, None for its default.
    source: 'tfds', 'noah' (VTAB folders in the layout of NOAH) or 'lists' (NOAH's few-shot lists); None for the task's first.
    root: folder of 'noah' and 'lists'.
    version: of the TFDS data set, in place of the benchmark's.
  """

  dir: str | None = None
  source: str | None = None
  root: str | None = None
  version: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
  """One classification task.

  Attributes:
    name: what configs and reports call it.
    classes: names of the classes, in the order of the labels.
    splits: name -> function that opens it; 'train', 'val', 'test' are there, generalization tasks have further test sets.
    origin: data set and version, or folder; printed in every result.
    notes: what a reader of the results must know of the data.
    group: of its suite.
    masked: further test sets whose images have only some of the classes: answers are taken among those.
    missing: what must be fetched or prepared before it can be opened, and how; None where everything is there.
  """

  name: str
  classes: tuple[str, ...]
  splits: Mapping[str, Callable[[], Examples]]
  origin: str
  notes: tuple[str, ...] = ()
  group: str = ''
  masked: tuple[str, ...] = ()
  missing: Callable[[], str | None] = lambda: None

  @property
  def num_classes(self) -> int:
    return len(self.classes)

  @property
  def tests(self) -> tuple[str, ...]:
    """Names of all test sets; 'test' is the first."""
    return ('test', *(name for name in self.splits if name not in ('train', 'val', 'test')))

  def open(self, split: str) -> Examples:
    """The examples of a split, or of several joined with '+', in their stored order.

    Raises:
      ValueError: a label that is no class.
    """
    parts = [self.splits[part]() for part in split.split('+')]
    examples = parts[0] if len(parts) == 1 else Joined(parts)
    labels = examples.labels
    if not len(labels):
      raise ValueError(f'{self.name} has no images in {split}.')
    if labels.min() < 0 or labels.max() >= self.num_classes:
      raise ValueError(
        f'{self.name} {split} has labels {labels.min()} to {labels.max()}, but {self.num_classes} classes.'
      )
    return examples

  def mask(self, split: str) -> np.ndarray | None:
    """The classes that occur in a masked test set, bool [classes]; None for all others."""
    if split not in self.masked:
      return None
    return np.isin(np.arange(self.num_classes), self.open(split).labels)
