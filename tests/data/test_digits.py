"""The embedded task: the pixels, the order and the splits that results of it are of."""

import hashlib
import pickle

import numpy as np
import pytest
from digits_folder import Digits, prepared_digits

from glora_jax.data import pipeline
from glora_jax.data.catalog import find
from glora_jax.data.tfds import TfdsSplit

# Of the images at 8 and at 28 pixels and of the labels, as TFDS gave them.
DIGESTS = {
  'train': ('648bae51a2326abc', 'b8389e27fd42e58a', 'cf2b8d988b171884'),
  'val': ('c4ecb7dfaf9b99cd', '6bcb83a1df02ae9c', '0c79e221026b5275'),
  'test': ('1f74b092c4b6de18', 'c8ccfdb1bb590c19', '0420885e69d13f5a'),
}
STORED = {'train': 'train[:800]', 'val': 'train[800:]', 'test': 'test'}


@pytest.mark.parametrize('split', DIGESTS)
def test_pixels_order_and_splits_stay_those_of_the_first_results(split):
  examples = pickle.loads(pickle.dumps(find('digits').open(split)))
  small, large = (pipeline.load(examples, size) for size in (8, 28))
  arrays = (small.images, large.images, small.labels)
  found = tuple(hashlib.sha256(array.tobytes()).hexdigest()[:16] for array in arrays)
  assert found == DIGESTS[split]
  builder = Digits(data_dir=prepared_digits(), file_format='array_record')
  stored = pipeline.load(TfdsSplit(builder, STORED[split]).open(), 8)
  np.testing.assert_array_equal(small.images, stored.images)
  np.testing.assert_array_equal(small.labels, stored.labels)
