"""RandAugment: how it is computed, and what is drawn at random; against timm in `tests/peers`."""

import jax
import numpy as np
from photographs import photographs

from glora_jax.data import rand_augment


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
