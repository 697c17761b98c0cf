"""Splits: made and drawn, stratified, complete, disjoint, decided by the seed."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
from numpy.testing import assert_array_equal

from glora_jax.data.splits import shots, split_indices

SHARES = (0.8, 0.1, 0.1)


def test_dealing_is_stratified_and_complete():
  labels = np.repeat(np.arange(5), [3, 10, 40, 100, 7])
  parts = split_indices(labels, SHARES, seed=0)
  assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
  for part, share in zip(parts, SHARES, strict=True):
    counts = np.bincount(labels[part], minlength=5)
    assert counts.min() >= 1
    assert np.abs(counts - share * np.bincount(labels)).max() <= 2
  others = split_indices(labels, SHARES, seed=1)
  assert any(not np.array_equal(part, other) for part, other in zip(parts, others, strict=True))


@hypothesis.given(
  st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 5)
)
def test_shots_are_as_many_as_there_are_and_do_not_overlap_when_skipped(labels, number, skip):
  labels = np.array(labels)
  drawn = shots(labels, number, seed=0, skip=skip)
  before = shots(labels, skip, seed=0)
  assert not set(drawn) & set(before)
  counts = np.bincount(labels, minlength=4)
  assert_array_equal(np.bincount(labels[drawn], minlength=4), np.clip(counts - skip, 0, number))
  assert_array_equal(drawn, np.sort(drawn))
