"""Splits of examples.

Data without splits is split the same way every time: stratified, with a fixed seed, 80% train, 10%
val and 10% test. Groups of images, all those of a patient for instance, stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from glora_jax.checks import listed
from glora_jax.vision.data.task import Examples, Part

SPLITS = ('train', 'val', 'test')
NAMES = {  # of splits, as folders, CSVs and TFDS call them
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
  **dict.fromkeys(('test', 'testing'), 'test'),
}
SHARE = 0.1  # of the images, for each of val and test that is split off
SEED = 0  # of the split


def assign(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
  """Assigns examples to parts at random, stratified: a tenth of every class to all but the first.

  Args:
    labels: the class of every example, int [n].
    number: number of parts; a class with as many examples is in all of them.
    seed: decides which example goes to which part.

  Returns:
    The part of every example, int [n].

  Example:
    >>> assign(np.array([0, 0, 0, 0, 1, 1, 1, 1]), number=2, seed=0).tolist()
    [0, 0, 0, 1, 0, 0, 1, 0]
  """
  order = np.lexsort((np.random.default_rng(seed).random(len(labels)), labels))
  counts, in_order = np.bincount(labels), labels[order]
  rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[in_order]  # within the class
  tenth = np.maximum(np.round(SHARE * counts), 1)[in_order]
  parts = np.zeros(len(labels), int)
  parts[order] = np.minimum(rank // tenth + 1, number) % number
  return parts


def assign_groups(labels: np.ndarray, groups: Sequence[str], number: int, seed: int) -> np.ndarray:
  """Assigns whole groups of examples to parts, with nearly the same share of every class.

  From the largest to the smallest, a group goes to the part that lacks most of its classes. But the
  last groups of a class go to the parts that have no example of it.

  Args:
    labels: the class of every example, int [n]; each class occurs.
    groups: the group of every example.
    number: see `assign`.
    seed: decides which of equally large groups goes to which part.

  Returns:
    The part of every example, int [n].

  Example:
    >>> groups = ['ann', 'ann', 'bob', 'bob', 'cid', 'cid']
    >>> assign_groups(np.array([0, 1, 0, 1, 0, 1]), groups, number=2, seed=0).tolist()
    [1, 1, 0, 0, 0, 0]
  """
  names, numbers = np.unique(groups, return_inverse=True)
  counts = np.zeros((len(names), labels.max() + 1), int)
  np.add.at(counts, (numbers, labels), 1)
  total, left = counts.sum(0), (counts > 0).sum(0)  # examples and groups of each class
  lack = np.outer([1 - SHARE * (number - 1), *[SHARE] * (number - 1)], total)  # of each part
  is_empty = np.ones_like(lack, bool)
  parts = np.zeros(len(names), int)
  for group in np.lexsort((np.random.default_rng(seed).random(len(names)), -counts.sum(1))):
    count = counts[group]
    needed = (is_empty & (left <= is_empty.sum(0))) @ count
    parts[group] = part = np.lexsort((lack / total**2 @ count, needed))[-1]
    lack[part] -= count
    left -= count > 0
    is_empty[part] &= count == 0
  return parts[numbers]


def drawn(pool: Callable[[], Examples], per_class: int, seed: int, skip: int = 0) -> Part:
  """Draws a number of examples of every class.

  Args:
    pool: returns the examples that are drawn from.
    per_class: examples of each class.
    seed: decides which examples are drawn.
    skip: examples of the same draw that are left out first, so that two draws with one seed are
      disjoint. Then a class may have fewer than `per_class`, but at least one.

  Returns:
    The drawn examples, in the order of the pool.

  Raises:
    ValueError: a class has too few for the draw.

  Example:
    >>> from glora_jax.vision.data.task import Files
    >>> pool = Files(list('abcdef'), [0, 1, 0, 1, 0, 1])
    >>> train = drawn(lambda: pool, per_class=2, seed=0)
    >>> val = drawn(lambda: pool, per_class=2, seed=0, skip=2)  # one of each class is left
    >>> sorted(train.labels.tolist()), set(train.indices) & set(val.indices)
    ([0, 0, 1, 1], set())
  """
  examples, rng = pool(), np.random.default_rng(seed)
  needed = skip + 1 if skip else per_class
  members = {
    label: np.flatnonzero(examples.labels == label) for label in np.unique(examples.labels)
  }
  if rare := [f'class {label} ({len(n)})' for label, n in members.items() if len(n) < needed]:
    raise ValueError(
      f'Drawing {per_class} images of each class needs at least {needed}; too few in '
      f'{listed(rare)}. Use fewer shots.'
    )
  chosen = [rng.permutation(indices)[skip : skip + per_class] for indices in members.values()]
  return Part(examples, np.sort(np.concatenate(chosen)))


def lacking(given: Collection[str]) -> list[str]:
  """The splits of 'train', 'val' and 'test' that are missing."""
  return [split for split in SPLITS if split not in given]


def divide(
  origin: str,
  classes: Sequence[str],
  given: Mapping[str, Examples],
  groups: Sequence[str] = (),
) -> dict[str, Examples]:
  """The splits 'train', 'val' and 'test' of a data set; missing ones are split off from 'train'.

  Args:
    origin: name of the data set in messages.
    classes: names of the classes.
    given: the splits of the data set.
    groups: the group of every example of 'train'; none if each is alone.

  Raises:
    ValueError: a class has too few examples.
  """
  train, into = given['train'], ('train', *lacking(given))
  splits = dict(given)
  if len(into) > 1:
    counts = np.bincount(train.labels, minlength=len(classes))
    counted = zip(classes, counts, strict=True)
    if rare := [f'{name} ({count})' for name, count in counted if count < len(into)]:
      raise ValueError(
        f'{origin}: every class needs at least {len(into)} images to be split into '
        f'{", ".join(into)}; too few in {listed(rare)}.'
      )
    if groups:
      parts = assign_groups(train.labels, groups, len(into), SEED)
    else:
      parts = assign(train.labels, len(into), SEED)
    for part, split in enumerate(into):
      splits[split] = Part(train, np.flatnonzero(parts == part))
  return {split: splits[split] for split in SPLITS}


def notes_on(given: Collection[str]) -> list[str]:
  """A sentence on the splits that `divide` splits off from 'train', if any."""
  made = ' and '.join(lacking(given))
  return [f'{made}: 10% each, split off from train (stratified, seed {SEED}).'] if made else []
