"""The benchmark of input: what it makes is what it streams, and its order is not the files'."""

import numpy as np

from benchmarks.input_pipeline import million, photographs
from glora_jax.data import pipeline


def test_records_are_made_opened_and_streamed_whole(tmp_path, monkeypatch):
  monkeypatch.setattr(million.Few, 'NUMBER', 3 * million.BATCH)
  found = million.measure(str(tmp_path), quick=True)  # compares the first batch's labels
  assert found.number == 384
  assert list(found.costs)[-1] == 'first batch'
  assert found.rate > 0


def test_the_same_photographs_come_round_again(tmp_path):
  files = photographs.write(str(tmp_path), 3)
  order = photographs.cycled(3, 1)
  (batch,) = pipeline.Stream(files, 8).batches(order)
  np.testing.assert_array_equal(batch.images[:3], batch.images[3:6])
  assert not np.array_equal(batch.images[0], batch.images[2])
