"""Runs side by side: equal to running them apart, each with its own fate."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_trees_equal, vector
from numpy.testing import assert_allclose
from tiny import problem

import glora_jax
from glora_jax.training import loop
from glora_jax.training.recipe import Recipe

RECIPE = Recipe(epochs=3, batch_size=8, warmup=1 / 3, learning_rate=1e-2)
KEYS = jax.random.split(jax.random.key(0), 2)
LOSS = glora_jax.classification(train=True)


def fit(variables, key, recipe=RECIPE, structure='lora', loss=LOSS, **options):
  adapted, options = problem().adapted.fix(structure), {'key': key, 'progress': False, **options}
  return adapted, glora_jax.fit(adapted, variables, loss, problem().data, recipe, **options)


def sum_loss(trainable, frozen, batch, key):
  """Falls by the learning rate in every step, and is NaN below -0.5."""
  value = jnp.sum(trainable['w'])
  return jnp.where(value < -0.5, jnp.nan, value), {}


FALLING = Recipe(
  epochs=4,
  batch_size=5,
  learning_rate=0.1,
  final_learning_rate=0.1,
  warmup=0.0,
  weight_decay=0,
)


@pytest.mark.parametrize(
  'fields, options',
  [
    ({}, {'loss': glora_jax.classification(train=True, component_dropout=0.5)}),
    ({'update_used_only': True, 'max_grad_norm': 0.05}, {}),
    ({}, {'structure': None}),
  ],
)
def test_seeds_starts_and_rates_side_by_side_are_those_trained_apart(fields, options):
  start = problem().variables
  other = jax.tree.map(lambda leaf: 0.9 * leaf, start)
  starts = start, {**other, 'params': start['params']}
  recipe = dataclasses.replace(
    RECIPE,
    initial_learning_rate=1e-4,
    final_learning_rate=1e-3,
    weight_decay=0.1,
    **fields,
  )
  rates = [1.0, 0.5]
  adapted, together = fit([*starts], KEYS, recipe, scale_updates=rates, **options)
  assert together.step.tolist() == [9, 9]
  for own, start, key, rate in zip(together.variables, starts, KEYS, rates, strict=True):
    _, apart = fit(start, key, recipe.with_rate(1e-2 * rate), **options)
    found, expected, before = (
      vector(adapted.split(variables)[0]) for variables in (own, apart.variables, start)
    )
    assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert np.mean(np.isclose(found, before, rtol=1e-3, atol=2e-4)) < 0.7


def test_runs_that_are_resumed_end_as_the_undisturbed_ones_to_the_bit():
  train = functools.partial(fit, [problem().variables] * 2, KEYS, scale_updates=[1.0, 0.1])
  (_, whole), (_, half) = train(), train(callback=lambda step, means: step == 3)
  assert half.step.tolist() == [3, 3]
  assert_trees_equal(train(state=half)[1].trainable, whole.trainable)


def test_a_diverging_run_stops_alone_at_its_last_good_state(caplog):
  means, states = [], []

  def note(state, found):
    means.append(found['loss'])
    states.append(jax.tree.map(np.array, state))

  arguments = sum_loss, {'w': jnp.array([10.0, 0.0])}, {}, problem().data, FALLING, KEYS
  train = functools.partial(loop.minimize, *arguments, progress=False, every=3)
  state = train(look=note)
  going, stopped = state.step
  assert going == 16
  assert_allclose(state.trainable['w'][0], 10 - 16 * 0.1, rtol=1e-4)
  assert 5 <= stopped <= 7
  assert_allclose(state.trainable['w'][1], -0.1 * stopped, rtol=1e-4)
  assert f'run 1 at step {stopped}' in caplog.text
  assert np.isnan(np.stack(means)).any(0).tolist() == [False, True]
  assert not np.isnan(means[0]).any()
  for before in [*states]:
    assert_trees_equal(train(look=note, state=before), state)
