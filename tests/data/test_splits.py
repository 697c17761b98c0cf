"""Splits: dealt and drawn, stratified, complete, disjoint, decided by the seed; masked."""

import pickle

import hypothesis
import hypothesis.strategies as st
import numpy as np

from glora_jax.data.examples import Files, OpenedSplit
from glora_jax.data.splits import Shots, deal, shots
from glora_jax.data.task import Task

SHARES = (0.8, 0.1, 0.1)


def test_dealing_is_stratified_and_complete():
  labels = np.repeat(np.arange(5), [3, 10, 40, 100, 7])
  parts = deal(labels, SHARES, seed=0)
  np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
  for part, share in zip(parts, SHARES, strict=True):
    counts = np.bincount(labels[part], minlength=5)
    assert counts.min() >= 1
    assert np.abs(counts - share * np.bincount(labels)).max() <= 2
  others = deal(labels, SHARES, seed=1)
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
  np.testing.assert_array_equal(
    np.bincount(labels[drawn], minlength=4), np.clip(counts - skip, 0, number)
  )
  np.testing.assert_array_equal(drawn, np.sort(drawn))


def test_splits_can_be_compared_and_pickled():
  pool = OpenedSplit(Files(['a.png', 'b.png'], [0, 1]))
  split = Shots(pool, per_class=1, seed=2)
  assert pickle.loads(pickle.dumps(split)) == split
  assert split != Shots(pool, per_class=1, seed=3)
  assert split.open().labels.tolist() == [0, 1]


def test_only_masked_test_sets_have_a_mask():
  split = OpenedSplit(Files(['0.png', '2.png'], [0, 2]))
  splits = {'test': split, 'rare': split}
  task = Task('pets', ('cat', 'dog', 'owl'), splits, 'photos', masked=('rare',))
  assert task.tests == ('test', 'rare')
  assert task.mask('test') is None
  np.testing.assert_array_equal(task.mask('rare'), [True, False, True])
