"""The evolution, on scores that can be computed by hand."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glora_jax.method.genomes import canonicalize, count_params, random_genomes
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search import evolution
from glora_jax.search.archive import Archive, hypervolume, pareto_front
from glora_jax.search.evolution import Evolution

SPEC = Spec(tuple(Layer(f'layer{i}', 8, 8, i != 2, SearchSpace((2, 4))) for i in range(4)))
TARGET = canonicalize(SPEC, np.random.default_rng(5).integers(0, SPEC.num_codes))
SMALL = Evolution(population=20, generations=6, parents=5, mutations=10, crossovers=10)


class Judge:
  """Scores genomes by how many genes equal the target's, and remembers what it was asked."""

  def __init__(self, target=TARGET):
    self.asked, self.target = [], target

  def __call__(self, genomes):
    self.asked.append(genomes.copy())
    correct = (genomes == self.target).sum((1, 2))
    return correct, 100.0 - correct


def run(settings=SMALL, judge=None, seed=0, **options):
  judge = judge or Judge()
  return evolution.evolve(
    SPEC, judge, jax.random.key(seed), settings, progress=False, **options
  ), judge


def test_evolution_beats_random_search_of_equal_size():
  found = [run(seed=seed)[0] for seed in range(5)]
  rng = np.random.default_rng(0)
  chance = [(random_genomes(rng, SPEC, 140) == TARGET).sum((1, 2)).max() for _ in range(5)]
  assert np.mean([archive.correct.max() for archive in found]) > np.mean(chance) + 1


def test_no_subnet_is_scored_twice_and_all_are_canonical():
  archive, _ = run()
  assert len({genome.tobytes() for genome in archive.genomes}) == len(archive) == 140
  np.testing.assert_array_equal(canonicalize(SPEC, archive.genomes), archive.genomes)


def test_every_population_has_the_same_shape_and_the_last_generation_is_ranked():
  archive, judge = run()
  assert [asked.shape for asked in judge.asked] == [(20, 4, 5)] * 7
  assert archive.generation.tolist() == [g for g in range(7) for _ in range(20)]
  winner = archive.best()
  assert (winner == TARGET).sum() == archive.correct.max()
  # A winner of the last generation is found: make that generation the only one with the target in it.
  late = archive.extended(TARGET[None], [20], [80.0], 7)
  np.testing.assert_array_equal(late.best(), TARGET)


@settings(deadline=None, max_examples=20)
@given(budget=st.sampled_from([0, 1, 3, 20, 100, 400, None]), seed=st.integers(0, 100))
def test_every_budget_is_respected_and_every_search_ends(budget, seed):
  archive, _ = run(
    Evolution(population=10, generations=2, parents=3, mutations=5, crossovers=5),
    seed=seed,
    budget=budget,
  )
  counts = count_params(SPEC, archive.genomes)
  assert len(counts) >= 1
  assert counts.max() <= (np.inf if budget is None else budget)


def test_budget_zero_scores_the_linear_subnet_once():
  archive, _ = run(budget=0)
  assert len(archive) == 1
  assert not archive.genomes.any()


def test_a_resumed_search_equals_an_uninterrupted_one():
  saved = []
  whole, _ = run(on_generation=saved.append)
  for archive in saved:
    resumed, judge = run(archive=archive)
    assert len(judge.asked) == 6 - archive.generation.max()
    for name, values in whole.arrays().items():
      np.testing.assert_array_equal(values, resumed.arrays()[name])


def test_the_key_decides():
  np.testing.assert_array_equal(run(seed=3)[0].genomes, run(seed=3)[0].genomes)
  assert not np.array_equal(run(seed=3)[0].genomes, run(seed=4)[0].genomes)


def test_accuracy_ties_are_broken_by_loss_and_loss_ranks_by_loss():
  genomes = np.arange(3, dtype=np.int8)[:, None, None] * np.ones((1, 4, 5), np.int8)
  archive = Archive.empty(SPEC).extended(genomes, [5, 7, 7], [1.0, 9.0, 8.0], 0)
  assert archive.ranking('accuracy').tolist() == [2, 1, 0]
  assert archive.ranking('loss').tolist() == [0, 2, 1]


def test_children_come_from_the_parents():
  rng, parents = (
    np.random.default_rng(0),
    np.stack([np.zeros((4, 5), np.int8), np.ones((4, 5), np.int8)]),
  )
  crossed = evolution.cross(rng, parents, 200)
  assert set(np.unique(crossed)) == {0, 1}
  assert 0.4 < crossed.mean() < 0.6
  mutated = evolution.mutate(rng, SPEC, parents[:1], 2000, 0.2)
  drawn_anew = 0.2 * (1 - 1 / SPEC.num_offered)  # a fresh draw may hit the old allele
  assert np.abs((mutated != 0).mean(0) - drawn_anew).max() < 0.05
  np.testing.assert_array_equal(
    evolution.mutate(rng, SPEC, parents[:1], 3, 0.0), np.zeros((3, 4, 5))
  )


