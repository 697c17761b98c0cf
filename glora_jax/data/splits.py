"""Which examples go into which split."""

from __future__ import annotations

import dataclasses
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.data.examples import Examples, Joined, Part, Split
from glora_jax.files import read_json, write_json, writing
from glora_jax.limits import listed

SPLITS = ('train', 'val', 'test')
SHARE = 0.1  # of the images, for each of val and test that is dealt
SEED = 0  # of what is dealt
_ADVICE = (
  'take a new workdir, or remove that file and with it the claim that the results of this workdir '
  'are of the same split'
)
_NOTHING: Mapping[str, Examples] = types.MappingProxyType({})


def deal(labels: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
  """Deals indices at random to disjoint parts, stratified: every part has its share of every class.

  Args:
    labels: the class of every example, int [n].
    shares: the share of each part, summing to at most 1; the last part takes what rounding leaves
      if they sum to 1.
    seed: decides which example goes to which part.

  Returns:
    Ascending indices for each part, int64; every class that has as many examples as there are
    parts is in all of them.

  Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> train, test = deal(labels, shares=(0.75, 0.25), seed=0)
    >>> labels[train].tolist(), labels[test].tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1])
  """
  rng = np.random.default_rng(seed)
  number = len(shares)
  parts = [[] for _ in shares]
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    ends = np.round(np.cumsum(shares) * len(members)).astype(int)
    if len(members) >= number:  # every part has one at least
      ends = np.maximum(ends, np.arange(1, number + 1))
      ends = np.minimum(ends, len(members) - np.arange(number - 1, -1, -1))
    for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
      part.append(members[start:end])
  return [np.sort(np.concatenate(part)).astype(np.int64) for part in parts]


def shots(labels: np.ndarray, per_class: int, seed: int, skip: int = 0) -> np.ndarray:
  """Draws a number of examples of every class.

  Args:
    labels: the class of every example, int [n].
    per_class: examples of each class; fewer where a class has fewer.
    seed: decides which examples are drawn.
    skip: examples of the same draw that are left out first, so that two draws with one seed are
      disjoint.

  Returns:
    Ascending indices.

  Example:
    >>> labels = np.array([0, 1, 0, 1, 0, 1])
    >>> train = shots(labels, per_class=2, seed=0)
    >>> val = shots(labels, per_class=1, seed=0, skip=2)
    >>> sorted(labels[train].tolist()), sorted(labels[val].tolist()), set(train) & set(val)
    ([0, 0, 1, 1], [0, 1], set())
  """
  rng = np.random.default_rng(seed)
  chosen = [
    rng.permutation(np.flatnonzero(labels == label))[skip : skip + per_class]
    for label in np.unique(labels)
  ]
  return np.sort(np.concatenate(chosen))


@dataclasses.dataclass(frozen=True)
class Shots:
  """A split of a number of examples of every class of another split, drawn as `shots` draws.

  Attributes:
    pool: the split that is drawn from.
    per_class: examples of each class.
    seed: decides which examples are drawn.
    skip: examples of the same draw that are left out first.
  """

  pool: Split
  per_class: int
  seed: int
  skip: int = 0

  def open(self) -> Part:
    """The drawn examples.

    Raises:
      ValueError: a class has too few for the draw.
    """
    pool = self.pool.open()
    needed = self.skip + 1 if self.skip else self.per_class
    labels, sizes = np.unique(pool.labels, return_counts=True)
    counted = zip(labels, sizes, strict=True)
    if rare := [f'class {label} ({size})' for label, size in counted if size < needed]:
      raise ValueError(
        f'{self.per_class} images of each class are drawn of at least {needed}, and there are '
        f'fewer in {listed(rare)}. Take fewer shots.'
      )
    return Part(pool, shots(pool.labels, self.per_class, self.seed, self.skip))


@dataclasses.dataclass(frozen=True)
class JoinedSplits:
  """Splits one after another.

  Attributes:
    parts: what is joined, in order.
  """

  parts: tuple[Split, ...]

  def open(self) -> Joined:
    """The examples of all parts."""
    return Joined([part.open() for part in self.parts])


@dataclasses.dataclass(frozen=True)
class Dealer:
  """Deals the examples of a data set to splits, the same way every time.

  Attributes:
    origin: what sentences call the data set.
    classes: names of the classes.
    split_file: path of the file that keeps who went where; None makes the split again.
  """

  origin: str
  classes: tuple[str, ...]
  split_file: str | None

  def deal(
    self,
    examples: Examples,
    splits: Sequence[str] = SPLITS,
    given: Mapping[str, Examples] = _NOTHING,
  ) -> dict[str, Part]:
    """The examples dealt to 'train' and those of 'val' and 'test' that are asked for.

    Args:
      examples: what is dealt.
      splits: what it is dealt to.
      given: splits that need no dealing; later ones must be the same, too.

    Raises:
      ValueError: a class has too few examples, or they are not those that were split before.
    """
    self._require_enough(examples.labels, splits)
    if self.split_file and os.path.exists(self.split_file):
      indices = self._read(self.split_file, examples, splits, given)
    else:
      others = [SHARE] * (len(splits) - 1)
      indices = deal(examples.labels, (1 - SHARE * len(others), *others), SEED)
      if self.split_file:
        lists = {split: part.tolist() for split, part in zip(splits, indices, strict=True)}
        beside = {'given': _identity(given)} if given else {}
        self._write(self.split_file, {'identity': examples.identity, **beside, **lists})
    return {
      split: Part(examples, np.asarray(part, np.int64))
      for split, part in zip(splits, indices, strict=True)
    }

  def keep(self, given: Mapping[str, Examples]) -> None:
    """Writes down which examples are in splits that need no dealing; later ones must be the same.

    Raises:
      ValueError: they are not those of before, or those of before were dealt.
    """
    if self.split_file is None:
      return
    content = {'identity': _identity(given)}
    if not os.path.exists(self.split_file):
      self._write(self.split_file, content)
    elif read_json(self.split_file, 'split', _ADVICE) != content:
      raise self._changed(self.split_file)

  def _require_enough(self, labels: np.ndarray, splits: Sequence[str]) -> None:
    counts = np.bincount(labels, minlength=len(self.classes))
    rare = [
      f'{name} ({count})'
      for name, count in zip(self.classes, counts, strict=True)
      if count < len(splits)
    ]
    if rare:
      raise ValueError(
        f'{self.origin}: every class needs at least {len(splits)} images to be split into '
        f'{", ".join(splits)}; too few in {listed(rare)}.'
      )

  def _read(
    self, path: str, examples: Examples, splits: Sequence[str], given: Mapping[str, Examples]
  ) -> list[np.ndarray]:
    saved = read_json(path, 'split', _ADVICE)
    if 'identity' not in saved:
      raise ValueError(f'{path} is no split that glora_jax wrote; {_ADVICE}.')
    others = saved.get('given', _identity({}))
    if saved['identity'] != examples.identity or others != _identity(given):
      raise self._changed(path)
    if not _is_partition([saved.get(split) for split in splits], len(examples.labels)):
      raise ValueError(
        f'{path} does not deal each of the {len(examples.labels)} images of {self.origin} to one '
        f'of {", ".join(splits)}, as it did when it was written; {_ADVICE}.'
      )
    return [np.asarray(saved[split], np.int64) for split in splits]

  def _changed(self, path: str) -> ValueError:
    return ValueError(f'The images of {self.origin} have changed since {path} was made; {_ADVICE}.')

  def _write(self, path: str, content: dict[str, Any]) -> None:
    with writing(path):
      os.makedirs(os.path.dirname(path), exist_ok=True)
    write_json(path, content, 'split')


def _identity(given: Mapping[str, Examples]) -> str:
  """Text that changes when the examples of splits do."""
  return ' '.join(f'{split}: {examples.identity}' for split, examples in given.items())


def _is_partition(parts: Sequence[Any], number: int) -> bool:
  """Whether lists, as a file has them, hold every index below a number once, and none is empty."""
  if not all(isinstance(part, list) and part for part in parts):
    return False
  indices = [index for part in parts for index in part]
  return all(type(index) is int for index in indices) and sorted(indices) == list(range(number))
