"""Directions from products with thin matrices, and the scale of down factors."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from glora_jax.search import unit_scores


@pytest.mark.parametrize('rank', [0, 1, 3])
def test_a_sketch_has_all_of_a_matrix_of_few_directions(rank):
  rng = np.random.default_rng(rank)
  matrix = rng.normal(size=(20, rank)) @ rng.normal(size=(rank, 30))
  right, probe = rng.normal(size=(30, 4)), np.linalg.qr(rng.normal(size=(20, 9))).Q
  found = unit_scores.find_directions(matrix @ right, probe.T @ matrix, probe)
  vectors, values, _ = np.linalg.svd(matrix)
  assert_allclose(found.squares, values[:4] ** 2, rtol=1e-6, atol=1e-9)
  assert_allclose(np.abs((vectors.T @ found.vectors).diagonal())[:rank], 1)
  assert_allclose(found.vectors.T @ found.vectors, np.eye(4), atol=1e-9)


def test_xavier_norm_is_that_of_drawn_columns():
  drawn = jax.nn.initializers.glorot_uniform()(jax.random.key(0), (400, 8))
  norms = np.linalg.norm(drawn, axis=0)
  assert_allclose(norms.mean(), unit_scores.xavier_norm(400, 8), rtol=0.02)
