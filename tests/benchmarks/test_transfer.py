"""The transfer benchmark draws each picture once, into disjoint splits."""

import numpy as np

from benchmarks.transfer import tasks


def test_a_picture_is_kept_once_and_not_at_all_with_two_labels():
  images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
  images[3], images[5] = images[0], images[1]
  assert tasks.distinct(images, np.array([0, 1, 2, 0, 1, 2])).tolist() == [0, 2, 4]
