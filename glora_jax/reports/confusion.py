"""Which class was taken for which, as numbers for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glora_jax.reports.charts import Bar, bars
from glora_jax.reports.error_pictures import MATRIX_CLASSES, PAIRS, confused_pairs, strengths

_WORST = 6  # pairs beside a matrix


class Cell(NamedTuple):
  """How many images of a class got an answer.

  Attributes:
    count: how many.
    strength: of its shade, from 0 to 1.
    is_right: whether the answer is right.
  """

  count: int
  strength: float
  is_right: bool


class Row(NamedTuple):
  """A class.

  Attributes:
    name: its name.
    recall: how much of it was found, '97%'; 'none' where there are no images of it.
    cells: one for every answer.
  """

  name: str
  recall: str
  cells: Sequence[Cell]


class Confusion(NamedTuple):
  """Where a classifier errs.

  Attributes:
    rows: the matrix; empty where there are too many classes to read one.
    pairs: the pairs that were confused most often.
  """

  rows: Sequence[Row]
  pairs: Sequence[Bar]


def confused(classes: Sequence[str], matrix: np.ndarray) -> Confusion:
  """What a page shows of a confusion matrix.

  Args:
    classes: names of the classes.
    matrix: int [true, answer], numbers of images.

  Example:
    >>> found = confused(['cat', 'dog'], np.array([[9, 1], [0, 10]]))
    >>> found.rows[0].recall, found.pairs
    ('90%', [Bar(label='cat, taken for dog', share=100.0, value='1 of 10')])
  """
  of_class = matrix.sum(axis=1)
  is_small = len(classes) <= MATRIX_CLASSES
  pairs = confused_pairs(matrix)[: _WORST if is_small else PAIRS]
  shown = [
    (
      f'{classes[pair.true]}, taken for {classes[pair.answer]}',
      pair.count,
      f'{pair.count:,} of {of_class[pair.true]:,}',
    )
    for pair in pairs
  ]
  return Confusion(_rows(classes, matrix) if is_small else [], bars(shown))


def _rows(classes: Sequence[str], matrix: np.ndarray) -> list[Row]:
  of_class = matrix.sum(axis=1)
  shares = matrix / np.maximum(of_class, 1)[:, None]
  shades = strengths(shares).round(3)
  return [
    Row(
      name,
      f'{100 * shares[true, true]:.0f}%' if of_class[true] else 'none',
      [
        Cell(int(count), float(shades[true, answer]), true == answer)
        for answer, count in enumerate(matrix[true])
      ],
    )
    for true, name in enumerate(classes)
  ]
