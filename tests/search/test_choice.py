"""The greedy choice against a slow loop."""

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.method.genomes import count_params
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search import choice
from glora_jax.search.unit_scores import UnitScores

RANKS = 3


def spec_of(*sizes, space=SearchSpace.distinct((1, 2, 3))):
  return Spec(tuple(Layer(f'fc{row}', *size, space=space) for row, size in enumerate(sizes)))


SPEC = spec_of((4, 8), (8, 4), (4, 4))


def random_scores(seed, spec=SPEC, positive=False):
  """Every unit's score per parameter is one of few, often equal; those of a LoRA's ranks fall."""
  rng = np.random.default_rng(seed)

  def draw(cost):
    drawn = rng.integers(1 if positive else -4, 9, cost.shape) / 8  # so that sums are exact
    return cost * (-np.sort(-drawn) if cost.ndim == 2 else drawn)

  return UnitScores(*map(draw, choice.unit_costs(spec, RANKS)))


def slow_greedy(spec, scores, budget, cap):
  """Greedy purchases by going through whole genomes that differ in one row's tensor.

  Of equally good ones the first is bought.
  """
  genome = np.zeros((len(spec), 5), np.int8)
  while True:
    best = None
    for candidate in slow_neighbours(spec, genome, cap):
      cost = count_params(spec, candidate) - count_params(spec, genome)
      gain = slow_score(spec, scores, candidate) - slow_score(spec, scores, genome)
      fits = cost > 0 and gain > 0 and count_params(spec, candidate) <= budget
      if fits and (best is None or gain / cost > best[0]):
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


def slow_score(spec, scores, genome):
  total = 0.0
  for row in range(len(spec)):
    a, b, c, _, e = genome[row]
    total += scores.A_vector[row] * (a == 2) + scores.A_lora[row, : max(a - 2, 0)].sum()
    total += scores.B_lora[row, : max(b - 2, 0)].sum()
    total += scores.C_vector[row] * (c == 1) + scores.E_vector[row] * (e == 2)
  return total


@pytest.mark.parametrize('seed, budget', itertools.product(range(8), (4, 23, 60, 500)))
def test_the_choice_is_that_of_a_slow_loop_over_whole_genomes(seed, budget):
  space = SearchSpace((1, 2, 3)) if seed % 2 else SPEC.layers[0].space
  spec, scores = spec_of((4, 8), (8, 4), (4, 4), space=space), random_scores(seed)
  found = choice.choose(spec, scores, budget, floor=False)
  cap = choice.rank_limit(spec, budget, 2.0)
  assert_array_equal(found, slow_greedy(spec, scores, budget, cap))
  has = choice.chosen_units(spec, found, RANKS)
  total = sum(np.sum(part * mask) for part, mask in zip(scores, has, strict=True))
  assert_allclose(total, slow_score(SPEC, scores, found))


def test_the_floor_comes_first_where_the_budget_is_ample():
  scores = random_scores(1)
  floor_cost = sum(2 * layer.out_features for layer in SPEC)  # vectors of A and E
  ample = choice.choose(SPEC, scores, int(1.5 * floor_cost))
  assert (ample[:, 0] >= 2).all()
  assert (ample[:, 4] == 2).all()
  tight, without = (
    choice.choose(SPEC, scores, int(1.5 * floor_cost) - 1, floor=floor) for floor in (True, False)
  )
  assert_array_equal(tight, without)


def test_ranks_are_capped_at_twice_the_rank_of_all_layers():
  scores = random_scores(0, positive=True)
  of_the_first = np.array([[1000], [1], [1]])
  scores = scores._replace(B_lora=of_the_first * scores.B_lora)
  uniform = sum(layer.in_features + layer.out_features for layer in SPEC)
  for budget, cap in ((uniform // 2, 1), (uniform, 2), (4 * uniform, 3)):
    assert choice.choose(SPEC, scores, budget, floor=False)[:, 1].max() == 2 + cap


def test_only_what_is_on_offer_is_chosen_and_the_smallest_rank_always():
  for offer in (
    SearchSpace((3,), A='none', C='none', D='none', E='none'),
    SearchSpace((1, 2, 3), A='none', C='none', D='none', E='none', B=(0, 3, 5)),
    SearchSpace((2,), A=('none', 'vector'), B='none', C='none', D=('vector',), E='none'),
  ):
    spec = spec_of((4, 8), (8, 4), space=offer)
    genome = choice.choose(spec, random_scores(0, spec, positive=True), 60)
    assert genome.any()
    assert (genome[..., None] == spec._choices_table).any(-1).all()
    assert count_params(spec, genome) <= 60


def test_the_curve_rises_from_nothing_to_all_positive_scores():
  scores = random_scores(0)
  curve = choice.trace_curve(SPEC, scores)
  everything = choice.choose(SPEC, scores, 10**6, floor=False)
  assert (curve.params[0], curve.scores[0]) == (0, 0)
  assert (np.diff(curve.params) > 0).all()
  assert (np.diff(curve.scores) > 0).all()
  assert curve.params[-1] == count_params(SPEC, everything)
  assert_allclose(curve.scores[-1], slow_score(SPEC, scores, everything))


def test_the_knee_is_where_a_curve_bends():
  params = np.array([0, 10, 20, 30, 40, 50])
  assert choice.find_knee(params, np.array([0.0, 5.0, 10.0, 10.5, 11.0, 11.5])) == 2
  assert choice.find_knee(params[:2], np.array([0.0, 1.0])) == 1
  assert choice.find_knee(params[:3], np.array([0.0, 1.0, 2.0])) == 1  # of a line, never nothing


@pytest.mark.parametrize('floor', [True, False])
@pytest.mark.parametrize('budget', [26, 48, 60, 200])
def test_what_cannot_be_left_out_counts_in_the_budget(budget, floor):
  space = SearchSpace((1, 2, 3), D='vector')
  spec = spec_of((4, 8), (8, 4), (4, 4), space=space)  # 16 parameters of D
  scores = random_scores(0, spec, positive=True)
  genome = choice.choose(spec, scores, budget, floor=floor)
  assert budget - 4 < count_params(spec, genome) <= budget or budget == 200
