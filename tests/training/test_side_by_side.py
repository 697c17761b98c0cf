"""Runs side by side: equal to running them apart, in their order, each with its own fate."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Tiny, flat, problem, unchanged

import glora_jax
from glora_jax.method import presets
from glora_jax.method.draws import sample_genome
from glora_jax.method.genomes import smallest_genome
from glora_jax.training import loop, side_by_side
from glora_jax.training.losses import subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, subnet_runs, train_many

RECIPE = Recipe(epochs=3, batch_size=8, warmup_epochs=1, learning_rate=1e-2)
PRESETS = ('lora', 'bitfit')


def fit(run, recipe=RECIPE):
  """The run, trained apart."""
  _, _, images, labels = problem()
  return loop.fit(
    run.loss_fn, run.trainable, run.frozen, images, labels, recipe, run.key, progress=False
  )


def train_together(runs, recipe=RECIPE, **options):
  _, _, images, labels = problem()
  return train_many(runs, images, labels, recipe, progress=False, **options)


def test_presets_and_seeds_side_by_side_are_those_trained_apart():
  adapted, variables, *_ = problem()
  subnets = [adapted.fix(presets.preset(adapted.spec, name)) for name in PRESETS]
  losses = [subnet_loss(subnet, unchanged, train=True) for subnet in subnets]
  runs = [
    Training(loss_fn, *subnet.split(variables), jax.random.key(seed))
    for seed in range(2)
    for loss_fn, subnet in zip(losses, subnets, strict=True)
  ]  # interleaved, so that the groups' order is not the runs'
  together = train_together(runs, steps_per_dispatch=4)
  for run, state in zip(runs, together, strict=True):
    apart = fit(run)
    assert state.step == apart.step == 9
    np.testing.assert_allclose(flat(state.trainable), flat(apart.trainable), rtol=1e-3, atol=2e-4)
    stayed = np.isclose(flat(state.trainable), flat(run.trainable), rtol=1e-3, atol=2e-4)
    assert np.mean(stayed) < 0.7
  first_seed, second_seed = (state.trainable['params']['head']['kernel'] for state in together[::2])
  assert not np.allclose(first_seed, second_seed, atol=1e-3)


def test_a_rate_is_a_factor_on_the_recipes_and_seeds_of_a_supernet_are_runs_too():
  spec = problem().adapted.spec
  loss_fn = supernet_loss(
    problem().adapted, unchanged, lambda key: sample_genome(key, spec), train=True
  )
  run = Training(loss_fn, *problem().split(), jax.random.key(0))
  slow = dataclasses.replace(run, rate=0.5)
  slow_recipe = dataclasses.replace(
    RECIPE,
    learning_rate=RECIPE.learning_rate / 2,
    initial_learning_rate=RECIPE.initial_learning_rate / 2,
    final_learning_rate=RECIPE.final_learning_rate / 2,
  )
  states = train_together([slow, run])
  for state, recipe in zip(states, (slow_recipe, RECIPE), strict=True):
    head, expected = (
      state.trainable['params']['head']['kernel'] for state in (state, fit(run, recipe))
    )
    np.testing.assert_allclose(head, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('fields', [{'update_used_only': True}, {'max_grad_norm': 0.05}])
def test_the_optimizer_of_one_side_by_side_is_that_of_one_apart(fields):
  adapted, variables, *_ = problem()
  subnet = adapted.fix(presets.preset(adapted.spec, 'lora'))
  run = Training(
    subnet_loss(subnet, unchanged, train=True), *subnet.split(variables), jax.random.key(5)
  )
  recipe = Recipe(epochs=1, batch_size=8, warmup_epochs=0, learning_rate=1e-2, weight_decay=0.1)
  recipe = dataclasses.replace(recipe, **fields)
  together = train_together([run, dataclasses.replace(run, rate=3.0)], recipe)
  for found, rate in zip(together, (1.0, 3.0), strict=True):
    apart = dataclasses.replace(
      recipe,
      learning_rate=rate * recipe.learning_rate,
      final_learning_rate=rate * recipe.final_learning_rate,
    )
    expected = fit(run, apart).trainable
    np.testing.assert_allclose(flat(found.trainable), flat(expected), rtol=1e-3, atol=2e-4)


def test_a_diverging_run_stops_alone_at_its_last_good_state(caplog):
  def loss_fn(trainable, frozen, images, labels, key):
    value = jnp.sum(trainable['w'])  # falls by the learning rate in every step
    return jnp.where(value < -0.5, jnp.nan, value), {}

  recipe = Recipe(
    epochs=4,
    batch_size=2,
    warmup_epochs=0,
    learning_rate=0.1,
    final_learning_rate=0.1,
    weight_decay=0,
  )
  images, labels = jnp.zeros((10, 1)), jnp.zeros(10, jnp.int32)
  runs = [
    Training(loss_fn, {'w': jnp.float32(start)}, {}, jax.random.key(0)) for start in (10.0, 0.0)
  ]
  going, stopped = train_many(runs, images, labels, recipe, steps_per_dispatch=3, progress=False)
  assert going.step == 20
  np.testing.assert_allclose(going.trainable['w'], 10 - 20 * 0.1, rtol=1e-4)
  assert 5 <= stopped.step <= 7
  np.testing.assert_allclose(stopped.trainable['w'], -0.1 * stopped.step, rtol=1e-4)
  assert f'run 1 at step {stopped.step}' in caplog.text


@pytest.fixture
def programs(monkeypatch):
  """The loss of every group that is trained."""
  losses, make_steps = [], side_by_side.make_steps_of_runs

  def recorded(loss_fn, *arguments):
    losses.append(loss_fn)
    return make_steps(loss_fn, *arguments)

  monkeypatch.setattr(side_by_side, 'make_steps_of_runs', recorded)
  return losses


def test_runs_on_other_frozen_arrays_are_another_group(programs):
  def loss_fn(trainable, frozen, images, labels, key):
    return jnp.sum((trainable['w'] - frozen['goal']) ** 2), {}

  recipe = Recipe(epochs=2, batch_size=8, warmup_epochs=0, learning_rate=0.1)
  high, low = {'goal': jnp.float32(5)}, {'goal': jnp.float32(-5)}
  runs = [
    Training(loss_fn, {'w': jnp.float32(start)}, goal, jax.random.key(0))
    for start, goal in ((0, high), (0, low), (1, high))
  ]
  states = train_together(runs, recipe)
  assert programs == [loss_fn, loss_fn]
  for run, state in zip(runs, states, strict=True):
    np.testing.assert_allclose(state.trainable['w'], fit(run, recipe).trainable['w'], rtol=1e-5)


def test_subnets_and_starts_are_a_group_for_each_subnet_and_join_to_variables(programs):
  adapted, variables, images, _ = problem()
  keys = [jax.random.key(seed) for seed in range(2)]
  init = jax.jit(adapted.init)
  starts = [{**init(key, variables['params']), 'params': variables['params']} for key in keys]
  genomes = [presets.preset(adapted.spec, name) for name in PRESETS]
  runs = subnet_runs(adapted, genomes, starts, keys, unchanged, train=True)
  states = train_together(runs)
  assert len(programs) == 2
  forward = jax.jit(lambda variables, genome: adapted.apply(variables, images, genome=genome))
  for number, (run, state) in enumerate(zip(runs, states, strict=True)):
    genome, start = genomes[number // 2], starts[number % 2]
    trained, subnet = adapted.join(state.trainable, run.frozen), adapted.fix(genome)
    assert jax.tree.structure(trained) == jax.tree.structure(start)
    logits = forward(trained, genome)
    assert np.abs(logits - forward(start, genome)).max() > 1e-2
    # The supports that a genome does not use are of no consequence.
    with_unused = subnet.join(state.trainable, subnet.split(start)[1])
    np.testing.assert_array_equal(logits, forward(with_unused, genome))
  first_lora, second_start = (
    variables['glora']['blocks']['dense']['B_down'] for variables in (runs[1].trainable, starts[1])
  )
  np.testing.assert_array_equal(first_lora, second_start)


def test_runs_that_train_nothing_end_as_they_do_apart():
  _, variables, images, _ = problem()
  adapted = glora_jax.adapt(Tiny(), images[:1], heads=None)
  keys = jax.random.split(jax.random.key(0))
  starts = [jax.jit(adapted.init)(keys[0], variables['params'])] * 2
  runs = subnet_runs(adapted, [smallest_genome(adapted.spec)], starts, keys, unchanged)
  apart = [fit(run) for run in runs]
  assert not jax.tree.leaves(apart[0].trainable)
  chex.assert_trees_all_equal(train_together(runs), apart)


def test_every_start_has_a_key():
  adapted, variables, *_ = problem()
  genomes = [smallest_genome(adapted.spec)]
  with pytest.raises(ValueError, match='There are 2 starts and 1 keys; give one key for each'):
    subnet_runs(adapted, genomes, [variables] * 2, [jax.random.key(0)], unchanged)


def test_wrong_runs_and_images_are_explained():
  class Stream:
    def batches(self, indices):
      raise AssertionError('nothing is read')

  run = Training(lambda *_: (0.0, {}), {'w': jnp.float32(0)}, {}, jax.random.key(0))
  labels = jnp.zeros(8, jnp.int32)
  recipe = Recipe(epochs=1, batch_size=4, warmup_epochs=0)
  with pytest.raises(ValueError, match='train_many takes resident images'):
    train_many([run], Stream(), labels, recipe)
  runs = [run, dataclasses.replace(run, rate=0)]
  with pytest.raises(ValueError, match=r'runs\[1\]\.rate=0 must be above 0'):
    train_many(runs, jnp.zeros((8, 1)), labels, recipe)
  for wrong, sentence in (
    (run, r'runs=Training.* must be a list of Trainings'),
    ([(1, 2)], r'runs.0.=.1, 2. is no Training'),
    ([dataclasses.replace(run, loss_fn=None)], r'runs.0..loss_fn=None is no function'),
    ([dataclasses.replace(run, key=0)], 'key=0 must be one random key'),
    ([dataclasses.replace(run, rate=None)], 'rate=None must be a number'),
  ):
    with pytest.raises(ValueError, match=sentence):
      train_many(wrong, jnp.zeros((8, 1)), labels, recipe)


def test_runs_refuse_images_without_a_label_each():
  _, _, images, labels = problem()
  run = Training(lambda *_: (0.0, {}), {}, {}, jax.random.key(0))
  for wrong in (labels[:5], labels[:0]):
    with pytest.raises(ValueError, match='there must be one label for each image'):
      train_many([run], images, wrong, RECIPE, progress=False)
  with pytest.raises(ValueError, match='There are no images'):
    train_many([run], images[:0], labels[:0], RECIPE, progress=False)
  with pytest.raises(ValueError, match='steps_per_dispatch=0 must be at least 1'):
    train_together([run], steps_per_dispatch=0)
  for rate, wanted in (float('inf'), 'a finite number'), ({}, 'a number'):
    with pytest.raises(ValueError, match=rf'runs\[0\]\.rate=.+ must be {wanted}'):
      train_together([dataclasses.replace(run, rate=rate)])
