"""Shots: as many as there are, disjoint, decided by the seed."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
from numpy.testing import assert_array_equal

from glora_jax.data.splits import shots


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
