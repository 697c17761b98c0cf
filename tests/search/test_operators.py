"""Mutation and crossover."""

import numpy as np
from toy_search import SPEC

from glora_jax.search.operators import cross, mutate


def test_children_have_genes_of_both_parents():
  parents = np.stack([np.zeros((4, 5), np.int8), np.ones((4, 5), np.int8)])
  crossed = cross(np.random.default_rng(0), SPEC, parents, 200)
  assert set(np.unique(crossed)) == {0, 1}
  assert 0.4 < crossed.mean() < 0.6


def test_mutation_draws_genes_anew_with_its_probability():
  rng = np.random.default_rng(0)
  parent = np.zeros((1, 4, 5), np.int8)
  mutated = mutate(rng, SPEC, parent, 2000, 0.2)
  drawn_anew = 0.2 * (1 - 1 / SPEC.num_offered)  # a fresh draw may hit the old allele
  assert np.abs((mutated != 0).mean(0) - drawn_anew).max() < 0.05
  np.testing.assert_array_equal(mutate(rng, SPEC, parent, 3, 0.0), np.zeros((3, 4, 5)))
