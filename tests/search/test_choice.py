"""The greedy choice against a slow loop."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.method.genomes import count_params
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search import choice
from glora_jax.search.unit_scores import UnitScores

RANKS = 3
LORA = {'A': 'none', 'C': 'none', 'D': 'none', 'E': 'none'}
SPACES = (
  SearchSpace.distinct((1, 2, 3)),
  SearchSpace((1, 2, 3)),
  SearchSpace((1, 2, 3), B=(0, 3, 5), **LORA),
  SearchSpace((3,), **LORA),  # the smallest rank, whatever the limit
  SearchSpace((2,), A=('none', 'vector'), B='none', C='none', D='none', E='none'),
  SearchSpace((1, 2, 3), D='vector'),  # 16 parameters that cannot be left out
)


def spec_of(*sizes, space=SPACES[0]):
  return Spec(tuple(Layer(f'fc{row}', *size, space=space) for row, size in enumerate(sizes)))


SPEC = spec_of((4, 8), (8, 4), (4, 4))


def random_scores(seed, spec=SPEC, positive=False):
  """Every unit's score per parameter is one of few, often equal; those of a LoRA's ranks fall."""
  rng = np.random.default_rng(seed)

  def draw(cost):
    drawn = rng.integers(1 if positive else -4, 9, cost.shape) / 8  # so that sums are exact
    return cost * (-np.sort(-drawn) if cost.ndim == 2 else drawn)

  return UnitScores(*map(draw, choice.unit_costs(spec, RANKS)))


def slow_greedy(spec, scores, budget, floor):
  """Greedy purchases by going through whole genomes that differ in one row's tensor.

  Of equally good ones the first is bought. An ample budget starts with all vectors of A and E.
  """
  least = np.zeros((len(spec), 5), np.int8)
  least[:, 3] = [layer.choices('D')[0] for layer in spec]
  genome = least.copy()
  for row, layer in enumerate(spec):
    for column, tensor in ((0, 'A'), (4, 'E')):
      genome[row, column] = 2 * (2 in layer.choices(tensor))
  forced, with_floor = (count_params(spec, each) for each in (least, genome))
  if not floor or budget - forced < 1.5 * (with_floor - forced):
    genome = least
  limit = math.ceil(2 * budget / sum(layer.in_features + layer.out_features for layer in spec))
  while True:
    best = None
    for candidate in slow_neighbours(spec, genome, limit):
      cost = count_params(spec, candidate) - count_params(spec, genome)
      gain = slow_score(spec, scores, candidate) - slow_score(spec, scores, genome)
      fits = cost > 0 and gain > 0 and count_params(spec, candidate) <= budget
      if fits and (best is None or gain / cost > best[0]):
        best = gain / cost, candidate
    if best is None:
      return genome
    genome = best[1]


def slow_neighbours(spec, genome, limit):
  for row, layer in enumerate(spec):
    for columns, changes in (
      ((0,), [(0,), (2,), (3,), (4,), (5,)]),
      ((1,), [(0,), (3,), (4,), (5,)]),
      ((2, 4), [(0, 0), (0, 2)] + [(1, 0)] * (layer.in_features < layer.out_features)),
    ):
      for codes in changes:
        candidate = genome.copy()
        candidate[row, list(columns)] = codes
        offered = all(
          code in layer.choices('ABCDE'[x]) for x, code in zip(columns, codes, strict=True)
        )
        if offered and (codes[0] <= 3 or layer.space.ranks[codes[0] - 3] <= limit):
          yield candidate


def slow_score(spec, scores, genome):
  total = 0.0
  for row, layer in enumerate(spec):
    a, b, c, _, e = genome[row]
    rank_a, rank_b = ((0, 0, 0, *layer.space.ranks)[code] for code in (a, b))
    total += scores.A_vector[row] * (a == 2) + scores.A_lora[row, :rank_a].sum()
    total += scores.B_lora[row, :rank_b].sum()
    total += scores.C_vector[row] * (c == 1) + scores.E_vector[row] * (e == 2)
  return total


@pytest.mark.parametrize('floor', [True, False])
@pytest.mark.parametrize('budget', [26, 47, 48, 60, 200])
@pytest.mark.parametrize('space', SPACES)
def test_the_choice_is_that_of_a_slow_loop_over_whole_genomes(space, budget, floor):
  spec = spec_of((4, 8), (8, 4), (4, 4), space=space)
  for seed in range(4):
    scores = random_scores(seed, spec, positive=seed == 0)
    found = choice.choose(spec, scores, budget, floor=floor)
    expected = slow_greedy(spec, scores, budget, floor)
    assert_array_equal(found, expected)
    has = choice.chosen_units(spec, found, RANKS)
    total = sum(np.sum(part * mask) for part, mask in zip(scores, has, strict=True))
    assert_allclose(total, slow_score(spec, scores, found))


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
