"""TFDS data sets: what they are called, and what is handed to other processes."""

import logging
import pickle
import re

import numpy as np
import pytest
from digits_folder import copy_digits, prepared_digits

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


@pytest.mark.parametrize('version', ['x.y', '1', '*', '1.0.0.0', '../x'])
def test_what_is_no_version_is_a_sentence(version):
  with pytest.raises(ValueError, match=rf"'{re.escape(version)}' is no version of a TFDS data set"):
    find('tfds:digits', Source(version=version))


@pytest.mark.parametrize('name', ['../x', ' ', 'mnist/none'])
def test_names_that_tfds_cannot_read_are_a_sentence(name):
  with pytest.raises(ValueError, match=rf"cannot read the data set '{name}' .*; see its names"):
    find(f'tfds:{name}')


@pytest.mark.parametrize('task', ['digits', 'tfds:digits'])
def test_a_damaged_data_set_is_named(tmp_path, task):
  copy_digits(tmp_path)
  (folder,) = (tmp_path / 'digits').iterdir()
  (records,) = folder.glob('*test*')
  records.write_bytes(records.read_bytes()[:60_000])
  with pytest.raises(OSError, match=r'example 0 of digits/1\.0\.0 test .* cannot be read .*again'):
    find(task, Source(dir=str(tmp_path))).open('test')
  (folder / 'dataset_info.json').write_text('{"name":')
  with pytest.raises(ValueError, match=r'TFDS cannot read the .*digits.* it is prepared again'):
    find(task, Source(dir=str(tmp_path)))
