"""The order of images, and how many steps a compiled call takes."""

import itertools

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from glora_jax.training.batches import batch_indices, source_of, steps_per_call

KEY = jax.random.key(0)


def test_every_epoch_is_its_own_permutation_without_the_partial_batch():
  rows = np.stack([*batch_indices(KEY, 0, 9, 32, 10)])
  epochs = rows.reshape(3, 30)
  for epoch in epochs:
    assert len(set(epoch.tolist())) == 30
  assert not np.array_equal(epochs[0], epochs[1])
  for first, last in ((0, 1), (2, 5), (4, 9)):
    assert_array_equal([*batch_indices(KEY, first, last, 32, 10)], rows[first:last])


@pytest.mark.parametrize(
  'steps_per_epoch, most, steps',
  [(3, 10, 9), (40, 10, 10), (36, 10, 9), (37, 10, 10)],
)
def test_a_call_takes_whole_epochs_or_a_whole_fraction_of_one(steps_per_epoch, most, steps):
  assert steps_per_call(steps_per_epoch, most=most) == steps


class Stream:
  """So many images, which are their own numbers."""

  def __init__(self, number):
    self.number = number

  def __len__(self):
    return self.number

  def batches(self, indices):
    for index in indices:
      yield 10 * index, index % 3


def draw_half(key, epoch, number):
  """The first half of the examples, each of them twice."""
  return jax.random.permutation(jax.random.fold_in(key, epoch), np.arange(number) // 2)


@pytest.mark.parametrize('draw', [None, draw_half])
@pytest.mark.parametrize('first', [0, 3, 7])
def test_a_stream_gives_the_batches_of_a_resident_set_in_their_order(first, draw):
  images, labels = 10 * np.arange(32), np.arange(32) % 3
  sources = source_of((images, labels), 10, 1, draw), source_of(Stream(32), 10, 1, draw)
  resident, streamed = (source.blocks(KEY, (first, 8), 4) for source in sources)
  pairs = itertools.zip_longest(resident, streamed)
  stops = []
  for resident_block, streamed_block in pairs:
    assert streamed_block.indices is None
    assert isinstance(streamed_block.data[0], jax.Array)  # on its way before a step asks for it
    assert streamed_block.stop == resident_block.stop
    for batches, rows in zip(streamed_block.data, resident_block.data, strict=True):
      assert_array_equal(batches, rows[resident_block.indices])
    stops.append(streamed_block.stop)
    assert draw is None or resident_block.indices.max() < 16
  assert stops[-1] == 8


def test_a_streams_blocks_end_where_an_epoch_does():
  """Of eleven steps, which no whole number of blocks of at most eight is."""
  stops = [block.stop for block in source_of(Stream(110), 10, 1).blocks(KEY, (3, 40), 11)]
  assert {11, 22, 33} < set(stops)
  assert stops == sorted(stops)
  assert stops[-1] == 40
