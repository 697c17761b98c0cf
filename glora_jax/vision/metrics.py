"""Metrics of a classifier: by class from a confusion matrix, and the calibration error."""

from __future__ import annotations

import numpy as np

BINS = 15  # of the calibration error


def confusion_matrix(labels: np.ndarray, answers: np.ndarray, num_classes: int) -> np.ndarray:
  """Numbers of images by class and answer.

  Args:
    labels: the true classes, int [image].
    answers: the answers, int [image]; -1 for none.
    num_classes: number of classes.

  Returns:
    int [class, class + 1]; the last column has the images without an answer.

  Example:
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, -1]), 2).tolist()
    [[1, 1, 0], [0, 0, 1]]
  """
  matrix = np.zeros((num_classes, num_classes + 1), int)
  np.add.at(matrix, (labels, answers), 1)
  return matrix


def by_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
  """Metrics of each class of a confusion matrix; nan if there is nothing to divide by.

  Returns:
    'images', int [class]; and three of float [class]: 'precision' (the share of right answers among
    the images that were given the class), 'recall' (the share of right answers among the images of
    the class), and 'f1' (the harmonic mean of both).

  Example:
    >>> by_class(confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2))['recall'].tolist()
    [0.5, 1.0]
  """
  images, answered, right = matrix.sum(1), matrix.sum(0)[:-1], np.diag(matrix)
  with np.errstate(invalid='ignore'):
    return {
      'images': images,
      'precision': right / answered,
      'recall': right / images,
      'f1': 2 * right / (images + answered),
    }


def balanced_accuracy(matrix: np.ndarray) -> float:
  """The mean recall of the classes that have images.

  Example:
    >>> balanced_accuracy(confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0]), 2))
    0.5
  """
  return float(np.nanmean(by_class(matrix)['recall']))


def calibration_error(probabilities: np.ndarray, is_right: np.ndarray) -> float:
  """The expected calibration error, over 15 bins of equal width.

  It is the mean distance between the probability of an answer and the share of right answers among
  those of similar probability.

  Args:
    probabilities: of the answers, float [image]; nan counts as 0.
    is_right: whether they are right, bool [image].

  Example:
    >>> calibration_error(np.array([0.75, 0.75]), np.array([True, False]))
    0.25
  """
  probabilities = np.nan_to_num(probabilities)
  bins = np.clip(np.ceil(BINS * probabilities) - 1, 0, BINS - 1).astype(int)
  gaps = np.bincount(bins, weights=probabilities - is_right)
  return float(np.abs(gaps).sum() / len(bins))
