"""Arrays and streams: the same pixels in the same order."""

import pickle

import numpy as np
import pytest
from comparing import assert_refused
from label_lists import write_images
from numpy.testing import assert_array_equal

from glora_jax.vision.data import pipeline
from glora_jax.vision.data.task import Files


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
  folder = tmp_path_factory.mktemp('images')
  write_images(folder, [f'{n}.png' for n in range(70)])
  return Files([f'{folder}/{n}.png' for n in range(70)], [n % 3 for n in range(70)])


@pytest.mark.parametrize('workers', [0, 2])
def test_streams_give_the_pixels_of_resident_arrays(examples, workers):
  whole, stream = pipeline.load(examples, 8), pipeline.Stream(examples, 8, workers=workers)
  indices = np.random.default_rng(1).permutation(70)[:60].reshape(-1, 12)
  for rows, batch in zip(indices, stream.batches(indices), strict=True):
    assert_array_equal(batch.images, whole.images[rows])
    assert_array_equal(batch.labels, whole.labels[rows])


def test_blocks_of_a_stream_are_all_images_in_their_order(examples):
  whole, stream = pipeline.load(examples, 8), pipeline.Stream(examples, 8)
  blocks = list(pipeline.blocks(pipeline.Split(stream, stream.labels), 32))
  assert [len(labels) for _, labels in blocks] == [32, 32, 6]
  assert_array_equal(np.concatenate([images for images, _ in blocks]), whole.images)


def test_undecodable_images_are_named_or_left_out(examples, tmp_path, caplog):
  (tmp_path / 'broken.png').write_bytes(b'broken')
  some = Files([*examples.paths[:7], str(tmp_path / 'broken.png')], [0] * 8)
  with pytest.raises(pipeline.UnreadableImages, match=r'1 of 8 images .*/broken\.png') as raised:
    pipeline.load(some, 8)
  assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)  # as from a worker
  stream = pipeline.Stream(some, 8)
  split = pipeline.Split(stream, stream.labels)
  assert_refused('/broken.png', list, pipeline.blocks(split, 4), kind=OSError)
  assert len(pipeline.load(some, 8, skip_broken=True).images) == 7
