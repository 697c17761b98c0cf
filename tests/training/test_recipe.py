"""Recipes: the official defaults, and their optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.training.recipe import Recipe


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
  )


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
  def gradient(*numbers):
    *w, b = map(jnp.float32, numbers)
    return {'w': jnp.array(w), 'b': b}

  params, short = gradient(1, 2, 3, 4, 0), gradient(0.3, 0, 0.4, 0, 0)  # of norm 0.5
  long, bounded = gradient(3, 0, 0, 4, 12), gradient(6 / 13, 0, 0, 8 / 13, 24 / 13)  # of norm 13
  plain = dataclasses.replace(RECIPE, update_used_only=used_only)
  bounding = dataclasses.replace(plain, max_grad_norm=2.0)
  expected, _ = updates_of(plain.optimizer(4), [short, bounded, short], params)
  found, _ = updates_of(bounding.optimizer(4), [short, long, short], params)
  jax.tree.map(functools.partial(assert_allclose, rtol=1e-6), found, expected)
  unbounded, _ = updates_of(plain.optimizer(4), [short, long, short], params)
  assert not np.allclose(unbounded[2]['w'], found[2]['w'], rtol=1e-2)


def test_used_only_leaves_numbers_without_gradient_and_their_moments_alone():
  first = {'w': jnp.array([1.0, 1.0, 0.0, 1.0])}
  second = {'w': jnp.array([1.0, 0.0, 0.0, 1.0])}
  optimizer = dataclasses.replace(RECIPE, update_used_only=True).optimizer(4)
  (_, after_first) = updates_of(optimizer, [first], PARAMS)
  (_, update), after_second = updates_of(optimizer, [first, second], PARAMS)
  assert_array_equal(update['w'] == 0, [False, True, True, False])
  (_, plain), _ = updates_of(RECIPE.optimizer(4), [first, second], PARAMS)
  assert_array_equal(update['w'][::3], plain['w'][::3])  # used in every step
  assert plain['w'].all()  # by moments and weight decay
  adam, before = after_second[0], after_first[0]
  for moment, old in ((adam.mu, before.mu), (adam.nu, before.nu)):
    assert_array_equal(moment['w'] == old['w'], [False, True, True, False])
  assert adam.count == 2
