"""The errors of a classifier: how many answers are wrong, and which classes are confused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from glora_jax.vision.metrics import BINS, confusion_matrix
from glora_jax.vision.reports.charts import Bars
from glora_jax.vision.reports.page import LONG, Blocks, Heading, Result, Table, percent

WORST, PAIRS = 6, 20  # pairs of classes to show: below a matrix, and instead of one
IMAGES = 12


class Outcome(NamedTuple):
  """The result's answers on the test images.

  Attributes:
    names: names of the classes.
    labels: the true classes, int [image].
    classes: the answers, int [image]; -1 for none.
    probabilities: those of all classes, float [image, class].
    pixels: function from indices of images to uint8 [image, size, size, 3].
    files: names of the images, as in `images.csv`.
  """

  names: Sequence[str]
  labels: np.ndarray
  classes: np.ndarray
  probabilities: np.ndarray
  pixels: Callable[[np.ndarray], np.ndarray]
  files: Sequence[str]

  def rows(self) -> Iterator[list[Any]]:
    """The lines of `predictions.csv`."""
    names = (*self.names, '')
    images = zip(self.files, self.labels, self.classes, self.probabilities, strict=True)
    for file, label, answer, probabilities in images:
      yield [file, names[label], names[answer], *probabilities]


class Confusion(NamedTuple):
  """A confusion matrix: the name of each class, and (images, shade from 0 to 1) by answer."""

  rows: Sequence[tuple[str, Sequence[tuple[int, float]]]]


class Image(NamedTuple):
  """A test image with a wrong answer; `pixels` are uint8 [size, size, 3]."""

  pixels: np.ndarray
  file: str
  true: str
  answer: str
  probability: str


class Images(NamedTuple):
  """Test images with wrong answers."""

  images: Sequence[Image]


def blocks_by_class(result: Result) -> Blocks:
  """A baseline, the calibration, and metrics of each class; empty if a run was not tested."""
  if 'by_class' not in result:
    return []
  counts, *shares = result['by_class'].values()
  most = max(counts, key=counts.get)
  rows = [
    (name, f'{number:,}', *('' if x[name] is None else percent(x[name]) for x in shares))
    for name, number in counts.items()
  ]
  return [
    f"""
    Always answering {most}, the most frequent class of the test images, would be right for
    {percent(counts[most] / sum(counts.values()))}% of them. Balanced accuracy is the mean recall of
    the classes.
    """,
    Table(
      'Precision, recall and F1 of each class, in percent',
      ('class', 'test images', 'precision', 'recall', 'F1'),
      rows,
      is_folded=len(rows) > LONG,
    ),
    f"""
    On average, the probability of an answer is {percent(result['calibration_error'])} points off
    the share of right answers: the expected calibration error, over {BINS} bins of equal width.
    """,
    Markup('<code>predictions.csv</code> has all probabilities of every test image.'),
  ]


def blocks_of(outcome: Outcome | None) -> Blocks:
  """The errors of a run: in words, by class, and as images; nothing if it was not tested."""
  if outcome is None:
    return []
  classes = outcome.names
  answers = (*classes, 'no class')
  matrix = confusion_matrix(outcome.labels, outcome.classes, len(classes))
  confused = matrix * ~np.eye(*matrix.shape, dtype=bool)
  wrong, number = np.flatnonzero(outcome.classes != outcome.labels), len(outcome.labels)
  is_small = len(classes) <= LONG  # more do not fit into a readable confusion matrix
  drawn = is_small and confusion_of(classes, matrix[:, :-1])
  if not len(wrong):
    return [f'All {number:,} test images are classified correctly.', drawn]
  pairs = sorted(np.argwhere(confused).tolist(), key=lambda pair: -confused[tuple(pair)])
  named = [
    (
      f'{classes[true]}, mistaken for {answers[answer]}',
      matrix[true, answer],
      f'{matrix[true, answer]:,} of {matrix[true].sum():,}',
    )
    for true, answer in pairs[: WORST if is_small else PAIRS]
  ]
  # Equally sure ones stay in the order of the images.
  probabilities = outcome.probabilities.max(-1)
  surest = wrong[np.argsort(-probabilities[wrong], kind='stable')][:IMAGES]
  images = [
    Image(
      pixels,
      outcome.files[at],
      classes[outcome.labels[at]],
      answers[outcome.classes[at]],
      f'{100 * probabilities[at]:.1f}%',
    )
    for at, pixels in zip(surest, outcome.pixels(surest), strict=True)
  ]
  shown = 'All of them' if len(wrong) <= IMAGES else f'The {IMAGES} with the most confident answers'
  return [
    f'{len(wrong):,} of {number:,} test images are misclassified.',
    drawn,
    Heading('Most often confused'),
    Bars(named, 'red'),
    Heading('Misclassified images'),
    f'{shown}, with true class, answer and its probability.',
    Images(images),
  ]


def confusion_of(classes: Sequence[str], matrix: np.ndarray) -> Confusion:
  """A confusion matrix with separate shades for right answers and errors.

  On a common scale, the errors of a good model would vanish next to its right answers.

  Args:
    classes: names of the classes.
    matrix: int [true, answer], numbers of images.

  Example:
    >>> confusion_of(['cat', 'dog'], np.array([[9, 1], [0, 10]])).rows[0]
    ('cat', [(9, 0.9), (1, 1.0)])
  """
  right = np.eye(len(matrix), dtype=bool)
  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  most = max(shares[~right].max(initial=0), 1e-9)
  strengths = np.where(right, shares, shares / most).round(3)
  return Confusion(
    [
      (name, list(zip(counts.tolist(), shades.tolist(), strict=True)))
      for name, counts, shades in zip(classes, matrix, strengths, strict=True)
    ]
  )
