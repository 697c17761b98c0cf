"""Trees of arrays with values that are no initial values."""

import jax
import jax.numpy as jnp
import numpy as np


def randomized(tree, seed=0, scale=0.3):
  """A tree of the same shapes and dtypes with normal entries."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype), tree)


def normal(*shape, seed=0):
  """Normal numbers, float32."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)
