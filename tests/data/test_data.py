"""The embedded task, reading, resizing, normalization, augmentation; real files."""

import dataclasses
import gzip
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
import sklearn.datasets
from conftest import program
from PIL import Image

from glora_jax.data import augment, catalog, normalization, pipeline, task, tfds
from glora_jax.data.tasks import fashion_mnist
from glora_jax.data.tasks.digits import Digits


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('tfds'))


@pytest.fixture(scope='module')
def digits_task(data_dir):
  return catalog.find('digits', task.Source(dir=data_dir))


@pytest.fixture(scope='module')
def digits(digits_task):
  return {split: pipeline.load(digits_task.open(split), 8) for split in ('train', 'val', 'test')}


def test_digits_are_800_200_797_and_together_all_of_them_once(digits):
  assert [len(digits[split].labels) for split in ('train', 'val', 'test')] == [800, 200, 797]
  images = np.concatenate([split.images for split in digits.values()])
  labels = np.concatenate([split.labels for split in digits.values()])
  source = sklearn.datasets.load_digits()
  expected = (source.images * 255 / 16).round().astype(np.uint8)
  as_set = lambda images, labels: sorted(
    (image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
  )
  assert images.dtype == np.uint8
  assert (images == images[..., :1]).all()
  assert as_set(np.ascontiguousarray(images[..., 0]), labels) == as_set(expected, source.target)


def test_every_class_is_in_every_split(digits):
  assert all(set(split.labels.tolist()) == set(range(10)) for split in digits.values())


def test_the_order_is_the_stored_one_and_splits_can_be_joined(digits, digits_task):
  joined = pipeline.load(digits_task.open('train+val'), 8)
  np.testing.assert_array_equal(
    joined.images, np.concatenate([digits['train'].images, digits['val'].images])
  )
  np.testing.assert_array_equal(
    joined.labels, np.concatenate([digits['train'].labels, digits['val'].labels])
  )


def test_reading_needs_no_tensorflow(data_dir, digits):
  code = (
    f'import sys; from glora_jax.data import catalog, pipeline, task\n'
    f"pipeline.load(catalog.find('digits', task.Source(dir={data_dir!r})).open('val'), 8); print('tensorflow' in sys.modules)"
  )
  assert (
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout
    == 'False\n'
  )


def test_of_two_processes_that_prepare_the_digits_at_once_the_later_uses_what_is_there(
  tmp_path, digits
):
  (tmp_path / 'begun').mkdir()
  command = [*program('prepare_together'), str(tmp_path / 'tfds'), str(tmp_path / 'begun')]
  pair = [
    subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(2)
  ]
  said = [process.communicate(timeout=120) for process in pair]
  for process, (_, errors) in zip(pair, said, strict=True):
    assert process.returncode == 0, errors[-2000:]
  expected = [
    f'{split} {part.images.shape} {part.images.sum()} {part.labels.sum()}'
    for split, part in digits.items()
  ]
  assert [output.splitlines()[-3:] for output, _ in said] == [expected] * 2  # after what TFDS says
  assert [errors.count('prepared by another process meanwhile') for _, errors in said] in (
    [0, 1],
    [1, 0],
  )
  assert [path.name for path in (tmp_path / 'tfds' / 'digits').iterdir()] == ['1.0.0']


@pytest.mark.parametrize('file_format', ['array_record', None])
def test_a_builder_made_before_its_data_set_was_prepared_reads_it(tmp_path, file_format):
  early = Digits(data_dir=str(tmp_path), file_format=file_format)
  catalog.find('digits', task.Source(dir=str(tmp_path))).open('train')
  tfds.prepare(early)
  records = tfds.read(
    early, 'test', lambda example: example['image'], lambda example: int(example['label'])
  )
  assert len(records.labels) == 797


def test_images_are_resized_as_pil_does_it(digits, digits_task):
  larger = pipeline.load(digits_task.open('val'), 28)
  for small, large in zip(digits['val'].images[:5], larger.images, strict=False):
    expected = Image.fromarray(small).resize((28, 28), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(large, np.asarray(expected))


def test_a_label_beyond_the_classes_is_explained(digits_task):
  wrong = dataclasses.replace(digits_task, classes=('zero', 'one'))
  with pytest.raises(ValueError, match='labels 0 to 9, but 2 classes'):
    wrong.open('val')


def test_unknown_tasks_are_listed():
  with pytest.raises(ValueError, match='digits'):
    catalog.find('digit')


def idx(array):
  return gzip.compress(
    struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape) + array.tobytes()
  )


def test_idx_files_round_trip(tmp_path):
  rng, arrays = np.random.default_rng(0), {}
  for prefix, number in (('train', 6), ('t10k', 3)):
    arrays[prefix] = (
      rng.integers(0, 256, (number, 28, 28)).astype(np.uint8),
      rng.integers(0, 10, number).astype(np.uint8),
    )
    (tmp_path / f'{prefix}-images-idx3-ubyte.gz').write_bytes(idx(arrays[prefix][0]))
    (tmp_path / f'{prefix}-labels-idx1-ubyte.gz').write_bytes(idx(arrays[prefix][1]))
  read = fashion_mnist.fashion_mnist(tmp_path)
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    np.testing.assert_array_equal(read[split][0], np.repeat(arrays[prefix][0][..., None], 3, -1))
    np.testing.assert_array_equal(read[split][1], arrays[prefix][1])


@pytest.mark.parametrize(
  'damage',
  [
    lambda b: b[:-9],
    lambda b: b'',
    lambda b: b'no gzip',
    lambda b: gzip.compress(gzip.decompress(b)[:-1]),
    lambda b: gzip.compress(b'\x00\x00\x0d\x01' + bytes(8)),
  ],
)
def test_damaged_idx_files_are_refused(tmp_path, damage):
  path = tmp_path / 'train-images-idx3-ubyte.gz'
  path.write_bytes(damage(idx(np.zeros((4, 5), np.uint8))))
  with pytest.raises(ValueError, match='not a readable gzipped idx file'):
    fashion_mnist.read_idx(path)


def test_a_missing_folder_says_where_the_files_come_from():
  with pytest.raises(FileNotFoundError, match='Debian package dataset-fashion-mnist'):
    fashion_mnist.fashion_mnist('no/such/folder')


def test_normalizations_are_what_they_say():
  images = np.array([[[[0, 128, 255]]]], np.uint8)
  np.testing.assert_allclose(
    normalization.normalize(images, 'unit')[0, 0, 0], [0, 128 / 255, 1], atol=1e-6
  )
  np.testing.assert_allclose(
    normalization.normalize(images, 'inception')[0, 0, 0], [-1, 256 / 255 - 1, 1], atol=1e-6
  )
  expected = (np.array([0, 128 / 255, 1]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(
    normalization.normalize(images, 'imagenet')[0, 0, 0], expected, atol=1e-5
  )
  with pytest.raises(ValueError, match='imagenet, inception, clip, unit'):
    normalization.normalize(images, 'none')


def test_flips_and_shifts_are_random_and_keep_the_pixels():
  images = np.random.default_rng(0).integers(1, 256, (64, 6, 6, 3)).astype(np.uint8)
  flipped = np.asarray(augment.random_flip(jax.random.key(0), images))
  mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)])
  kept = np.array([np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)])
  assert (mirrored ^ kept).all()
  assert 16 < mirrored.sum() < 48
  shifted = np.asarray(augment.random_shift(jax.random.key(1), images, 2))
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
  offsets = set()
  for image, before in zip(shifted, padded, strict=True):
    found = [
      (y, x)
      for y in range(5)
      for x in range(5)
      if np.array_equal(image, before[y : y + 6, x : x + 6])
    ]
    assert found
    offsets.add(found[0])
  assert len(offsets) > 12
