"""Which examples go into which split.

What a user gives unsplit is split the same way every time: stratified, by a fixed seed, 80% to
train, 10% each to val and test. Groups of images, all those of a patient for instance, stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

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


def split_groups(
  labels: np.ndarray, groups: Sequence[str], shares: Sequence[float], seed: int
) -> list[np.ndarray]:
  """Splits indices so that every group is whole in one part, and the classes nearly in proportion.

  From the largest to the smallest, a group goes to the part that lacks most of its classes. But the
  last groups of a class go to the parts that have no image of it.

  Args:
    labels: the class of every example, int [n]; each class occurs.
    groups: the group of every example.
    shares: see `split_indices`.
    seed: decides which of equally large groups goes to which part.

  Returns:
    Ascending indices for each part, int64.

  Example:
    >>> groups = ['ann', 'ann', 'bob', 'bob', 'cid', 'cid']
    >>> split_groups(np.array([0, 1, 0, 1, 0, 1]), groups, shares=(0.7, 0.3), seed=0)
    [array([2, 3, 4, 5]), array([0, 1])]
  """
  names, numbers = np.unique(groups, return_inverse=True)
  counts = np.zeros((len(names), labels.max() + 1), int)
  np.add.at(counts, (numbers, labels), 1)
  target = np.outer(shares, counts.sum(0))
  have, parts = np.zeros_like(target), np.zeros_like(labels)
  left = (counts > 0).sum(0)  # groups of each class
  rng = np.random.default_rng(seed)
  for group in np.lexsort((rng.random(len(names)), -counts.sum(1))):
    count, is_empty = counts[group], have == 0
    needed = (is_empty & (left <= is_empty.sum(0))) @ count
    lacking = (target - have) / target.sum(0) ** 2 @ count
    part = np.lexsort((lacking, needed))[-1]
    parts[numbers == group] = part
    have[part] += count
    left -= count > 0
  return [np.flatnonzero(parts == part) for part in range(len(shares))]


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
  groups: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """The indices of 'train' that are left for it, and those of the splits that are lacking.

  Args:
    origin: what sentences call the data set.
    classes: names of the classes.
    labels: the class of every example of 'train'.
    given: names of the splits that there are.
    groups: the group of every example; none for no groups.

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
  if groups:
    return dict(zip(into, split_groups(labels, groups, shares, SEED), strict=True))
  return dict(zip(into, split_indices(labels, shares, SEED), strict=True))


def note_on(made: Sequence[str]) -> str:
  """A sentence on splits that `divide` made."""
  return f'{" and ".join(made)} were taken from train, stratified, seed {SEED}: 10% each.'