def test_defaults_are_the_papers():
  assert Evolution() == Evolution(50, 20, 10, 25, 25, 0.2, 'accuracy', 'paper')


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'population': 0}, 'at least 1'),
    ({'mutations': 40}, 'more than population=50'),
    ({'fitness': 'speed'}, "'accuracy' or 'loss'"),
    ({'mutation_probability': 1.5}, 'between 0 and 1'),
    ({'mode': 'greedy'}, 'paper, pareto, guided, random'),
  ],
)
def test_wrong_settings_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    Evolution(**fields)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_pareto_front_is_what_nothing_dominates(points):
  params, error = np.array(points).T
  front = pareto_front(params, error.astype(float))
  dominated = lambda i: (
    (params <= params[i]) & (error <= error[i]) & ((params < params[i]) | (error < error[i]))
  ).any()
  assert {(params[i], error[i]) for i in front} == {
    (params[i], error[i]) for i in range(len(params)) if not dominated(i)
  }
  assert (np.diff(params[front]) > 0).all()


class StoppingJudge(Judge):
  """Leaves a genome once it cannot be a parent: after the first row that makes it worse than the worst parent, in order."""

  def stop(self, genomes, valid, parents):
    bar = parents.min()
    agree = (genomes == TARGET).reshape(len(genomes), -1)
    bound = agree.cumsum(1) + np.arange(
      agree.shape[1] - 1, -1, -1
    )  # right so far, and all the rest right
    exact = (bound >= bar).all(1)
    correct = np.where(exact, agree.sum(1), bound[np.arange(len(bound)), (bound < bar).argmax(1)])
    return np.where(valid, correct, 0), 100.0 - agree.sum(1), exact


def test_stopping_early_changes_nothing_that_is_selected():
  for seed in range(3):
    whole, _ = run(seed=seed)
    judge = StoppingJudge()
    stopped, _ = run(seed=seed, judge=judge, stopping_score=judge.stop)
    np.testing.assert_array_equal(whole.genomes, stopped.genomes)
    assert 0.1 < stopped.exact.mean() < 1
    assert (stopped.correct >= whole.correct).all()
    np.testing.assert_array_equal(stopped.correct[stopped.exact], whole.correct[stopped.exact])
    np.testing.assert_array_equal(stopped.best(), whole.best())
    assert len(judge.asked) == 1  # the first generation; the others went to `stop`


def test_bounds_are_never_scores():
  genomes = np.arange(3, dtype=np.int8)[:, None, None] * np.ones((1, 4, 5), np.int8)
  archive = Archive.empty(SPEC).extended(
    genomes, [5, 99, 7], [1.0, 0.0, 8.0], 0, exact=[True, False, True]
  )
  assert archive.ranking('accuracy').tolist() == [2, 0, 1]
  assert archive.ranking('loss').tolist() == [0, 2, 1]
  assert len(archive.scored()) == 2
  with pytest.raises(
    ValueError, match='None of the 1 subnets that were scored has at most 0 trained parameters'
  ):
    Archive.empty(SPEC).extended(genomes[2:], [7], [8.0], 0).best(spec=SPEC, budget=0)


def test_a_budget_is_read_off_the_archive_afterwards():
  archive, _ = run(
    Evolution(population=20, generations=6, parents=10, mutations=10, crossovers=10, mode='pareto')
  )
  params = count_params(SPEC, archive.genomes)
  for budget in (20, 100, 300):
    within = params <= budget
    if within.any():
      best = archive.best(spec=SPEC, budget=budget)
      assert count_params(SPEC, best) <= budget
      assert (best == TARGET).sum() == archive.correct[within].max()


def test_where_size_and_fitness_conflict_the_pareto_mode_finds_the_larger_front():
  largest = canonicalize(SPEC, SPEC.num_codes - 1)
  most = count_params(SPEC, largest)

  def volume(mode, seed):
    settings = Evolution(
      population=20, generations=10, parents=10, mutations=10, crossovers=10, mode=mode
    )
    archive, _ = run(settings, judge=Judge(largest), seed=seed)
    return hypervolume(count_params(SPEC, archive.genomes), 1 - archive.correct / 20, most)

  volumes = {
    mode: np.mean([volume(mode, seed) for seed in range(4)])
    for mode in ('pareto', 'paper', 'random')
  }
  assert volumes['pareto'] > volumes['paper'] > volumes['random']


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_nondominated_order_goes_front_by_front(points):
  params, cost = np.array(points).T
  order = evolution.nondominated_order(params, cost.astype(float))
  assert sorted(order.tolist()) == list(range(len(points)))
  front = pareto_front(params, cost.astype(float))
  assert set(order[: len(front)]) == set(front)


def test_hypervolume_by_hand():
  assert hypervolume(np.array([0]), np.array([0.0]), 10) == 1
  assert hypervolume(np.array([5, 2]), np.array([0.2, 0.5]), 10) == pytest.approx(
    (3 * 0.5 + 5 * 0.8) / 10
  )
  assert hypervolume(np.array([20]), np.array([0.0]), 10) == 0


def test_the_guided_mode_follows_its_guide():
  def guide(genome):
    values = np.zeros((4, 5, SPEC.num_codes.max()))
    np.put_along_axis(values, TARGET[..., None].astype(int), -1.0, -1)
    return values

  settings = Evolution(
    population=10, generations=3, parents=3, mutations=8, crossovers=2, mode='guided'
  )
  archive, _ = run(settings, guide=guide)
  assert archive.correct.max() == 20
  with pytest.raises(ValueError, match='needs a guide'):
    run(settings)
  within, _ = run(settings, guide=guide, budget=60)
  assert count_params(SPEC, within.genomes).max() <= 60
