"""Fronts, their order and their volume, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_search import GENES, SPEC, search

from glora_jax.method.genomes import count_params, largest_genome
from glora_jax.search.pareto import (
  hypervolume,
  hypervolume_by_generation,
  nondominated_order,
  pareto_front,
)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_pareto_front_is_what_nothing_dominates_and_comes_first(points):
  params, error = np.array(points).T
  front = pareto_front(params, error.astype(float))
  dominated = {
    (p, e) for p, e in points for q, f in points if q <= p and f <= e and (q, f) != (p, e)
  }
  assert {(params[i], error[i]) for i in front} == {*points} - dominated
  assert (np.diff(params[front]) > 0).all()
  order = nondominated_order(params, error.astype(float))
  assert sorted(order.tolist()) == list(range(len(points)))
  assert set(order[: len(front)]) == set(front)


def test_ends_of_a_front_come_first_and_then_the_loneliest():
  params, cost = np.array([0, 1, 2, 8, 10]), np.array([10.0, 9.0, 8.0, 2.0, 0.0])
  assert nondominated_order(params, cost).tolist() == [0, 4, 3, 2, 1]


def test_hypervolume_by_hand():
  assert hypervolume(np.array([0]), np.array([0.0]), 10) == 1
  two_points = hypervolume(np.array([5, 2]), np.array([0.2, 0.5]), 10)
  assert two_points == pytest.approx((3 * 0.5 + 5 * 0.8) / 10)
  assert hypervolume(np.array([20]), np.array([0.0]), 10) == 0
  assert hypervolume(np.array([0, 2]), np.array([0.25, 0.0]), 0) == 0.75
  assert hypervolume(np.array([2]), np.array([0.0]), 0) == 0


def test_hypervolume_of_every_generation_is_that_of_all_before_it():
  archive, _ = search()
  params, most = count_params(SPEC, archive.genomes), count_params(SPEC, largest_genome(SPEC))
  error = 1 - archive.correct / GENES
  expected = [hypervolume(params[:end], error[:end], most) for end in range(20, 141, 20)]
  assert hypervolume_by_generation(archive, SPEC, GENES) == expected == sorted(expected)
