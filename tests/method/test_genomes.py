"""Search spaces, and genomes: counts, canonical forms, drawing under budgets, JSON."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from glora_jax.method.adapter import ADAPTER, adapter_shapes, init_arrays
from glora_jax.method.draws import random_genomes, sample_genome, shrink
from glora_jax.method.genomes import (
  canonicalize,
  check_genome,
  count_params,
  genome_from_json,
  genome_to_json,
  largest_genome,
)
from glora_jax.method.presets import preset
from glora_jax.method.space import MOST_RANKS, TENSORS, Layer, SearchSpace, Spec
from glora_jax.search.evolution import cross, mutate

LAYERS = Spec(
  (
    Layer('a', 6, 9, True, SearchSpace((2, 4))),
    Layer('b', 9, 1, True, SearchSpace((2, 4))),
    Layer('c', 5, 7, False, SearchSpace((2, 4))),
  )
)


seeds = st.integers(0, 2**32 - 1)
genomes = seeds.map(
  lambda seed: np.random.default_rng(seed).integers(0, LAYERS.num_codes).astype(np.int8)
)


def test_counts_are_vectorized_over_any_leading_axes():
  rng = np.random.default_rng(0)
  population = rng.integers(0, LAYERS.num_codes, (3, 2, len(LAYERS), 5)).astype(np.int8)
  counts = count_params(LAYERS, population)
  assert counts.dtype == np.int64
  for at in np.ndindex(3, 2):
    assert counts[at] == count_params(LAYERS, population[at])
  assert count_params(LAYERS, population[:0]).shape == (0, 2)


@given(genome=genomes)
def test_canonical_genomes_are_idempotent_and_never_cost_more(genome):
  canonical = canonicalize(LAYERS, genome)
  assert canonical.dtype == np.int8
  assert_array_equal(canonicalize(LAYERS, canonical), canonical)
  assert count_params(LAYERS, canonical) <= count_params(LAYERS, genome)
  assert not canonical[2, 2:].any()  # no bias: nothing for C, D, E to act on


def test_one_output_makes_vector_and_constant_one_subnet():
  vector, constant = np.zeros((2, 3, 5), np.int8)
  vector[1], constant[1] = [2, 2, 0, 2, 2], [1, 1, 0, 1, 1]
  assert_array_equal(canonicalize(LAYERS, vector), constant)


FEW = SearchSpace(
  (2, 4),
  A='none',
  B=('none', 'lora:4'),
  D=('none', 'constant'),
  E=('none', 'vector'),
  one_shift=True,
)
SMALL = Spec((Layer('a', 6, 9, space=FEW),))


def compiled_draws(number):
  keys = jax.random.split(jax.random.key(0), number)
  return np.asarray(jax.jit(jax.vmap(lambda key: sample_genome(key, SMALL)))(keys))


def host_draws(number, budget=None):
  return random_genomes(np.random.default_rng(0), SMALL, number, budget)


@pytest.mark.parametrize(
  'draw, budget', [(compiled_draws, np.inf), (host_draws, np.inf), (host_draws, 20)]
)
def test_every_structure_on_offer_within_a_budget_is_drawn_equally_often_and_no_other(draw, budget):
  """Also where a layer may have C or E, but not both."""
  rows = np.array(list(itertools.product([0], [0, 4], range(4), [0, 1], [0, 2])), np.int8)
  allowed = rows[
    ((rows[:, 2] == 0) | (rows[:, 4] == 0)) & (count_params(SMALL, rows[:, None]) <= budget)
  ]
  drawn = draw(20_000) if budget == np.inf else draw(20_000, budget)
  assert drawn.dtype == np.int8
  counts = collections.Counter(map(tuple, drawn[:, 0].tolist()))
  assert counts.keys() == set(map(tuple, allowed.tolist()))
  expected = len(drawn) / len(allowed)
  assert max(abs(count - expected) for count in counts.values()) < 5 * np.sqrt(expected)


DISTINCT = SearchSpace.distinct((1, 2))
SHIFTS = Spec(
  (
    Layer('wide', 6, 9, space=DISTINCT),
    Layer('narrow', 9, 6, space=DISTINCT),
    Layer('constants', 4, 9, space=SearchSpace((2,), E=('none', 'constant'), one_shift=True)),
  )
)
draw = jax.jit(sample_genome, static_argnums=(1, 2))


@given(seed=seeds, share=st.sampled_from([0, 0.5, 1]))
@settings(deadline=None)
def test_where_c_and_e_exclude_each_other_no_mutant_cross_or_draw_has_both(seed, share):
  rng = np.random.default_rng(seed)
  parents = random_genomes(rng, SHIFTS, 8)
  drawn = np.asarray(draw(jax.random.key(seed), SHIFTS, share))
  for made in mutate(rng, SHIFTS, parents, 8, share), cross(rng, SHIFTS, parents, 8), drawn:
    check_genome(SHIFTS, made)
    assert not made[..., [2, 4]].all(-1).any()
    assert not made[..., 1, 2].any()  # a narrow layer's C is nothing that E is not


def test_the_largest_genome_keeps_the_larger_shift():
  largest = largest_genome(SHIFTS)
  assert largest[:, [2, 4]].tolist() == [[0, 2], [0, 2], [2, 0]]
  assert_array_equal(draw(jax.random.key(0), SHIFTS, 1), largest)


@given(genome=genomes, budget=st.integers(0, 250))
def test_shrinking_only_ever_makes_genes_cheaper(genome, budget):
  shrunk = shrink(np.random.default_rng(0), LAYERS, genome[None], budget)[0]
  assert count_params(LAYERS, shrunk) <= budget
  costs, shrunk_costs = (
    np.take_along_axis(LAYERS.cost_table, codes[..., None].astype(int), -1)
    for codes in (genome, shrunk)
  )
  assert (shrunk_costs <= costs).all()
  if count_params(LAYERS, genome) <= budget:
    assert_array_equal(shrunk, genome)


def test_json_means_the_same_in_a_space_with_other_ranks():
  written = genome_to_json(LAYERS, np.array([[0, 4, 1, 0, 2]] * 2 + [[3, 4, 0, 0, 0]], np.int8))
  more = Spec(tuple(dataclasses.replace(layer, space=SearchSpace((1, 2, 4))) for layer in LAYERS))
  assert genome_from_json(more, written).tolist() == [[0, 5, 1, 0, 2]] * 2 + [[4, 5, 0, 0, 0]]
  fewer = Spec(tuple(dataclasses.replace(layer, space=SearchSpace((2,))) for layer in LAYERS))
  with pytest.raises(ValueError, match=r'has lora:4 for B of a; the forms are none, con'):
    genome_from_json(fewer, written)


def test_json_of_layers_in_another_order_is_read_by_their_names_and_of_renamed_ones_by_rows():
  written = genome_to_json(LAYERS, np.array([[0, 1, 0, 0, 0], [0, 3, 0, 0, 0], [2, 0, 0, 0, 0]]))
  turned = Spec(LAYERS.layers[::-1])
  assert genome_from_json(turned, written).tolist() == written['genome'][::-1]
  renamed = [dataclasses.replace(layer, name=f'net/{layer.name}') for layer in LAYERS]
  assert genome_from_json(Spec(tuple(renamed)), written).tolist() == written['genome']
  for row in written['layers']:
    row['layer'] = 'a'
  assert genome_from_json(LAYERS, written).tolist() == written['genome']


def test_spaces_take_names_or_codes():
  assert SearchSpace((4,), A=('lora', 'none')) == SearchSpace(4, A=(0, 3))
  assert hash(Spec((Layer('a', 1, 1),))) == hash(Spec((Layer('a', 1, 1),)))


def test_a_genome_has_a_code_for_the_last_of_the_most_ranks():
  space = SearchSpace(range(1, MOST_RANKS + 1))
  spec = Spec((Layer('a', 200, 300, space=space),))
  assert max(len(space.names(tensor)) for tensor in TENSORS) == 2**7  # codes of an int8 from 0 on
  assert count_params(spec, preset(spec, 'lora')) == MOST_RANKS * (200 + 300)
  largest = largest_genome(spec)
  assert largest.dtype == np.int8
  assert_array_equal(canonicalize(spec, largest), largest)
  with pytest.raises(ValueError, match=r'has -128 for B .* codes are 0 to 127: none'):
    count_params(spec, np.array([[0, -128, 0, 0, 0]], np.int8))


def test_one_factor_of_every_lora_is_drawn_and_all_else_is_zero():
  shapes = adapter_shapes(5, 7, (4,), shared=False)
  adapter = init_arrays(jax.random.key(0)[None], (), shapes, np.float32)
  drawn = {name for name, value in adapter.items() if np.any(value)}
  assert drawn == {'A_down', 'B_down', 'C_up'} == {n for n, s in ADAPTER.items() if s.drawn}
  limit = np.sqrt(6 / (5 + 4))  # Glorot's, of 5 inputs and rank 4
  assert 0.5 * limit < np.abs(adapter['A_down']).max() < limit
