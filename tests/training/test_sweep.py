"""Rates in turn and side by side: each is its own training, and the best one is kept."""

import dataclasses

import jax
import numpy as np
import pytest
from comparing import assert_refused, assert_trees_equal, vector
from numpy.testing import assert_allclose, assert_array_equal
from tiny import Stream, problem

import glora_jax

KEY = jax.random.key(0)
RECIPE = glora_jax.Recipe(epochs=3, batch_size=8, warmup=1 / 3, learning_rate=1e-2)
RATES = (1e-3, 1e-2, 1e-1)
LORA = problem().adapted.fix('lora:2')
VARIABLES = LORA.init(KEY, problem().variables['params'])


def train(call=glora_jax.sweep, loss=None, batches=None, recipe=RECIPE, **options):
  loss, batches = loss or glora_jax.classification(), batches or problem().data
  options = {'key': KEY, 'progress': False} | options
  return call(LORA, VARIABLES, loss, batches, recipe, **options)


def sweep(rates=RATES, **options):
  return train(**{'rates': rates, 'validate': validate} | options)


@jax.jit
def validate(variables):
  """That of the images in training, which is lower the better it was trained."""
  return glora_jax.classification()(glora_jax.Forward(LORA, variables), problem().data, KEY)[0]


@pytest.mark.parametrize('side_by_side', [False, True])
def test_each_rate_is_the_training_of_fit_with_it(side_by_side):
  recipe = dataclasses.replace(RECIPE, weight_decay=0.1, lora_dropout=0.2)
  loss = glora_jax.classification(train=True)
  found = sweep(loss=loss, recipe=recipe, side_by_side=side_by_side)
  apart = [train(glora_jax.fit, loss, recipe=recipe.with_rate(rate)).variables for rate in RATES]
  losses = np.array([validate(variables) for variables in apart])
  assert_allclose(found.losses, losses, rtol=1e-4)
  best = losses.argmin()
  assert np.ptp(losses) > 0.1
  assert found.recipe == recipe.with_rate(RATES[best])
  assert_allclose(vector(found.variables), vector(apart[best]), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
  'batches', [problem().data, Stream([]), [problem().data, problem().data]], ids=type
)
def test_rates_in_turn_are_compiled_once_with_any_kind_of_batches(batches):
  traces = []

  def loss(forward, batch, key):
    traces.append(key)
    return glora_jax.classification()(forward, batch, key)

  losses = [sweep(RATES[:1], loss=loss, batches=batches).losses[0]]
  of_one = len(traces)
  losses += [sweep([rate], loss=loss, batches=batches).losses[0] for rate in RATES[1:]]
  found = sweep(loss=loss, batches=batches)
  assert len(traces) == of_one
  assert_allclose(found.losses, losses, rtol=1e-5)


@pytest.mark.parametrize('side_by_side', [False, True])
def test_a_rate_that_diverges_is_the_worst_and_does_not_end_the_sweep(side_by_side, caplog):
  def finite_loss(variables):
    return np.nan_to_num(validate(variables))

  found = sweep([1e-3, 1e-2, 1e25], validate=finite_loss, side_by_side=side_by_side)
  assert np.isfinite(found.losses).tolist() == [True, True, False]
  assert found.recipe.learning_rate == 1e-2
  *_, best, worst = str(found).splitlines()
  assert best.split()[1:] == [f'{found.losses[1]:.5g}', 'best']
  assert worst.split()[1:] == ['diverged']
  assert 'end of the list' not in caplog.text


@pytest.mark.parametrize(
  'losses, rates',
  [
    ([1.0, 2.0, 3.0], '0.0001 and 1e-05'),
    ([3.0, 2.0, 1.0], '0.04 and 0.08'),
    ([2.0, 1.0, np.nan], ''),
  ],
)
def test_the_rates_beyond_are_named_if_the_best_is_at_an_end(losses, rates, caplog):
  values = iter(losses)
  found = sweep([0.001, 0.01, 0.02], validate=lambda _: next(values))
  assert found.losses.tolist() == np.nan_to_num(losses, nan=np.inf).tolist()
  assert rates in caplog.text
  assert bool(caplog.text) == bool(rates)


class Killed(BaseException):
  """In place of a signal."""


@pytest.mark.parametrize('worst', [0, 2])
def test_a_sweep_that_is_killed_goes_on_where_it_was_and_ends_alike(worst, tmp_path):
  """Also if the best rate is one that was done before, and the losses are no float32."""

  def loss_of(variables):
    return abs(float(validate(variables)) - (worst - 1)) / 3

  def kill(step, metrics):
    looks.append(step)
    if len(looks) == 5:
      raise Killed

  whole, looks, told = sweep(validate=loss_of), [], []
  with pytest.raises(Killed):
    sweep(validate=loss_of, save=tmp_path, callback=kill)
  assert looks == [3, 6, 9, 3, 6]
  options = {'callback': kill, 'on_rate': lambda *pair: told.append(pair)}
  found = sweep(validate=loss_of, save=tmp_path, **options)
  assert looks[5:] == [6, 9, 3, 6, 9]
  assert told == [*zip(RATES, whole.losses, strict=True)]
  assert_array_equal(found.losses, whole.losses)
  assert found.recipe == whole.recipe
  assert_trees_equal(found.variables, whole.variables)
  assert_refused('leave save out', sweep, save=tmp_path, side_by_side=True)


@pytest.mark.parametrize(
  'options, named',
  [
    ({'rates': []}, 'rates=[] must be one or more'),
    ({'rates': [0.1, 0.1]}, 'in ascending order'),
    ({'validate': lambda _: np.nan}, 'No validation loss is finite at rates=[0.001, 0.01'),
    ({'batches': iter([problem().data])}, 'empty after the first rate'),
    ({'batches': [problem().data], 'side_by_side': True}, 'pass arrays and no mesh'),
    ({'key': jax.random.split(KEY)}, 'one random key'),
  ],
)
def test_a_sweep_refuses_what_it_cannot_use(options, named):
  assert_refused(named, lambda: sweep(**options))
