"""Sketched directions, and the greedy choice against a slow loop."""

import itertools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.method.genomes import count_params
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search import allocation, choice
from glora_jax.search.allocation import Values

PARTS = 3


def spec_of(*sizes, space=SearchSpace.distinct((1, 2, 3))):
  return Spec(tuple(Layer(f'fc{row}', *size, space=space) for row, size in enumerate(sizes)))


SPEC = spec_of((4, 8), (8, 4), (4, 4))


@pytest.mark.parametrize('rank', [0, 1, 3])
def test_a_sketch_has_all_of_a_matrix_of_few_directions(rank):
  rng = np.random.default_rng(rank)
  matrix = rng.normal(size=(20, rank)) @ rng.normal(size=(rank, 30))
  right, probe = rng.normal(size=(30, 4)), np.linalg.qr(rng.normal(size=(20, 9))).Q
  found = allocation.directions_of(matrix @ right, probe.T @ matrix, probe)
  vectors, values, _ = np.linalg.svd(matrix)
  assert_allclose(found.squares, values[:4] ** 2, rtol=1e-6, atol=1e-9)
  assert_allclose(np.abs((vectors.T @ found.vectors).diagonal())[:rank], 1)
  assert_allclose(found.vectors.T @ found.vectors, np.eye(4), atol=1e-9)


def test_xavier_norm_is_that_of_drawn_columns():
  drawn = jax.nn.initializers.glorot_uniform()(jax.random.key(0), (400, 8))
  norms = np.linalg.norm(drawn, axis=0)
  assert_allclose(norms.mean(), allocation.xavier_norm(400, 8), rtol=0.02)


def random_worth(seed, spec=SPEC, positive=False):
  """Every unit's value per parameter is drawn uniformly; those of a LoRA's parts fall."""
  rng = np.random.default_rng(seed)

  def worth(cost):
    draw = rng.random(cost.shape)
    return cost * (-np.sort(-draw) if cost.ndim == 2 else draw)

  found = map(worth, choice.unit_costs(spec, PARTS))
  return Values(*(part - (0 if positive else 0.3) * part.mean() for part in found))


def slow_greedy(spec, worth, budget, cap):
  """Greedy purchases by going through whole genomes that differ in one row's tensor."""
  genome = np.zeros((len(spec), 5), np.int8)
  while True:
    best = None
    for candidate in slow_neighbours(spec, genome, cap):
      cost = count_params(spec, candidate) - count_params(spec, genome)
      gain = slow_worth(spec, worth, candidate) - slow_worth(spec, worth, genome)
      fits = cost > 0 and gain > 0 and count_params(spec, candidate) <= budget
      if fits and (best is None or gain / cost > best[0] + 1e-12):
        best = gain / cost, candidate
    if best is None:
      return genome
    genome = best[1]


def slow_neighbours(spec, genome, cap):
  for row, layer in enumerate(spec):
    shifts = [(0, 0), (0, 2)] + [(1, 0)] * (layer.in_features < layer.out_features)
    changes = [((0,), (code,)) for code in (0, 2, 3, 4, 5) if code - 2 <= cap]
    changes += [((1,), (code,)) for code in (0, 3, 4, 5) if code - 2 <= cap]
    changes += [((2, 4), shift) for shift in shifts]
    for columns, codes in changes:
      candidate = genome.copy()
      candidate[row, list(columns)] = codes
      yield candidate


def slow_worth(spec, worth, genome):
  total = 0.0
  for row in range(len(spec)):
    a, b, c, _, e = genome[row]
    total += worth.A_vector[row] * (a == 2) + worth.A_lora[row, : max(a - 2, 0)].sum()
    total += worth.B_lora[row, : max(b - 2, 0)].sum()
    total += worth.C_vector[row] * (c == 1) + worth.E_vector[row] * (e == 2)
  return total


