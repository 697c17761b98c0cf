"""Predictions of images: the most probable class that counts, on several devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joining import run_on_eight
from numpy.testing import assert_allclose, assert_array_equal

import glora_jax
from glora_jax.vision.runs import evaluation

IMAGES = jax.random.normal(jax.random.key(0), (23, 6))


def doubled(images, key):
  return 2 * images


@pytest.fixture
def problem():
  """(an adapted model, its variables)"""
  model = nn.Dense(4)
  adapted = glora_jax.adapt(model, IMAGES)
  params = model.init(jax.random.key(1), IMAGES)['params']
  return adapted, adapted.init(jax.random.key(2), params)


@pytest.mark.parametrize('classes', [None, np.array([True, False, True, True])])
def test_predictions_are_the_most_probable_of_the_classes_that_count(classes, problem):
  adapted, variables = problem
  logits = np.array(nn.Dense(4).apply({'params': variables['params']}, 2 * IMAGES))
  if classes is not None:
    assert (logits.argmax(-1) == 1).any()  # a class that does not count
    logits[:, ~classes] = -np.inf
  found = evaluation.make_predictor(adapted, doubled, classes=classes)(variables, IMAGES)
  assert_array_equal(found.classes, logits.argmax(-1))
  assert_allclose(found.probabilities, jax.nn.softmax(logits), rtol=1e-5)


def test_what_is_not_finite_is_no_answer(problem):
  adapted, variables = problem
  infinite = np.arange(len(IMAGES)) % 3 == 0
  found = evaluation.make_predictor(adapted, doubled)(variables, IMAGES.at[infinite].set(jnp.inf))
  assert_array_equal(found.classes >= 0, ~infinite)


@pytest.mark.slow
def test_eight_devices_read_predict_and_train_a_head_on_features_as_one():
  run_on_eight('vision/programs/vit_on_eight_devices')
