"""Which examples go into which split.

What a user gives unsplit is split the same way every time: stratified, by a fixed seed, 80% to
train, 10% each to val and test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glora_jax.checks import listed
from glora_jax.vision.data.task import Examples, Part, Task, require_measurable

SPLITS = ('train', 'val', 'test')
NAMES = {  # of splits, as folders, CSVs and TFDS call them
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
  **dict.fromkeys(('test', 'testing'), 'test'),
}
SHARE = 0.1  # of the images, for each of val and test that is made
SEED = 0  # of the split


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
    >>> val = shots(labels, per_class=2, seed=0, skip=2)  # one of each class is left
    >>> sorted(labels[train].tolist()), sorted(labels[val].tolist()), set(train) & set(val)
    ([0, 0, 1, 1], [0, 1], set())
  """
  rng = np.random.default_rng(seed)
  chosen = [
    rng.permutation(np.flatnonzero(labels == label))[skip : skip + per_class]
    for label in np.unique(labels)
  ]
  return np.sort(np.concatenate(chosen))


def drawn(pool: Callable[[], Examples], per_class: int, seed: int, skip: int = 0) -> Part:
  """A number of examples of every class of a split, drawn as `shots` draws.

  Raises:
    ValueError: a class has too few for the draw.
  """
  examples = pool()
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
) -> dict[str, Examples]:
  """'train' and the lacking splits, made of 'train' the same way every time.

  Args:
    origin: what sentences call the data set.
    classes: names of the classes.
    train: what is split.
    lacking: which of 'val' and 'test' get a part of it.

  Raises:
    ValueError: a class has too few examples.
  """
  if not lacking:
    return {'train': train}
  into = ('train', *lacking)
  counts = np.bincount(train.labels, minlength=len(classes))
  counted = zip(classes, counts, strict=True)
  if rare := [f'{name} ({count})' for name, count in counted if count < len(into)]:
    raise ValueError(
      f'{origin}: every class needs at least {len(into)} images to be split into '
      f'{", ".join(into)}; too few in {listed(rare)}.'
    )
  shares = (1 - SHARE * len(lacking), *[SHARE] * len(lacking))
  parts = zip(into, split_indices(train.labels, shares, SEED), strict=True)
  return {split: Part(train, indices) for split, indices in parts}


def own_task(
  kind: str,
  path: str,
  classes: tuple[str, ...],
  given: Mapping[str, Examples],
  *,
  are_split: bool = True,
) -> Task:
  """A task on image files of the user's own.

  Args:
    kind: 'folder' or 'csv'.
    path: where they are.
    classes: names of the classes.
    given: examples of 'train', and of 'val' and 'test' where they need not be made of it.
    are_split: whether 'train' is a split, and not all that there is.

  Raises:
    ValueError: see `with_splits`, or what is split already cannot measure anything.
  """
  lacking = [split for split in SPLITS if split not in given]
  splits = {**given, **with_splits(path, classes, given['train'], lacking)}
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
