"""Which examples go into which split.

What a user gives unsplit is split once: stratified, by a fixed seed, 80% to train, 10% each to val
and test. The split is written into the workdir, and a resumed run reads it there; where splits are
given, which images they have is written there.
"""

from __future__ import annotations

import os
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.data.examples import Examples, Part, Split, opened
from glora_jax.data.task import Task, require_measurable
from glora_jax.files import read_json, write_json, writing
from glora_jax.limits import listed

SPLITS = ('train', 'val', 'test')
NAMES = {  # of splits, as folders, CSVs and TFDS call them
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
  **dict.fromkeys(('test', 'testing'), 'test'),
}
SHARE = 0.1  # of the images, for each of val and test that is made
SEED = 0  # of the split
_ADVICE = (
  'use a new workdir, or remove that file; results in this workdir are then no longer of one split'
)
_NOTHING: Mapping[str, Examples] = types.MappingProxyType({})


def split_indices(labels: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
  """Splits indices at random, stratified: every part has its share of every class.

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
    >>> train, test = split_indices(labels, shares=(0.75, 0.25), seed=0)
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


def drawn(pool: Split, per_class: int, seed: int, skip: int = 0) -> Part:
  """A number of examples of every class of a split, drawn as `shots` draws.

  Raises:
    ValueError: a class has too few for the draw.
  """
  examples = opened(pool)
  needed = skip + 1 if skip else per_class
  labels, sizes = np.unique(examples.labels, return_counts=True)
  counted = zip(labels, sizes, strict=True)
  if rare := [f'class {label} ({size})' for label, size in counted if size < needed]:
    raise ValueError(
      f'Drawing {per_class} images of each class takes at least {needed}; too few in '
      f'{listed(rare)}. Use fewer shots.'
    )
  return Part(examples, shots(examples.labels, per_class, seed, skip))


def with_splits(
  origin: str,
  classes: Sequence[str],
  train: Examples,
  lacking: Sequence[str],
  split_file: str | None,
  others: Mapping[str, Examples] = _NOTHING,
) -> dict[str, Examples]:
  """'train', the others, and the lacking splits, made of 'train' the same way every time.

  Args:
    origin: what sentences call the data set.
    classes: names of the classes.
    train: what is split.
    lacking: which of 'val' and 'test' get a part of it.
    split_file: path of the file that keeps who went where; None makes the split again.
    others: splits that there are; later ones must be the same, too.

  Raises:
    ValueError: a class has too few examples, or they are not those that were split before.
  """
  into = ('train', *lacking) if lacking else ()
  counts = np.bincount(train.labels, minlength=len(classes))
  counted = zip(classes, counts, strict=True)
  if rare := [f'{name} ({count})' for name, count in counted if count < len(into)]:
    raise ValueError(
      f'{origin}: every class needs at least {len(into)} images to be split into '
      f'{", ".join(into)}; too few in {listed(rare)}.'
    )
  content: dict[str, Any] = {'identity': train.identity}
  if not lacking:
    content = {'identity': _identity({'train': train, **others})}
  elif others:
    content['given'] = _identity(others)
  if split_file and os.path.exists(split_file):
    parts = _kept(split_file, origin, content, into, len(train.labels))
  else:
    shares = (1 - SHARE * len(lacking), *[SHARE] * len(lacking))
    indices = split_indices(train.labels, shares, SEED) if lacking else []
    parts = {split: part.tolist() for split, part in zip(into, indices, strict=True)}
    if split_file:
      with writing(split_file):
        os.makedirs(os.path.dirname(split_file), exist_ok=True)
      write_json(split_file, {**content, **parts}, 'split')
  found = {split: Part(train, np.asarray(part, np.int64)) for split, part in parts.items()}
  return {'train': train, **others, **found}


def _identity(given: Mapping[str, Examples]) -> str:
  """Text that changes when the examples of splits do."""
  return ' '.join(f'{split}: {examples.identity}' for split, examples in given.items())


def _kept(
  path: str, origin: str, content: Mapping[str, Any], into: Sequence[str], number: int
) -> dict[str, list[int]]:
  """Who went where, by a file.

  Raises:
    ValueError: it is of other images, or does not put each of so many into one split.
  """
  saved = read_json(path, 'split', _ADVICE)
  if any(saved.get(name) != content.get(name) for name in ('identity', 'given')):
    raise ValueError(f'The images of {origin} have changed since {path} was made; {_ADVICE}.')
  parts = {split: saved.get(split) for split in into}
  are_lists = all(isinstance(part, list) and part for part in parts.values())
  indices = [str(index) for part in parts.values() for index in part] if are_lists else []
  if into and sorted(indices) != sorted(map(str, range(number))):
    raise ValueError(
      f'{path} does not assign each of the {number} images of {origin} to one of '
      f'{", ".join(into)}, as it did when it was written; {_ADVICE}.'
    )
  return parts


def own_task(
  kind: str,
  path: str,
  classes: tuple[str, ...],
  given: Mapping[str, Examples],
  split_file: str | None,
  *,
  are_split: bool = True,
) -> Task:
  """A task on image files of the user's own.

  Args:
    kind: 'folder' or 'csv'.
    path: where they are.
    classes: names of the classes.
    given: examples of 'train', and of 'val' and 'test' where they need not be made of it.
    split_file: see `with_splits`.
    are_split: whether 'train' is a split, and not all that there is.

  Raises:
    ValueError: see `with_splits`, or what is split already cannot measure anything.
  """
  lacking = [split for split in SPLITS if split not in given]
  others = {split: given[split] for split in SPLITS[1:] if split in given}
  splits = with_splits(path, classes, given['train'], lacking, split_file, others)
  labels = {split: splits[split].labels for split in SPLITS}
  require_measurable(path, classes, labels)
  notes = []
  if not are_split:
    notes.append(f'Split by glora_jax, stratified, seed {SEED}: 80% train, 10% val, 10% test.')
  elif lacking:
    which = ' and '.join(lacking)
    notes.append(f'{which} were taken from train, stratified, seed {SEED}: 10% each.')
  for split in (split for split in SPLITS if split in given):
    if absent := [name for label, name in enumerate(classes) if label not in labels[split]]:
      notes.append(f'{split} has no images of {listed(absent)}.')
  in_order = {split: splits[split] for split in SPLITS}
  return Task(f'{kind}:{path}', classes, in_order, path, tuple(notes))
