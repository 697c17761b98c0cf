"""The embedded task: all digits once, prepared by one process or by two, without TensorFlow."""

import logging
import subprocess
import time

import numpy as np
import pytest
import sklearn.datasets
from digits_folder import copy_digits, prepared_digits
from PIL import Image
from places import program

from glora_jax.data import catalog, pipeline, tfds
from glora_jax.data.task import Source
from glora_jax.data.tasks.digits import Digits

SPLITS = ('train', 'val', 'test')


@pytest.fixture(scope='module')
def task():
  return catalog.find('digits', Source(dir=prepared_digits()))


@pytest.fixture(scope='module')
def digits(task):
  return {split: pipeline.load(task.open(split), 8) for split in SPLITS}


def as_set(images, labels):
  return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_digits_are_800_200_797_and_together_all_of_them_once(digits):
  assert [len(digits[split].labels) for split in SPLITS] == [800, 200, 797]
  images = np.concatenate([split.images for split in digits.values()])
  labels = np.concatenate([split.labels for split in digits.values()])
  source = sklearn.datasets.load_digits()
  expected = (source.images * 255 / 16).round().astype(np.uint8)
  assert images.dtype == np.uint8
  assert (images == images[..., :1]).all()
  found = as_set(np.ascontiguousarray(images[..., 0]), labels)
  assert found == as_set(expected, source.target)


def test_every_class_is_in_every_split(digits):
  assert all(set(split.labels.tolist()) == set(range(10)) for split in digits.values())


def test_the_order_is_the_stored_one_and_splits_can_be_joined(digits, task):
  joined = pipeline.load(task.open('train+val'), 8)
  parts = [digits['train'], digits['val']]
  np.testing.assert_array_equal(joined.images, np.concatenate([part.images for part in parts]))
  np.testing.assert_array_equal(joined.labels, np.concatenate([part.labels for part in parts]))


def test_images_are_resized_as_pil_does_it(digits, task):
  larger = pipeline.load(task.open('val'), 28)
  for small, large in zip(digits['val'].images[:5], larger.images, strict=False):
    expected = Image.fromarray(small).resize((28, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(large, np.asarray(expected))


@pytest.mark.parametrize('file_format', ['array_record', None])
def test_a_builder_made_before_its_data_set_was_prepared_reads_it(tmp_path, file_format):
  early = Digits(data_dir=str(tmp_path), file_format=file_format)
  assert not tfds.is_prepared(early)
  copy_digits(tmp_path)
  tfds.prepare(early)
  assert len(tfds.read(early, 'test').labels) == 797


def test_two_processes_may_prepare_at_once_and_need_no_tensorflow(
  tmp_path, digits, monkeypatch, caplog
):
  meeting_point = tmp_path / 'begun'
  meeting_point.mkdir()
  generate_examples = Digits._generate_examples

  def wait_and_generate_examples(self, indices):
    (meeting_point / 'here').touch()
    while len(list(meeting_point.iterdir())) < 2:
      assert other.poll() is None
      time.sleep(0.01)
    return generate_examples(self, indices)

  monkeypatch.setattr(Digits, '_generate_examples', wait_and_generate_examples)
  command = [*program('prepare_together'), str(tmp_path / 'tfds'), str(meeting_point)]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
  other = subprocess.Popen(command, text=True, **pipes)
  with caplog.at_level(logging.INFO):
    task = catalog.find('digits', Source(dir=str(tmp_path / 'tfds')))
    loaded = {split: pipeline.load(task.open(split), 8) for split in SPLITS}
  output, errors = other.communicate(timeout=120)
  assert other.returncode == 0, errors[-2000:]
  for split, part in loaded.items():
    np.testing.assert_array_equal(part.images, digits[split].images)
    np.testing.assert_array_equal(part.labels, digits[split].labels)
  expected = [
    f'{split} {part.images.shape} {part.images.sum()} {part.labels.sum()}'
    for split, part in digits.items()
  ]
  assert output.splitlines()[-4:] == [*expected, 'tensorflow False']  # TFDS prints before
  assert (caplog.text + errors).count('prepared by another process meanwhile') == 1
  assert [path.name for path in (tmp_path / 'tfds' / 'digits').iterdir()] == ['1.0.0']
