"""The transfer benchmark draws each picture once, into disjoint splits."""

import numpy as np
from numpy.testing import assert_array_equal

from benchmarks.transfer import tasks


def test_a_picture_is_kept_once_and_not_at_all_with_two_labels():
  images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
  images[3], images[5] = images[0], images[1]
  assert tasks.distinct(images, np.array([0, 1, 2, 0, 1, 2])).tolist() == [0, 2, 4]


def test_splits_are_disjoint_stratified_and_the_same_every_time():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 30))
  counts = {'train': 8, 'val': 2, 'test': 15}
  parts = tasks.split(labels, counts)
  again = tasks.split(labels, counts)
  everyone = np.concatenate(list(parts.values()))
  assert len(set(everyone.tolist())) == len(everyone) == 75
  for name, count in counts.items():
    assert np.bincount(labels[parts[name]]).tolist() == [count] * 3
    assert_array_equal(parts[name], again[name])
  assert parts['train'].tolist() != tasks.split(labels, counts, seed=1)['train'].tolist()
