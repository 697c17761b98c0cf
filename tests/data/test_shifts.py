"""Which way an image was shifted."""

import numpy as np
import pytest

from glora_jax.data.shifts import DIRECTIONS, shifted


@pytest.mark.parametrize('num_classes', [2, 4, 100])
def test_an_image_is_shifted_as_its_label_says(num_classes):
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(40, 12, 18, 3), dtype=np.uint8)
  moved, labels = shifted(images, rng, num_classes)
  assert moved.dtype == np.uint8
  assert labels.dtype == np.int32
  assert set(labels) == set(range(min(num_classes, len(DIRECTIONS))))
  for image, found, label in zip(images, moved, labels, strict=True):
    down, right = DIRECTIONS[label]
    np.testing.assert_array_equal(found, np.roll(image, (3 * down, 4 * right), (0, 1)))
