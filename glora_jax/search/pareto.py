"""Fronts of error against trained parameters: the structures that no other beats in both."""

from __future__ import annotations

import numpy as np


def pareto_front(params: np.ndarray, cost: np.ndarray) -> np.ndarray:
  """Indices of the points that no other beats in both parameters and cost.

  Args:
    params: trained parameters of each point, [point].
    cost: error of each point, or whatever else is better the lower it is, [point].

  Returns:
    The indices by ascending parameters, int64 [front]; of points that are equal in both, one.
  """
  order = np.lexsort((cost, params))
  best_before = np.minimum.accumulate(np.concatenate([[np.inf], cost[order][:-1]]))
  return order[cost[order] < best_before]


def nondominated_order(params: np.ndarray, cost: np.ndarray) -> np.ndarray:
  """Indices of all points, front by front, each front's loneliest points first.

  Sorting and crowding distance are those of NSGA-II (Deb et al. 2002, sections III A and B). The
  first front has the points that no other beats in both; the second is the front of the remaining
  points, and so on. The two ends of a front come before its inner points.

  Args:
    params: trained parameters of each point, [point].
    cost: error of each point, or whatever else is better the lower it is, [point].
  """
  order: list[int] = []
  remaining = np.arange(len(params))
  while len(remaining):
    front = remaining[pareto_front(params[remaining], cost[remaining])]
    distance = _crowding_distance(params[front]) + _crowding_distance(cost[front])
    order.extend(front[np.argsort(-distance, kind='stable')])
    remaining = np.setdiff1d(remaining, front)
  return np.array(order, np.int64)


def _crowding_distance(values: np.ndarray) -> np.ndarray:
  """Distance between each point's two neighbours in one objective, as a share of its range.

  Args:
    values: the objective along a front, ascending or descending, [front].

  Returns:
    float64 [front]; infinity at both ends.
  """
  distance = np.full(len(values), np.inf)
  distance[1:-1] = np.abs(values[2:] - values[:-2]) / (np.ptp(values) or 1)
  return distance
