"""Classes of different sizes: how often their images are drawn, and what they weigh."""

import jax
import numpy as np

from glora_jax.vision.data.balance import class_weights, draw_classes

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [200, 30, 7]))


def test_weights_have_the_mean_1_and_are_the_same_in_sum_for_every_class_with_images():
  weights = class_weights(LABELS, 5)[LABELS]
  assert np.isclose(weights.mean(), 1)
  np.testing.assert_allclose(np.bincount(LABELS, weights), 237 / 3 * np.array([1, 1, 0, 1]))


def test_classes_and_the_images_of_each_are_drawn_equally_often_or_once_more():
  epochs = [draw_classes(LABELS, 224, jax.random.key(1), epoch, 237) for epoch in range(20)]
  for drawn in epochs:
    assert set(np.bincount(LABELS[drawn])) <= {0, 74, 75}
    times = np.bincount(drawn, minlength=237)
    for label in (0, 1, 3):
      assert np.ptp(times[label == LABELS]) <= 1
  assert len({tuple(drawn) for drawn in epochs}) == 20
  # No image is left out for good, and no place in an epoch belongs to a class.
  assert np.bincount(np.concatenate(epochs), minlength=237).min() > 0
  assert all(len(set(place)) > 1 for place in LABELS[np.stack(epochs)].T)
