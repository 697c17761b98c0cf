"""Metrics of a classifier are those of scikit-learn, and of their definitions."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics as reference

from glora_jax.vision import metrics

CLASSES = 7  # the last one has no images and is never the answer


@pytest.fixture(params=range(5))
def answers(request):
  """(true classes, answers): imbalanced, one class without images and one without answers."""
  rng = np.random.default_rng(request.param)
  labels = rng.choice(5, 60, p=[0.6, 0.2, 0.1, 0.05, 0.05])
  guesses = rng.choice([0, 1, 2, 3, 5], 60)
  return labels, np.where(rng.random(60) < 0.7, labels, guesses)


def test_metrics_by_class_are_those_of_scikit_learn(answers):
  matrix = metrics.confusion_matrix(*answers, CLASSES)
  names = range(CLASSES)
  assert_array_equal(matrix[:, :-1], reference.confusion_matrix(*answers, labels=names))
  found = metrics.by_class(matrix)
  expected = reference.precision_recall_fscore_support(*answers, labels=names, zero_division=np.nan)
  assert_allclose([found[name] for name in ('precision', 'recall', 'f1', 'images')], expected)
  with warnings.catch_warnings(action='ignore'):  # of a class without images
    expected = reference.balanced_accuracy_score(*answers)
  assert metrics.balanced_accuracy(matrix) == pytest.approx(expected)


def test_an_image_without_an_answer_counts_against_its_class(answers):
  labels, found = answers
  found[:10] = -1
  recall = metrics.by_class(metrics.confusion_matrix(labels, found, CLASSES))['recall']
  for number in range(5):
    assert recall[number] == np.mean(found[labels == number] == number)


def test_the_calibration_error_is_the_gap_of_each_bin_weighted_by_its_images():
  rng = np.random.default_rng(0)
  shares = np.concatenate([rng.random(500), [0, 1 / 15, 1]])
  is_right = rng.random(503) < shares**2
  bins, expected = np.maximum(np.ceil(shares * 15), 1), 0.0
  for inside in (bins == number for number in range(1, 16)):
    expected += abs(shares[inside].mean() - is_right[inside].mean()) * inside.mean()
  assert metrics.calibration_error(shares, is_right) == pytest.approx(expected)
  shares[:100] = np.nan  # no answer: of probability 0, and wrong
  is_right[:100] = False
  assert np.isfinite(metrics.calibration_error(shares, is_right))
