"""Runs side by side: equal to running them apart, in their order, each with its own fate."""

import dataclasses
import functools

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
from glora_jax.training import loop
from glora_jax.training.losses import make_loss
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
  losses = [make_loss(subnet, unchanged, train=True) for subnet in subnets]
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


def test_a_rate_is_a_factor_on_the_recipes_and_seeds_of_a_supernet_are_runs_too():
  adapted, variables, *_ = problem()
  sample = functools.partial(sample_genome, spec=adapted.spec)
  loss_fn = make_loss(adapted, unchanged, sample, train=True)
  run = Training(loss_fn, *adapted.split(variables), jax.random.key(0), rate=0.5)
  slow, recipe = (
    Recipe(3, 8, rate, rate / 100, rate / 10, warmup_epochs=1, weight_decay=0.1)
    for rate in (5e-3, 1e-2)
  )
  [state] = train_together([run], recipe)
  found, expected = (state.trainable['params'] for state in (state, fit(run, slow)))
  np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
  'fields', [{'update_used_only': True}, {'max_grad_norm': 0.05}, {'component_dropout': 0.5}]
)
def test_the_optimizer_of_one_side_by_side_is_that_of_one_apart(fields):
  adapted, variables, *_ = problem()
  subnet = adapted.fix(presets.preset(adapted.spec, 'lora'))
  loss_fn = make_loss(subnet, unchanged, train=True)
  run = Training(loss_fn, *subnet.split(variables), jax.random.key(5))
  recipe = dataclasses.replace(RECIPE, epochs=1, warmup_epochs=0, weight_decay=0.1, **fields)
  [together] = train_together([run], recipe)
  expected = fit(run, recipe).trainable
  np.testing.assert_allclose(flat(together.trainable), flat(expected), rtol=1e-3, atol=2e-4)


def test_a_diverging_run_stops_alone_at_its_last_good_state(caplog):
  def loss_fn(trainable, frozen, images, labels, key):
    value = jnp.sum(trainable['w'])  # falls by the learning rate in every step
    return jnp.where(value < -0.5, jnp.nan, value), {}

  recipe = Recipe(4, 5, 0.1, final_learning_rate=0.1, warmup_epochs=0, weight_decay=0)
  runs = [
    Training(loss_fn, {'w': jnp.float32(start)}, {}, jax.random.key(0)) for start in (10.0, 0.0)
  ]
  going, stopped = train_together(runs, recipe, steps_per_dispatch=3)
  assert going.step == 16
  np.testing.assert_allclose(going.trainable['w'], 10 - 16 * 0.1, rtol=1e-4)
  assert 5 <= stopped.step <= 7
  np.testing.assert_allclose(stopped.trainable['w'], -0.1 * stopped.step, rtol=1e-4)
  assert f'run 1 at step {stopped.step}' in caplog.text


def test_runs_on_other_frozen_arrays_are_another_group():
  def loss_fn(trainable, frozen, images, labels, key):
    return jnp.sum((trainable - frozen) ** 2), {}

  high, low = jnp.float32(5), jnp.float32(-5)
  runs = [
    Training(loss_fn, jnp.float32(start), goal, jax.random.key(0))
    for start, goal in ((0, high), (0, low), (1, high))
  ]
  states = train_together(runs)
  for run, state in zip(runs, states, strict=True):
    np.testing.assert_allclose(state.trainable, fit(run).trainable, rtol=1e-5)


def test_runs_that_train_nothing_end_as_they_do_apart():
  _, variables, images, _ = problem()
  adapted = glora_jax.adapt(Tiny(), images[:1], heads=None)
  keys = jax.random.split(jax.random.key(0))
  starts = [jax.jit(adapted.init)(keys[0], variables['params'])] * 2
  runs = subnet_runs(adapted, [smallest_genome(adapted.spec)], starts, keys, unchanged)
  apart = [fit(run) for run in runs]
  assert not jax.tree.leaves(apart[0].trainable)
  chex.assert_trees_all_equal(train_together(runs), apart)
