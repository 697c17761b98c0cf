"""Fronts of error against trained parameters: the structures that no other beats in both."""

from __future__ import annotations

import numpy as np

from glora_jax.method.genomes import count_params, largest_genome
from glora_jax.method.space import Spec
from glora_jax.search.archive import Archive


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
  first front is what no point beats in both; the second is that of the remaining points, and so
  on. The two ends of a front come before its inner points.

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


def hypervolume(params: np.ndarray, error: np.ndarray, most_params: float) -> float:
  """Share of the box up to (most_params, 1) that the points dominate.

  A place in the box is dominated where a point is at least as good in both. A structure without
  trained parameters and without errors would give 1. A box without width is the line of its errors.

  Args:
    params: trained parameters of each point, [point].
    error: error of each point, [point], at most 1.
    most_params: the box's edge in parameters.
  """
  front = pareto_front(params, error)
  widths = np.diff(np.append(params[front], most_params).clip(max=most_params))
  heights = 1 - error[front]
  if most_params == 0:
    return float(heights[params[front] <= 0].max(initial=0.0))
  return float((widths * heights).sum() / most_params)


def hypervolume_by_generation(archive: Archive, spec: Spec, num_images: int) -> list[float]:
  """The hypervolume of all structures that were scored up to each generation.

  Args:
    archive: the search's archive.
    spec: the genomes' spec; its largest structure on offer is the box's edge in parameters.
    num_images: number of images that the structures were scored on.
  """
  params = count_params(spec, archive.genomes)
  error = 1 - archive.correct / num_images
  most_params = count_params(spec, largest_genome(spec))
  ends = np.searchsorted(archive.generation, np.unique(archive.generation), side='right')
  return [hypervolume(params[:end], error[:end], most_params) for end in ends]
