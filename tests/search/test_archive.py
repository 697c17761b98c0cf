"""What an archive says is the best, and what it keeps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_search import GENES, SPEC, TARGET, search

from glora_jax.method.genomes import count_params
from glora_jax.search.archive import Archive
from glora_jax.search.evolution import Evolution

THREE = np.arange(3, dtype=np.int8)[:, None, None] * np.ones((1, 4, 5), np.int8)


def test_accuracy_ties_are_broken_by_loss_and_loss_ranks_by_loss():
  archive = Archive.empty(SPEC).extended(THREE, [5, 7, 7], [1.0, 9.0, 8.0], 0)
  assert archive.ranking('accuracy').tolist() == [2, 1, 0]
  assert archive.ranking('loss').tolist() == [0, 2, 1]


@given(
  st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e4, width=16)), min_size=1, max_size=20),
  st.sampled_from(['accuracy', 'loss']),
)
def test_cost_orders_as_the_ranking_does(scores, fitness):
  correct, loss = np.array(scores).T
  genomes = np.zeros((len(scores), len(SPEC), 5), np.int8)
  archive = Archive.empty(SPEC).extended(genomes, correct, loss, 0)
  ranked = archive.cost(fitness)[archive.ranking(fitness)]
  assert (np.diff(ranked) >= 0).all()


def test_archives_are_compared_and_not_their_arrays():
  archive, other = (Archive.empty(SPEC).extended(THREE, [5, 7, 7], [1.0, 9.0, 8.0], 0),) * 2
  assert archive == other
  assert archive != Archive.empty(SPEC)
  assert len({archive, other}) == 1


def test_a_budget_that_nothing_meets_or_without_a_spec_is_explained():
  archive = Archive.empty(SPEC).extended(THREE[2:], [7], [8.0], 0)
  message = 'None of the 1 subnets that were scored has at most 0 trained parameters'
  with pytest.raises(ValueError, match=message):
    archive.best(spec=SPEC, budget=0)
  with pytest.raises(ValueError, match='spec'):
    archive.best(budget=0)


def test_a_late_winner_is_found():
  archive, _ = search()
  late = archive.extended(TARGET[None], [GENES], [80.0], 7)
  np.testing.assert_array_equal(late.best(), TARGET)


def test_a_budget_is_read_off_the_archive_afterwards():
  settings = Evolution(
    population=20, generations=6, parents=10, mutations=10, crossovers=10, mode='pareto'
  )
  archive, _ = search(settings)
  params = count_params(SPEC, archive.genomes)
  smallest = int(params.min())
  for budget in (smallest, 100, 300):
    within = params <= budget
    best = archive.best(spec=SPEC, budget=budget)
    assert count_params(SPEC, best) <= budget
    assert (best == TARGET).sum() == archive.correct[within].max()


def test_an_empty_archive_has_no_best():
  with pytest.raises(ValueError, match='The archive has no subnet; score some first'):
    Archive.empty(SPEC).best()
