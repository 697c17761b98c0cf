"""Arrays and streams: the same pixels in the same order."""

import functools
import os
import pickle

import numpy as np
import pytest
from comparing import assert_refused
from numpy.testing import assert_array_equal
from PIL import Image

from glora_jax.vision.data import pipeline
from glora_jax.vision.data.examples import Files, Part


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  paths = [f'{folder}/{n}.png' for n in range(70)]
  pixels = np.random.default_rng(0).integers(0, 256, (70, 6, 9, 3), np.uint8)
  for path, image in zip(paths, pixels, strict=True):
    Image.fromarray(image).save(path)
  return Files(paths, [n % 3 for n in range(70)])


@pytest.mark.parametrize('workers', [0, 2])
def test_streams_give_the_pixels_of_resident_arrays(examples, workers):
  whole, stream = pipeline.load(examples, 8), pipeline.Stream(examples, 8, workers=workers)
  indices = np.random.default_rng(1).permutation(70)[:60].reshape(-1, 12)
  for rows, batch in zip(indices, stream.batches(indices), strict=True):
    assert_array_equal(batch.images, whole.images[rows])
    assert_array_equal(batch.labels, whole.labels[rows])
  blocks = list(pipeline.blocks(None, stream, 32))
  assert [len(labels) for _, labels in blocks] == [32, 32, 6]
  assert_array_equal(np.concatenate([images for images, _ in blocks]), whole.images)


def test_undecodable_images_are_named_or_left_out(examples, tmp_path, caplog):
  (tmp_path / 'broken.png').write_bytes(b'broken')
  some = Files([*examples.paths[:7], str(tmp_path / 'broken.png')], [0] * 8)
  with pytest.raises(pipeline.UnreadableImages, match=r'1 of 8 images .*/broken\.png') as raised:
    pipeline.load(some, 8)
  assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # as from a worker
  stream = pipeline.Stream(some, 8)
  assert_refused('/broken.png', list, pipeline.blocks(None, stream, 4), kind=OSError)
  for _ in range(2):
    kept = pipeline.load(some, 8, skip_broken=True, cache=str(tmp_path / 'cache'))
    assert len(kept.labels) == 7
  assert caplog.text.count('1 of 8 images') == 1


def test_the_cache_is_used_keyed_and_survives_damage(examples, tmp_path, read, caplog):
  load = functools.partial(pipeline.load, cache=str(tmp_path))
  first = load(examples, 8)
  assert_array_equal(load(examples, 8).images, first.images)
  assert len(read) == 70
  load(examples, 10)
  load(examples, 8, rule='crop')
  load(Part(examples, np.arange(5)), 8)
  assert len(read) == 70 * 3 + 5
  two = {'images': np.zeros((2, 8, 8, 3), np.uint8), 'indices': np.arange(2)}
  for damage in (
    lambda path: path.write_bytes(path.read_bytes()[:100]),  # a disk that was full
    lambda path: np.savez(path, a=np.zeros(3)),
    lambda path: np.savez(path, **two),
  ):
    caplog.clear()
    for path in tmp_path.iterdir():
      damage(path)
    assert_array_equal(load(examples, 8).images, first.images)
    assert 'is damaged; reading its images again' in caplog.text


def test_an_image_that_changes_is_read_again(tmp_path):
  path = tmp_path / 'image.png'
  for value in (0, 9):
    Image.new('L', (4, 4), value).save(path)
    os.utime(path, ns=(value, value))
    assert pipeline.load(Files([str(path)], [0]), 4, cache=str(tmp_path)).images.max() == value
