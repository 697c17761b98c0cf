"""Which examples go into which split.

What a user gives unsplit is split the same way every time: stratified, by a fixed seed, 80% to
train, 10% each to val and test. Groups of images, all those of a patient for instance, stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from glora_jax.checks import listed
from glora_jax.vision.data.task import Examples, Part

SPLITS = ('train', 'val', 'test')
NAMES = {  # of splits, as folders, CSVs and TFDS call them
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation'), 'val'),
  **dict.fromkeys(('test', 'testing'), 'test'),
}
SHARE = 0.1  # of the images, for each of val and test that is made
SEED = 0  # of the split


def split_indices(
  labels: np.ndarray, shares: Sequence[float], seed: int, groups: Sequence[Any] | None = None
) -> list[np.ndarray]:
  """Splits indices at random, stratified: every part has its share of every class.

  Groups of examples stay whole. Those of a class are cut into parts from the largest to the
  smallest, so that the parts come near to their shares.

  Args:
    labels: the class of every example, int [n].
    shares: the share of each part, summing to at most 1; the last part takes what rounding leaves
      if they sum to 1.
    seed: decides which example goes to which part.
    groups: the group of every example; None if each is alone. A group counts for the class of its
      first example.

  Returns:
    Ascending indices for each part, int64; every class that has as many groups as there are parts
    is in all of them.

  Example:
    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> train, test = split_indices(labels, shares=(0.75, 0.25), seed=0)
    >>> labels[train].tolist(), labels[test].tolist()
    ([0, 0, 0, 1, 1, 1], [0, 1])
    >>> groups = ['ann', 'ann', 'bob', 'bob', 'bob', 'cid', 'dan', 'eve']
    >>> train, test = split_indices(labels, shares=(0.75, 0.25), seed=0, groups=groups)
    >>> train.tolist(), test.tolist()
    ([2, 3, 4, 5, 7], [0, 1, 6])
  """
  rng = np.random.default_rng(seed)
  number = len(shares)
  _, firsts, numbers, sizes = np.unique(
    range(len(labels)) if groups is None else groups,
    return_index=True,
    return_inverse=True,
    return_counts=True,
  )
  parts = [[] for _ in shares]
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels[firsts] == label))
    members = members[np.argsort(-sizes[members], kind='stable')]
    upto = np.cumsum(sizes[members])
    ends = np.searchsorted(
      upto - sizes[members] / 2, np.cumsum(shares) * sizes[members].sum(), 'right'
    )
    if len(members) >= number:  # every part has one at least
      ends = np.maximum(ends, np.arange(1, number + 1))
      ends = np.minimum(ends, len(members) - np.arange(number - 1, -1, -1))
    for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
      part.append(members[start:end])
  return [np.flatnonzero(np.isin(numbers, np.concatenate(part))) for part in parts]


def drawn(pool: Callable[[], Examples], per_class: int, seed: int, skip: int = 0) -> Part:
  """Draws a number of examples of every class.

  Args:
    pool: returns the examples that are drawn from.
    per_class: examples of each class.
    seed: decides which examples are drawn.
    skip: examples of the same draw that are left out first, so that two draws with one seed are
      disjoint; then a class may have fewer than `per_class`, but one at least.

  Returns:
    What was drawn, in the order of the pool.

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
      f'Drawing {per_class} images of each class takes at least {needed}; too few in '
      f'{listed(rare)}. Use fewer shots.'
    )
  chosen = [rng.permutation(indices)[skip : skip + per_class] for indices in members.values()]
  return Part(examples, np.sort(np.concatenate(chosen)))


def lacking(given: Collection[str]) -> list[str]:
  """Which of 'train', 'val' and 'test' are not among some splits."""
  return [split for split in SPLITS if split not in given]


def divide(
  origin: str,
  classes: Sequence[str],
  labels: np.ndarray,
  given: Collection[str],
  groups: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
  """The indices of 'train' that are left for it, and those of the splits that are lacking.

  Args:
    origin: what sentences call the data set.
    classes: names of the classes.
    labels: the class of every example of 'train'.
    given: names of the splits that there are.
    groups: the group of every example; None if each is alone.

  Returns:
    Indices by split; none if no split is lacking.

  Raises:
    ValueError: a class has too few examples.
  """
  into = ('train', *lacking(given))
  if len(into) == 1:
    return {}
  counts = np.bincount(labels, minlength=len(classes))
  counted = zip(classes, counts, strict=True)
  if rare := [f'{name} ({count})' for name, count in counted if count < len(into)]:
    raise ValueError(
      f'{origin}: every class needs at least {len(into)} images to be split into '
      f'{", ".join(into)}; too few in {listed(rare)}.'
    )
  shares = (1 - SHARE * (len(into) - 1), *[SHARE] * (len(into) - 1))
  return dict(zip(into, split_indices(labels, shares, SEED, groups), strict=True))


def note_on(made: Sequence[str]) -> str:
  """A sentence on splits that `divide` made."""
  return f'{" and ".join(made)} were taken from train, stratified, seed {SEED}: 10% each.'
