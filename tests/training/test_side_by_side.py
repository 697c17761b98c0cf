"""Runs side by side: equal to running them apart, each with its own fate."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_trees_equal, vector
from numpy.testing import assert_allclose
from tiny import problem

from glora_jax.method import presets
from glora_jax.training import loop
from glora_jax.training.fit import step_loss
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=8, warmup_epochs=1, learning_rate=1e-2)
KEYS = jax.random.split(jax.random.key(0), 2)


def fit(loss_fn, halves, key, recipe=RECIPE, **options):
  return loop.minimize(loss_fn, *halves, problem().data, recipe, key, progress=False, **options)


def of_lora(**options):
  """The loss of a preset, and its halves."""
  adapted, variables, *_ = problem()
  subnet = adapted.fix(presets.preset(adapted.spec, 'lora'))
  return step_loss(subnet, classification(train=True, **options)), subnet.split(variables)


def stacked(*trees):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def of_run(tree, number):
  return jax.tree.map(operator.itemgetter(number), tree)


def sum_loss(trainable, frozen, batch, key):
  """Falls by the learning rate in every step, and is NaN below -0.5."""
  value = jnp.sum(trainable['w'])
  return jnp.where(value < -0.5, jnp.nan, value), {}


FALLING = Recipe(
  epochs=4,
  batch_size=5,
  learning_rate=0.1,
  final_learning_rate=0.1,
  warmup_epochs=0,
  weight_decay=0,
)


def of_supernet():
  adapted, variables, *_ = problem()
  return step_loss(adapted, classification(train=True)), adapted.split(variables)


@pytest.mark.parametrize(
  'make, fields',
  [
    (functools.partial(of_lora, component_dropout=0.5), {}),
    (of_lora, {'update_used_only': True, 'max_grad_norm': 0.05}),
    (of_supernet, {}),
  ],
)
def test_seeds_starts_and_rates_side_by_side_are_those_trained_apart(make, fields):
  loss_fn, (trainable, frozen) = make()
  starts = trainable, jax.tree.map(lambda leaf: 0.9 * leaf, trainable)
  recipe, slow = (
    dataclasses.replace(
      RECIPE,
      learning_rate=rate,
      initial_learning_rate=rate / 100,
      final_learning_rate=rate / 10,
      weight_decay=0.1,
      **fields,
    )
    for rate in (1e-2, 5e-3)
  )
  options = {'rates': [1.0, 0.5], 'steps_per_dispatch': 4}
  together = fit(loss_fn, (stacked(*starts), frozen), KEYS, recipe, **options)
  assert together.step.tolist() == [9, 9]
  for number, (start, own) in enumerate(zip(starts, (recipe, slow), strict=True)):
    apart = fit(loss_fn, (start, frozen), KEYS[number], own)
    found = vector(of_run(together.trainable, number))
    assert_allclose(found, vector(apart.trainable), rtol=1e-3, atol=2e-4)
    stayed = np.isclose(found, vector(start), rtol=1e-3, atol=2e-4)
    assert np.mean(stayed) < 0.7


def test_runs_that_are_resumed_end_as_the_undisturbed_ones_to_the_bit():
  loss_fn, (trainable, frozen) = of_lora()
  train = functools.partial(fit, loss_fn, (stacked(trainable, trainable), frozen), KEYS)
  whole, half = train(rates=[1.0, 0.1]), train(rates=[1.0, 0.1], stop_epoch=1)
  assert half.step.tolist() == [3, 3]
  assert_trees_equal(train(rates=[1.0, 0.1], state=half), whole)


def test_a_diverging_run_stops_alone_at_its_last_good_state(caplog):
  means, states = [], []

  def note(state, found):
    means.append(found['loss'])
    states.append(jax.tree.map(np.array, state))

  train = functools.partial(
    fit, sum_loss, ({'w': jnp.array([10.0, 0.0])}, {}), KEYS, FALLING, steps_per_dispatch=3
  )
  state = train(on_dispatch=note)
  going, stopped = state.step
  assert going == 16
  assert_allclose(state.trainable['w'][0], 10 - 16 * 0.1, rtol=1e-4)
  assert 5 <= stopped <= 7
  assert_allclose(state.trainable['w'][1], -0.1 * stopped, rtol=1e-4)
  assert f'run 1 at step {stopped}' in caplog.text
  assert np.isnan(np.stack(means)).any(0).tolist() == [False, True]
  assert not np.isnan(means[0]).any()
  for before in states:
    assert_trees_equal(train(state=before), state)
