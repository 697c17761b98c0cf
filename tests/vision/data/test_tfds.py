"""TFDS data sets: what they are called, and what is handed to other processes."""

import pathlib
import pickle
import subprocess
import tempfile

import numpy as np
import pytest
from comparing import assert_refused
from digits_folder import Digits, copy_digits, prepared_digits
from joining import HANG, PIPES
from numpy.testing import assert_array_equal
from places import program

from glora_jax.vision.data import pipeline, tfds
from glora_jax.vision.data.catalog import find
from glora_jax.vision.data.task import Source
from glora_jax.vision.data.tfds import LabelFeature, TfdsExamples


def builder_in(folder):
  return Digits(data_dir=str(folder), file_format='array_record')


def test_a_builder_made_before_its_data_set_was_prepared_reads_it(tmp_path):
  early = Digits(data_dir=str(tmp_path))
  assert not tfds.is_prepared(early)
  copy_digits(tmp_path)
  tfds.prepare(early)
  assert len(tfds.read(early, 'test').labels) == 80


def test_two_processes_may_prepare_at_once_and_need_no_tensorflow(tmp_path):
  folder, meeting_point = tmp_path / 'tfds', tmp_path / 'begun'
  meeting_point.mkdir()
  command = [*program('vision/programs/prepare_together'), str(folder), str(meeting_point)]
  started = [subprocess.Popen(command, **PIPES) for _ in range(2)]
  outputs, errors = zip(*(each.communicate(timeout=HANG) for each in started), strict=True)
  assert [each.returncode for each in started] == [0, 0], errors
  images, labels = pipeline.load(tfds.read(builder_in(folder), 'test'), 8)
  expected = f'{images.shape} {images.sum()} {labels.sum()}'
  for output in outputs:
    assert output.splitlines()[-2:] == [expected, 'tensorflow False']  # TFDS prints before
  assert str(errors).count('Another process has prepared') == 1
  assert [path.name for path in (folder / 'digits').iterdir()] == ['1.0.0']


def test_looking_for_a_data_set_leaves_no_temporary_file(tmp_path, monkeypatch):
  folder = tmp_path / 'temporary'
  folder.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(folder))
  builder = tfds.find_builder('mnist', str(tmp_path / 'data'))
  assert not tfds.is_prepared(builder)
  assert not list(folder.iterdir())
  assert tempfile.tempdir == str(folder)


@pytest.fixture
def copied(tmp_path):
  """A builder of digits in a folder of their own."""
  copy_digits(tmp_path)
  return builder_in(tmp_path)


def test_examples_can_be_pickled_and_moved_and_a_split_that_is_lacking_is_named(copied):
  builder = builder_in(prepared_digits())
  examples = tfds.read(builder, 'train[60:]')
  for again in (pickle.loads(pickle.dumps(examples)), tfds.read(copied, 'train[60:]')):
    assert again[7].key == examples[7].key != examples[8].key
    assert_array_equal(again.labels, examples.labels)
    assert_array_equal(again[7].image(), examples[7].image())
  scaled = tfds.read(copied, 'train[60:]', scale=2)[7].image()
  assert_array_equal(scaled, 2 * np.asarray(examples[7].image()))
  assert_refused("digits/1.0.0 cannot be read as 'validation'", tfds.read, builder, 'validation')


@pytest.fixture
def read(monkeypatch):
  """The examples that are read for their labels."""
  indices = []
  features_of = TfdsExamples._features_of

  def note(self, wanted):
    indices.extend(wanted)
    return features_of(self, wanted)

  monkeypatch.setattr(TfdsExamples, '_features_of', note)
  return indices


def test_labels_of_many_examples_are_remembered_beside_them_and_read_again_when_damaged(
  copied, read, monkeypatch
):
  labels = tfds.read(builder_in(prepared_digits()), 'test').labels
  record = pathlib.Path(tfds.read(copied, 'test').record)
  assert_array_equal(tfds.read(copied, 'test').labels, labels)
  assert not record.exists()
  assert record.parent == pathlib.Path(copied.data_path)
  monkeypatch.setattr(tfds, 'FEWEST_REMEMBERED', 80)
  for spoil, starts in (
    (lambda: None, 2),
    (lambda: record.write_bytes(record.read_bytes()[:100]), 1),
    (lambda: (record.unlink(), record.mkdir()), 1),  # not to be written, as where it is shared
  ):
    spoil()
    read.clear()
    for _ in range(starts):
      assert_array_equal(tfds.read(copied, 'test').labels, labels)
    assert read == list(range(80))
  others = (LabelFeature(bin_size=2), lambda example: int(example['label']) // 2)
  for label_of in others:  # from another feature, and by a function that may change
    examples = tfds.read(copied, 'test', label_of)
    assert_array_equal(examples.labels, labels // 2)
  assert examples.record is None


def test_a_damaged_data_set_is_named(tmp_path):
  copy_digits(tmp_path)
  (folder,) = (tmp_path / 'digits').iterdir()
  (records,) = folder.glob('*test*')
  records.write_bytes(records.read_bytes()[:3_000])
  assert_refused(
    'example 0 of digits/1.0.0 test',
    find('tfds:digits', Source(dir=str(tmp_path))).open,
    'test',
    kind=OSError,
  )
  (folder / 'dataset_info.json').write_text('{"name":')
  assert_refused('TFDS cannot read', find, 'tfds:digits', Source(dir=str(tmp_path)))


def test_a_home_in_the_folder_of_tfds_is_filled_in(monkeypatch, tmp_path):
  """TFDS would take a folder called ~ in the one that the command was started in."""
  monkeypatch.setenv('HOME', str(tmp_path))
  folder = tmp_path / 'tfds'
  source = Source(dir='~/tfds', root='~/lists')
  assert (source.dir, source.root) == (str(folder), str(tmp_path / 'lists'))
