"""Fronts and their order, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glora_jax.search.pareto import nondominated_order, pareto_front


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


@pytest.mark.parametrize(
  'params, cost', [([0, 1, 2, 8, 10], range(5)), (range(5), [0, 1, 2, 8, 10])]
)
def test_ends_of_a_front_come_first_and_then_the_loneliest(params, cost):
  order = nondominated_order(np.array(params), -np.array(cost, float))
  assert order.tolist() == [0, 4, 3, 2, 1]
