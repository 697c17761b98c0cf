"""Where a classifier errs: which class was taken for which, and the images themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colors, ticker
from matplotlib.axes import Axes

from glora_jax.reports.drawing import outline_cells, palette, panels, readable_on, save, shorten

MATRIX_CLASSES = 40  # more do not fit into a confusion matrix that can be read
PAIRS = 20  # shown in its place


class Confusion(NamedTuple):
  """How often a class was taken for another.

  Attributes:
    true: number of the class that it was.
    answer: number of the class that it was taken for.
    count: how many images.
  """

  true: int
  answer: int
  count: int


def confused_pairs(matrix: np.ndarray) -> list[Confusion]:
  """Every pair of classes that was confused, the most frequent first.

  Args:
    matrix: int [true, answer], numbers of images.

  Example:
    >>> confused_pairs(np.array([[50, 2], [7, 40]]))
    [Confusion(true=1, answer=0, count=7), Confusion(true=0, answer=1, count=2)]
  """
  errors = matrix - np.diag(np.diag(matrix))
  pairs = [
    Confusion(int(true), int(answer), int(errors[true, answer]))
    for true, answer in np.argwhere(errors)
  ]
  return sorted(pairs, key=lambda pair: (-pair.count, pair))


def draw_confusion(
  path: str, classes: Sequence[str], matrix: np.ndarray, warning: str = ''
) -> None:
  """Draws which class was taken for which.

  The whole matrix of up to `MATRIX_CLASSES` classes; of more the most confused pairs.

  Args:
    path: path of the PNG.
    classes: names of the classes.
    matrix: int [true, answer], numbers of images.
    warning: for the title.
  """
  if len(classes) <= MATRIX_CLASSES:
    _draw_matrix(path, classes, matrix, warning)
  else:
    _draw_pairs(path, classes, matrix, warning)


def _draw_matrix(path: str, classes: Sequence[str], matrix: np.ndarray, warning: str) -> None:
  number = len(classes)
  side = max(3, 0.27 * number)
  figure, axis = panels(figsize=(side + 2.2, side + 1.2))
  of_class = matrix.sum(axis=1)
  shares = matrix / np.maximum(of_class, 1)[:, None]
  cells = _shade(shares)
  axis.imshow(cells)

  size = 8 if number <= 20 else 5.5
  for (true, answer), count in np.ndenumerate(matrix):
    if count:
      axis.text(
        answer,
        true,
        f'{count}',
        ha='center',
        va='center',
        fontsize=size if count < 1000 or number <= 10 else 0.7 * size,
        color=readable_on(cells[true, answer]),
      )
  names = [shorten(name) for name in classes]
  recalls = [
    f'{100 * share:.0f}%' if count else 'none'
    for share, count in zip(np.diag(shares), of_class, strict=True)
  ]
  _name_classes(axis, names, recalls, size + 0.5)
  outline_cells(axis, matrix.shape, color=palette().rule, linewidth=0.6)
  axis.set(xlabel='answer of the model', ylabel='true class, and how much of it was found')
  axis.set_title(f'{matrix.sum():,} test images{warning}', loc='left', fontsize=10, wrap=True)
  save(figure, path, bbox_inches='tight')


def strengths(shares: np.ndarray) -> np.ndarray:
  """The shades of a confusion matrix: right answers and errors each on a scale of their own.

  On a common scale the errors of a good model would vanish beside its right answers.

  Args:
    shares: [true, answer], of a class's images.

  Returns:
    [true, answer] between 0 and 1.
  """
  right = np.eye(len(shares), dtype=bool)
  most = max(shares[~right].max(initial=0), 1e-9)
  return np.where(right, shares, shares / most)


def _shade(shares: np.ndarray) -> np.ndarray:
  """The colours of a confusion matrix.

  Args:
    shares: [true, answer], of a class's images.

  Returns:
    Colours [true, answer, 3] between 0 and 1.
  """
  right = np.eye(len(shares), dtype=bool)
  strength = strengths(shares)[..., None]
  paper, teal, red = (
    np.array(colors.to_rgb(color)) for color in (palette().paper, palette().teal, palette().red)
  )
  full = np.where(right[..., None], teal, red)
  return (1 - strength) * paper + strength * full


def _name_classes(axis: Axes, names: Sequence[str], recalls: Sequence[str], size: float) -> None:
  """Names along both axes of a confusion matrix, on the left with how much of a class was found."""
  axis.set_yticks(
    range(len(names)),
    [f'{name}  {recall}' for name, recall in zip(names, recalls, strict=True)],
    fontsize=size,
    parse_math=False,
  )
  axis.set_xticks(
    range(len(names)),
    names,
    fontsize=size,
    rotation=90 if max(map(len, names)) > 2 else 0,
    parse_math=False,
  )


def _draw_pairs(path: str, classes: Sequence[str], matrix: np.ndarray, warning: str) -> None:
  pairs = confused_pairs(matrix)[:PAIRS]
  counts = [pair.count for pair in pairs]
  figure, axis = panels(figsize=(8, 1.2 + 0.26 * max(len(pairs), 2)))
  axis.barh(range(len(pairs)), counts, color=palette().red, height=0.7)
  labels = [
    f'{shorten(classes[pair.true], 32)}, taken for {shorten(classes[pair.answer], 32)}'
    for pair in pairs
  ]
  axis.set_yticks(range(len(pairs)), labels, fontsize=8, parse_math=False)
  of_class = matrix.sum(axis=1)
  for place, pair in enumerate(pairs):
    axis.text(
      pair.count, place, f' {pair.count} of {of_class[pair.true]:,}', va='center', fontsize=8
    )
  axis.set_ylim(max(len(pairs), 1) - 0.4, -0.6)
  axis.set_xlim(0, 1.2 * max(counts, default=1))
  axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axis.set_xlabel('test images')
  title = (
    f'The {len(pairs)} most confused pairs of {len(classes):,} classes'
    if pairs
    else f'No two of {len(classes):,} classes were confused'
  )
  axis.set_title(f'{title}{warning}', loc='left', fontsize=10)
  save(figure, path, bbox_inches='tight')


def draw_errors(
  path: str,
  images: np.ndarray,
  true: Sequence[str],
  answered: Sequence[str],
  probabilities: np.ndarray,
) -> None:
  """Draws images, above each its true class, and after an arrow the answer and its probability.

  Args:
    path: path of the PNG.
    images: uint8 [image, height, width, 3], at least one.
    true: name of each image's class.
    answered: name of the class that it was taken for.
    probabilities: probability of each answer, [image].
  """
  columns = min(6, len(images))
  rows = -(-len(images) // columns)
  figure, axes = panels(rows, columns, figsize=(1.75 * columns, 2.15 * rows), squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  captions = [
    f'{shorten(name)}\n→ {shorten(answer, 17)} ({100 * probability:.1f}%)'
    for name, answer, probability in zip(true, answered, probabilities, strict=True)
  ]
  for axis, image, caption in zip(axes.flat, images, captions, strict=False):
    axis.imshow(image, interpolation='nearest' if len(image) < 100 else 'antialiased')
    axis.set_title(caption, fontsize=8, parse_math=False)
  save(figure, path, bbox_inches='tight')
