"""RandAugment: how it is computed, and what is drawn at random; against timm in `tests/peers`."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
from photographs import photographs

from glora_jax.vision.data import rand_augment


def test_the_loop_and_the_vectorized_form_agree(monkeypatch):
  images = np.repeat(photographs((24, 24))[:1], 16, 0)
  by_loop = jax.jit(rand_augment.rand_augment)(jax.random.key(0), images).astype(int)

  def vectorized(*arguments, cpu, default):
    return default(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', vectorized)
  apply = jax.jit(lambda *arguments: rand_augment.rand_augment(*arguments))
  difference = apply(jax.random.key(0), images) - by_loop
  assert (by_loop != images).any()
  assert (np.abs(difference) > 1).mean() < 0.001


def test_each_layer_applies_one_operation_or_none(monkeypatch):
  operations = {
    'add 1': lambda image, level, sign: image + 1,
    'add 16': lambda image, level, sign: image + 16,
  }
  monkeypatch.setattr(rand_augment, 'OPERATIONS', operations)
  images = jnp.zeros((4000, 1, 1, 3), jnp.uint8)
  result = jax.jit(lambda *arguments: rand_augment.rand_augment(*arguments))(
    jax.random.key(0), images
  )
  found = np.bincount(np.asarray(result)[:, 0, 0, 0], minlength=33) / 4000
  layer = np.bincount([0, 0, 1, 16]) / 4  # none with probability 1/2
  expected = np.convolve(layer, layer)
  assert_allclose(found, expected, atol=0.03)
  assert not found[expected == 0].any()
