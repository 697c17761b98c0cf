"""Recipes: the official defaults, their optimizer, and what is refused."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glora_jax.training.recipe import Recipe, used_only


def test_defaults_are_the_official_recipe():
  assert Recipe() == Recipe(
    epochs=500,
    batch_size=64,
    learning_rate=1e-4,
    initial_learning_rate=1e-6,
    final_learning_rate=1e-5,
    warmup_epochs=10,
    weight_decay=1e-4,
    update_used_only=False,
    accumulate=1,
    max_grad_norm=0.0,
    component_dropout=0.0,
  )


def test_a_recipe_of_scalars_holds_numbers():
  recipe = Recipe(epochs=2.0, warmup_epochs=np.int64(1), learning_rate=jnp.float32(0.5))
  assert repr(recipe) == repr(Recipe(epochs=2, warmup_epochs=1, learning_rate=0.5))
  assert hash(recipe) == hash(Recipe(epochs=2, warmup_epochs=1, learning_rate=0.5))


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'epochs': 2.5}, 'epochs=2.5 must be a whole number'),
    ({'epochs': -1}, 'epochs=-1 must be at least 0'),
    ({'warmup_epochs': 501}, 'more than epochs=500'),
    ({'learning_rate': 0}, 'must be above 0'),
    ({'batch_size': 0}, 'at least 1'),
    ({'accumulate': 3}, 'accumulate=3 must divide batch_size=64'),
    ({'component_dropout': 1.0}, 'component_dropout=1.0 must be at least 0 and below 1'),
    ({'final_learning_rate': -1}, 'final_learning_rate=-1 must be at least 0'),
    ({'initial_learning_rate': math.nan}, 'initial_learning_rate=nan must be a finite number'),
    ({'weight_decay': math.inf}, 'weight_decay=inf must be a finite number'),
    ({'learning_rate': 'fast'}, "learning_rate='fast' must be a number"),
    ({'epochs': 1.5}, r'epochs=1\.5 must be a whole number'),
    ({'epochs': 2**31}, 'epochs=2147483648 must be at most 2147483647'),
    ({'max_grad_norm': -1}, 'max_grad_norm=-1 must be at least 0'),
    ({'accumulate': 0}, 'accumulate=0 must be at least 1'),
  ],
)
def test_wrong_recipes_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    Recipe(**fields)


def test_a_batch_larger_than_the_data_is_explained():
  with pytest.raises(ValueError, match='batch_size=64 is larger than the 10 training images'):
    Recipe().steps_per_epoch(10)


def updates_of(optimizer, gradients, params):
  """The updates of consecutive steps, and the last state; op by op, so to the same bits."""
  state = optimizer.init(params)
  updates = []
  for gradient in gradients:
    update_of_step, state = optimizer.update(gradient, state, params)
    updates.append(update_of_step)
  return updates, state


RECIPE = Recipe(epochs=2, batch_size=1, warmup_epochs=0, learning_rate=0.1)
PARAMS = {'w': jnp.arange(1.0, 5.0)}


@pytest.mark.parametrize('used_only', [False, True])
def test_a_long_gradient_is_shortened_as_a_whole_and_a_short_one_is_not(used_only):
  params = {'w': jnp.arange(1.0, 5.0), 'b': jnp.zeros(())}
  short = {'w': jnp.array([0.3, 0.0, 0.4, 0.0]), 'b': jnp.float32(0)}  # of norm 0.5
  long = {'w': jnp.array([3.0, 0.0, 0.0, 4.0]), 'b': jnp.float32(12)}  # of norm 13
  bounded = {'w': jnp.array([3.0, 0.0, 0.0, 4.0]) * 2 / 13, 'b': jnp.float32(24 / 13)}
  plain = dataclasses.replace(RECIPE, update_used_only=used_only)
  bounding = dataclasses.replace(plain, max_grad_norm=2.0)
  expected, _ = updates_of(plain.optimizer(4), [short, bounded, short], params)
  found, _ = updates_of(bounding.optimizer(4), [short, long, short], params)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
  unbounded, _ = updates_of(plain.optimizer(4), [short, long, short], params)
  assert not np.allclose(unbounded[2]['w'], found[2]['w'], rtol=1e-2)


def test_used_only_equals_the_optimizer_where_everything_is_used():
  gradients = [{'w': jnp.sin(jnp.arange(4.0) + step)} for step in (1, 2, 3)]
  optimizer = RECIPE.optimizer(4)
  expected = updates_of(optimizer, gradients, PARAMS)
  found = updates_of(used_only(optimizer), gradients, PARAMS)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_used_only_leaves_numbers_without_gradient_and_their_moments_alone():
  first = {'w': jnp.array([1.0, 1.0, 0.0, 1.0])}
  second = {'w': jnp.array([1.0, 0.0, 0.0, 1.0])}
  optimizer = used_only(RECIPE.optimizer(4))
  (_, after_first) = updates_of(optimizer, [first], PARAMS)
  (_, update), after_second = updates_of(optimizer, [first, second], PARAMS)
  np.testing.assert_array_equal(update['w'] == 0, [False, True, True, False])
  adam, before = after_second[0], after_first[0]
  for moment, old in ((adam.mu, before.mu), (adam.nu, before.nu)):
    np.testing.assert_array_equal(moment['w'] == old['w'], [False, True, True, False])
  assert adam.count == 2
