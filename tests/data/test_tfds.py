"""TFDS data sets: what they are called, and what is handed to other processes."""

import logging
import pickle

import numpy as np
import pytest
from digits_folder import prepared_digits

from glora_jax.data import tfds
from glora_jax.data.catalog import find
from glora_jax.data.task import Source


@pytest.fixture(scope='module')
def split():
  return find('digits', Source(dir=prepared_digits())).splits['val']


def test_splits_and_their_examples_can_be_pickled(split):
  copy = pickle.loads(pickle.dumps(split))
  assert (copy.expression, copy.label_of) == ('train[800:]', tfds.LabelFeature())
  examples = split.open()
  for opened in (copy.open(), pickle.loads(pickle.dumps(examples))):
    assert opened.identity == examples.identity
    np.testing.assert_array_equal(opened.labels, examples.labels)
    np.testing.assert_array_equal(opened.image(7), examples.image(7))


def test_equal_splits_are_equal(split):
  assert split == tfds.TfdsSplit(split.builder, 'train[800:]')
  assert split != tfds.TfdsSplit(split.builder, 'test')


def test_splits_that_a_data_set_lacks_are_explained(split):
  with pytest.raises(ValueError, match=r"digits/1\.0\.0 cannot be read as 'validation'"):
    tfds.read(split.builder, 'validation')


def test_tfds_decodes_what_is_not_pixels_yet_and_gives_no_advice(split, caplog):
  examples = tfds.read(split.builder, 'test', scale=3)
  with caplog.at_level(logging.INFO, logger='absl'):
    scaled = np.asarray(examples.image(0))
  pixels = np.asarray(tfds.read(split.builder, 'test').image(0))
  np.testing.assert_array_equal(scaled, pixels * np.uint8(3))
  assert 'OpenCV' not in caplog.text
