"""Trees of arrays with values that are no initial values."""

import jax
import numpy as np


def randomized(tree, seed=0, scale=0.3):
  """A tree of the same shapes and dtypes with normal entries; nothing is compiled."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    return jax.device_put(np.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype))

  return jax.tree.map(draw, tree)


def normal(*shape, seed=0):
  """Normal numbers, float32."""
  return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
