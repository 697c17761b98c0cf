"""Where training starts: supports of an adapted model on the directions of its gradients."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from glora_jax.mesh import on_host
from glora_jax.method.groups import Group
from glora_jax.search.allocation import aligned_factors, left_vectors
from glora_jax.search.row_gradients import RowGradients
from glora_jax.tree import get, replace


def aligned(group: Group, supports: Any, rows: list[RowGradients], norm: float) -> Any:
  """The supports with a group's down factors on the singular vectors of the mean gradient.

  Args:
    group: the layers.
    supports: the `glora` collection.
    rows: what was measured of the group's rows.
    norm: length that the columns get.

  Returns:
    The collection with new arrays for the group, in the same boxes.
  """
  given = nn.meta.unbox(get(supports, group.path))
  flat = {
    name: np.asarray(on_host(array)).reshape(-1, *array.shape[len(group.stack_shape) :])
    for name, array in given.items()
  }
  layers = [
    aligned_factors(
      {name: array[index] for name, array in flat.items()}, _directions(group, row), norm
    )
    for index, row in enumerate(rows)
  ]
  for name, array in given.items():
    stacked = np.stack([layer[name] for layer in layers]).reshape(array.shape)
    supports = replace(supports, (*group.path, name), jnp.asarray(stacked, array.dtype))
  return supports


def _directions(group: Group, row: RowGradients) -> dict[str, np.ndarray]:
  """The singular vectors of a row's mean gradients among its inputs, by the down factor's name."""
  gradients, basis, scaled_basis = row
  found = {'B_down': _left(gradients.kernel, basis, max(group.space.ranks))}
  if gradients.scaled_kernel is not None:
    found['A_down'] = _left(gradients.scaled_kernel, scaled_basis, max(group.space.ranks))
  return found


def _left(gradients: np.ndarray, basis: np.ndarray | None, number: int) -> np.ndarray:
  vectors = left_vectors(gradients.mean(0), min(number, *gradients.shape[1:]))
  return vectors if basis is None else basis @ vectors
