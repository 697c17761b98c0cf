"""Recipes: the learning rate over the steps, and their optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.training.recipe import Recipe


@pytest.mark.parametrize('ends', [(0.0, 0.0), (0.02, 0.01)])
def test_the_rate_rises_over_a_share_of_the_steps_and_falls_over_the_others(ends):
  first, last = ends
  recipe = Recipe(
    steps=20,
    warmup=0.25,
    learning_rate=0.1,
    initial_learning_rate=first,
    final_learning_rate=last,
    weight_decay=0.0,
  )
  # AdamW's update for a gradient that never changes is the learning rate.
  updates, _ = updates_of(recipe, 21 * [jnp.float32(1)], jnp.float32(0))
  falling = last + (0.1 - last) * (1 + np.cos(np.pi * np.arange(16) / 15)) / 2
  expected = [*np.linspace(first, 0.1, 5, endpoint=False), *falling]
  assert_allclose(-np.array(updates), expected, atol=1e-6)


def updates_of(recipe, gradients, params):
  """The updates of consecutive steps, and the last state; op by op, so to the same bits."""
  optimizer, updates = recipe.optimizer(4), []
  state = optimizer.init(params)
  for gradient in gradients:
    update, state = optimizer.update(gradient, state, params)
    updates.append(update)
  return updates, state


RECIPE = Recipe(epochs=2, batch_size=1, warmup=0.0, learning_rate=0.1)
PARAMS = {'w': jnp.arange(1.0, 5.0)}


@pytest.mark.parametrize('used_only', [False, True])
def test_a_long_gradient_is_shortened_as_a_whole_and_a_short_one_is_not(used_only):
  params, short, long = (
    {'w': jnp.array(w, float), 'b': jnp.float32(b)}
    for *w, b in ((1, 2, 3, 4, 0), (0.3, 0, 0.4, 0, 0), (3, 0, 0, 4, 12))
  )  # of norms 0.5 and 13
  bounded = jax.tree.map(lambda leaf: 2 / 13 * leaf, long)
  plain = dataclasses.replace(RECIPE, update_used_only=used_only)
  bounding = dataclasses.replace(plain, max_grad_norm=2.0)
  expected, _ = updates_of(plain, [short, bounded, short], params)
  found, _ = updates_of(bounding, [short, long, short], params)
  jax.tree.map(functools.partial(assert_allclose, rtol=1e-6), found, expected)
  unbounded, _ = updates_of(plain, [short, long, short], params)
  assert not np.allclose(unbounded[2]['w'], found[2]['w'], rtol=1e-2)


def test_used_only_leaves_numbers_without_gradient_and_their_moments_alone():
  first, second = ({'w': jnp.array(w)} for w in ([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]))
  used_only = dataclasses.replace(RECIPE, update_used_only=True)
  (_, update), (adam, *_) = updates_of(used_only, [first, second], PARAMS)
  _, (before, *_) = updates_of(used_only, [first], PARAMS)
  (_, plain), _ = updates_of(RECIPE, [first, second], PARAMS)
  assert_array_equal(update['w'] == 0, [False, True, True, False])
  assert_array_equal(update['w'][::3], plain['w'][::3])  # used in every step
  assert plain['w'].all()  # by moments and weight decay
  for moment, old in ((adam.mu, before.mu), (adam.nu, before.nu)):
    assert_array_equal(moment['w'] == old['w'], [False, True, True, False])
  assert adam.count == 2
