"""Normalizations are the published ones."""

import numpy as np
import pytest

from glora_jax.data import augment
from glora_jax.data.normalization import normalize, statistics

PIXELS = np.array([[[[0, 128, 255]]]], np.uint8)
IN_UNIT = np.array([0, 128 / 255, 1])


@pytest.mark.parametrize(
  'name, expected',
  [
    ('unit', IN_UNIT),
    ('inception', 2 * IN_UNIT - 1),
    ('imagenet', (IN_UNIT - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
  ],
)
def test_normalizations_are_what_they_say(name, expected):
  np.testing.assert_allclose(normalize(PIXELS, name)[0, 0, 0], expected, atol=1e-5)


def test_mean_and_deviation_may_be_given_as_lists_of_a_config():
  given = [[0.1, 0.2, 0.3], [1, 2, 4]]
  assert statistics(given) == ((0.1, 0.2, 0.3), (1, 2, 4))
  expected = (IN_UNIT - given[0]) / given[1]
  np.testing.assert_allclose(normalize(PIXELS, given)[0, 0, 0], expected, atol=1e-6)


def test_reports_of_0_1_0_find_it_beside_the_augmentation():
  assert augment.normalize is normalize
