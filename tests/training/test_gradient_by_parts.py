"""A gradient by parts of a batch is the whole batch's, whatever is drawn at random in it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import Problem
from tiny import problem as initial_problem
from trees import randomized

from glora_jax.method.presets import preset
from glora_jax.training.consistency import Consistency
from glora_jax.training.gradient_by_parts import GradientByParts, Part
from glora_jax.training.losses import make_loss
from glora_jax.training.sampling import Sampling

KEY = jax.random.key(5)
NUMBER = 3


@functools.cache
def problem():
  """A model that drops, with supports that are not at their first values."""
  adapted, variables, images, labels = initial_problem(drop=0.4)
  return Problem(adapted, {**variables, 'glora': randomized(variables['glora'], 4)}, images, labels)


def noisy(images, key):
  """A preprocessing that is random."""
  return images + jax.random.normal(key, images.shape)


def mixed(key, images, targets):
  """Every image with one of another part."""
  share = jax.random.uniform(key)
  return jax.tree.map(lambda rows: share * rows + (1 - share) * rows[::-1], (images, targets))


def losses(name):
  """A loss with its learner, by what is random in it."""
  adapted = problem().adapted
  options = {'independent_images': True, 'train': True}
  if name == 'subnet':
    learner = adapted.fix(preset(adapted.spec, 'full'))
    return learner, make_loss(learner, noisy, component_dropout=0.5, **options)
  return adapted, make_loss(
    adapted,
    noisy,
    functools.partial(Sampling().draw, spec=adapted.spec),
    mix=mixed,
    consistency=Consistency(weight=2.0, sigma=0.3),
    **options,
  )


@pytest.mark.parametrize('name', ['supernet', 'subnet'])
def test_parts_make_the_gradient_of_the_whole_batch(name):
  _, variables, images, labels = problem()
  learner, loss_fn = losses(name)
  batch = (*learner.split(variables), images, labels, KEY)
  whole = jax.value_and_grad(loss_fn, has_aux=True)
  by_parts = GradientByParts(loss_fn, NUMBER, deal=lambda parts: parts)
  expected, found = jax.jit(lambda *batch: (whole(*batch), by_parts(*batch)))(*batch)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, found, expected)


@pytest.mark.parametrize('implementation', ['threefry2x32', 'rbg'])
def test_a_part_draws_its_rows_and_what_has_no_rows_as_the_whole_does(implementation):
  key = jax.random.key(3, impl=implementation)

  def draws(key, rows):
    first, second = jax.random.split(jax.random.fold_in(key, 7))
    mask = jax.random.bernoulli(first, 0.5, (rows, 5))
    noise = jax.random.normal(second, (rows * 2, 3), jnp.bfloat16)  # two tokens of each
    return (mask, noise), jax.random.uniform(first, (5,))

  @jax.jit
  def drawn(key):
    parts = [draws(Part(jnp.int32(index), NUMBER, 4).key(key), 4) for index in range(NUMBER)]
    return draws(key, 4 * NUMBER), parts

  (whole, common), parts = drawn(key)
  for index, (rows, alike) in enumerate(parts):
    for own, leaf in zip(rows, whole, strict=True):
      np.testing.assert_array_equal(own, np.split(leaf, NUMBER)[index])
    np.testing.assert_array_equal(alike, common)


def test_only_a_loss_that_says_so_is_taken_by_parts():
  adapted, _, _, _ = problem()
  three_paths = functools.partial(Sampling(paths=3).draw, spec=adapted.spec)
  one_path = functools.partial(Sampling().draw, spec=adapted.spec)
  assert make_loss(adapted, noisy, one_path, independent_images=True).has_parts
  assert not make_loss(adapted, noisy, three_paths, independent_images=True).has_parts
  assert not make_loss(adapted, noisy, one_path).has_parts
