"""Mutation, crossover, and changes that estimates propose."""

import warnings

import numpy as np
from toy_search import SPEC

from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import check_genome, count_params, smallest_genome
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search.operators import cross, give_up, mutate, propose_guided


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


def test_guided_proposals_prefer_what_promises_more_within_the_budget():
  values = np.random.default_rng(2).normal(size=(1, *SPEC.cost_table.shape))
  parent = smallest_genome(SPEC)
  children = propose_guided(np.random.default_rng(0), SPEC, parent[None], values, 60, 300)
  check_genome(SPEC, children)
  assert count_params(SPEC, children).max() <= 300

  def expected_loss(genomes):
    codes = genomes[..., None].astype(int)
    return np.take_along_axis(values, codes, -1).sum((1, 2, 3)).mean()

  chance = random_genomes(np.random.default_rng(1), SPEC, 200, 300)
  assert expected_loss(children) < expected_loss(chance)


def test_guided_proposals_without_a_choice_are_the_parents():
  space = SearchSpace(A='none', B='none', C='none', D='none', E='none')
  spec = Spec((Layer('fixed', 4, 3, space=space),))
  parent, values = smallest_genome(spec), np.ones((1, *spec.cost_table.shape))
  with np.errstate(all='raise'), warnings.catch_warnings(action='error'):
    children = propose_guided(np.random.default_rng(0), spec, parent[None], values, 3, None)
  np.testing.assert_array_equal(children, np.stack([parent] * 3))


def test_giving_up_takes_what_is_worth_least_first():
  full = (SPEC.num_codes - 1).astype(np.int8)
  values = np.zeros(SPEC.cost_table.shape)
  # The first layer's largest alleles are worth a lot.
  values[0, np.arange(5), full[0]] = -1000.0
  values[0, :, -1] = -1000.0
  budget = count_params(SPEC, full) // 3
  kept = give_up(SPEC, full, values, budget)
  assert count_params(SPEC, kept) <= budget
  np.testing.assert_array_equal(kept[0], full[0])