@pytest.mark.parametrize('seed, budget', list(itertools.product(range(3), (4, 23, 60, 500))))
def test_the_choice_is_that_of_a_slow_loop_over_whole_genomes(seed, budget):
  worth = random_worth(seed)
  found = choice.choose(SPEC, worth, budget, floor=False)
  cap = choice.most_rank(SPEC, budget, 2.0)
  assert_array_equal(found, slow_greedy(SPEC, worth, budget, cap))
  has = choice.bought(SPEC, found, PARTS)
  total = sum(np.sum(part * mask) for part, mask in zip(worth, has, strict=True))
  assert_allclose(total, slow_worth(SPEC, worth, found))


def test_the_floor_comes_first_where_the_budget_is_ample():
  worth = random_worth(1)
  floor_cost = sum(2 * layer.out_features for layer in SPEC)  # vectors of A and E
  ample = choice.choose(SPEC, worth, int(1.5 * floor_cost))
  assert (ample[:, 0] >= 2).all()
  assert (ample[:, 4] == 2).all()
  tight, without = (
    choice.choose(SPEC, worth, int(1.5 * floor_cost) - 1, floor=floor) for floor in (True, False)
  )
  assert_array_equal(tight, without)


def test_ranks_are_capped_at_twice_the_rank_of_all_rows():
  worth = random_worth(0, positive=True)
  of_the_first = np.array([[1000], [1], [1]])
  worth = worth._replace(B_lora=of_the_first * worth.B_lora)
  uniform = sum(layer.in_features + layer.out_features for layer in SPEC)
  for budget, cap in ((uniform // 2, 1), (uniform, 2), (4 * uniform, 3)):
    assert choice.choose(SPEC, worth, budget, floor=False)[:, 1].max() == 2 + cap


def test_only_what_is_on_offer_is_chosen_and_the_smallest_rank_always():
  for offer in (
    SearchSpace((3,), A='none', C='none', D='none', E='none'),
    SearchSpace((1, 2, 3), A='none', C='none', D='none', E='none', B=(0, 3, 5)),
    SearchSpace((2,), A=('none', 'vector'), B='none', C='none', D=('vector',), E='none'),
  ):
    spec = spec_of((4, 8), (8, 4), space=offer)
    genome = choice.choose(spec, random_worth(0, spec, positive=True), 60)
    assert genome.any()
    assert (genome[..., None] == spec._choices_table).any(-1).all()
    assert count_params(spec, genome) <= 60


def test_the_curve_rises_from_nothing_to_all_that_pays():
  worth = random_worth(0)
  curve = choice.trace_curve(SPEC, worth)
  everything = choice.choose(SPEC, worth, 10**6, floor=False)
  assert (curve.params[0], curve.values[0]) == (0, 0)
  assert (np.diff(curve.params) > 0).all()
  assert (np.diff(curve.values) > 0).all()
  assert curve.params[-1] == count_params(SPEC, everything)
  assert_allclose(curve.values[-1], slow_worth(SPEC, worth, everything))


def test_the_knee_is_where_a_curve_bends():
  params = np.array([0, 10, 20, 30, 40, 50])
  assert choice.knee(params, np.array([0.0, 5.0, 10.0, 10.5, 11.0, 11.5])) == 2
  assert choice.knee(params[:2], np.array([0.0, 1.0])) == 1
  assert choice.knee(params[:3], np.array([0.0, 1.0, 2.0])) == 1  # of a line, never nothing


@pytest.mark.parametrize('floor', [True, False])
@pytest.mark.parametrize('budget', [26, 48, 60, 200])
def test_what_cannot_be_left_out_counts_in_the_budget(budget, floor):
  space = SearchSpace((1, 2, 3), D='vector')
  spec = spec_of((4, 8), (8, 4), (4, 4), space=space)  # 16 parameters of D
  worth = random_worth(0, spec, positive=True)
  genome = choice.choose(spec, worth, budget, floor=floor)
  assert budget - 4 < count_params(spec, genome) <= budget or budget == 200
