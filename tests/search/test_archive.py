"""What an archive says is the best, and what it keeps."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from toy_search import SPEC

from glora_jax.search.archive import Archive


def scored(correct, loss):
  genomes = np.zeros((len(correct), len(SPEC), 5), np.int8)
  return Archive.empty(SPEC).extended(genomes, correct, loss, 0)


def test_accuracy_ties_are_broken_by_loss_and_loss_ranks_by_loss():
  archive = scored([5, 7, 7], [1.0, 9.0, 8.0])
  assert archive.ranking('accuracy').tolist() == [2, 1, 0]
  assert archive.ranking('loss').tolist() == [0, 2, 1]


@given(
  st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e4, width=16)), min_size=1, max_size=20),
  st.sampled_from(['accuracy', 'loss']),
)
def test_cost_orders_as_the_ranking_does(scores, fitness):
  archive = scored(*np.array(scores).T)
  ranked = archive.cost(fitness)[archive.ranking(fitness)]
  assert (np.diff(ranked) >= 0).all()
