"""The evolution, on scores that can be computed by hand."""

import dataclasses
import json

import numpy as np
import pytest
from comparing import assert_trees_equal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from places import ROOT
from toy_search import SMALL, SPEC, search

from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import canonicalize, count_params
from glora_jax.search.evolution import Evolution


@pytest.mark.parametrize('mode', ['paper', 'pareto', 'random'])
def test_a_search_ends_in_the_golden_archive(mode):
  golden = json.loads((ROOT / 'tests' / 'golden' / 'searches.json').read_text())[mode]
  archive, judge = search(dataclasses.replace(SMALL, crossovers=8, mode=mode), budget=300)
  assert {asked.shape for asked in judge.asked} == {(20, 4, 5)}  # for one compiled program
  assert [''.join(map(str, genome.ravel())) for genome in archive.genomes] == golden['genomes']
  assert archive.correct.tolist() == golden['correct']
  assert archive.generation.tolist() == golden['generation']
  assert archive.best(spec=SPEC, budget=200).tolist() == golden['best']


@settings(deadline=None, max_examples=20)
@given(budget=st.sampled_from([0, 1, 3, 20, 100, 400, None]), seed=st.integers(0, 100))
def test_every_budget_is_respected_and_every_search_ends(budget, seed):
  archive, _ = search(dataclasses.replace(SMALL, generations=2), seed=seed, budget=budget)
  counts = count_params(SPEC, archive.genomes)
  assert len(counts) >= 1
  assert budget is None or counts.max() <= budget
  assert budget != 0 or not archive.genomes.any()


def test_initial_genomes_within_the_budget_come_first_and_copies_count_once():
  genomes = random_genomes(np.random.default_rng(1), SPEC, 8)
  params = count_params(SPEC, genomes)
  budget = int(np.median(params))
  archive, _ = search(initial=np.concatenate([genomes[:1]] * 50 + [genomes]), budget=budget)
  within = canonicalize(SPEC, genomes[params <= budget])
  assert 0 < len(within) < 8
  assert_array_equal(archive.genomes[: len(within)], within)


@pytest.mark.parametrize('mode', ['paper', 'pareto', 'random'])
def test_a_resumed_search_equals_an_uninterrupted_one(mode):
  plan = dataclasses.replace(SMALL, mode=mode, generations=3)
  saved = []
  whole, _ = search(plan, on_generation=saved.append)
  for archive in saved:
    resumed, judge = search(plan, archive=archive)
    assert len(judge.asked) == plan.generations - archive.generation.max()
    assert_trees_equal(whole.arrays(), resumed.arrays())
  assert not np.array_equal(whole.genomes, search(plan, seed=1)[0].genomes)


def test_defaults_are_the_papers():
  assert Evolution() == Evolution(50, 20, 10, 25, 25, 0.2, 'accuracy', 'paper')
