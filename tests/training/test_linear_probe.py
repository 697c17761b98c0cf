"""A linear probe, against the same head trained on the answers of its frozen body."""

import jax
import numpy as np
import pytest
from comparing import assert_trees_equal, ready, vector
from numpy.testing import assert_allclose
from small_models import LiveMlp, Mlp
from tiny import problem

import glora_jax
from glora_jax.training.loop import minimize
from glora_jax.training.losses import classification, cross_entropy
from glora_jax.training.recipe import Recipe

KEY = jax.random.key(4)
RECIPE = Recipe(epochs=3, batch_size=10, warmup=1 / 3, learning_rate=1e-2, accumulate=2)


def halved(images, key=None):
  return images / 2


def of_linen():
  """(adapted, variables, the body's answers to images)."""
  images = problem().images
  adapted, variables = ready(Mlp(), images)
  fc = variables['params']['fc']
  return adapted, variables, jax.nn.gelu(halved(images) @ fc['kernel'] + fc['bias'])


def of_nnx():
  model = LiveMlp(8)
  model.eval()
  adapted, variables = glora_jax.nnx.as_adapted(glora_jax.nnx.attach(model, problem().images))
  return adapted, variables, jax.nn.gelu(model.norm(model.fc(halved(problem().images))))


@pytest.mark.parametrize('make', [of_linen, of_nnx])
def test_the_head_learns_from_what_the_frozen_body_answers(make):
  adapted, variables, features = make()

  def loss_fn(head, frozen, batch, key):
    features, labels = batch
    return cross_entropy(features @ head['kernel'] + head['bias'], labels)

  loss, (_, _, images, labels) = classification(halved), problem()
  found = glora_jax.linear_probe(
    adapted, variables, loss, (images, labels), RECIPE, key=KEY, progress=False
  )
  head, start = found['params'].pop('head'), {**variables['params']}
  before = start.pop('head')
  assert_trees_equal(found, {**variables, 'params': start})
  expected = minimize(loss_fn, before, {}, (features, labels), RECIPE, KEY, progress=False)
  assert_allclose(vector(head), vector(expected.trainable), atol=2e-5)
  assert np.abs(vector(head) - vector(before)).max() > 1e-2
