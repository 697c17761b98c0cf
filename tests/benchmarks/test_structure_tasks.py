"""The tasks of the structures' benchmark: what a seed draws, and labels that pictures bear out."""

import gzip
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from benchmarks.structures import tasks


def small_pool(sizes, seed=0):
  """Random pictures, as many of each class as `sizes` says, in random order."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
  images = rng.integers(0, 256, (len(labels), 28, 28, 3), dtype=np.uint8)
  return tasks.Pool(images, labels, len(sizes))


def pictures(split):
  """The pictures of a split, as a set."""
  return {image.tobytes() for image in split.images}


@pytest.fixture(scope='module')
def pool():
  return small_pool([1100, 1000, 1200, 1300, 1000])


def test_splits_of_a_seed_are_disjoint_and_classes_have_equal_shares_while_there_are_images(pool):
  drawn = tasks.draw(pool, 3)
  for name, share in {'train': 160, 'val': 40, 'test': 800}.items():
    assert np.bincount(drawn[name].labels).tolist() == [share] * 5
  everyone = [image for split in drawn.values() for image in pictures(split)]
  assert len(set(everyone)) == len(everyone) == 5000


def test_no_seed_learns_from_a_test_image_and_the_test_images_stay(pool):
  first, second = tasks.draw(pool, 0), tasks.draw(pool, 1)
  assert_array_equal(first['test'].images, second['test'].images)
  assert not pictures(first['test']) & (pictures(second['train']) | pictures(second['val']))
  assert pictures(first['train']) != pictures(second['train'])
  assert_array_equal(tasks.draw(pool, 1)['train'].labels, second['train'].labels)


def test_a_pickle_of_an_array_is_read_and_nothing_else():
  array = np.arange(6, dtype=np.uint8).reshape(2, 3)
  written = pickle.dumps(array, protocol=3).replace(b'numpy._core', b'numpy.core')
  assert_array_equal(tasks._read_array(gzip.compress(written)), array)
  with pytest.raises(pickle.UnpicklingError, match='Pool; only plain arrays'):
    tasks._read_array(gzip.compress(pickle.dumps(tasks.Pool)))
