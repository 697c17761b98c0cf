"""A task that any images are good for: which way was this one shifted?"""

from __future__ import annotations

import jax
import jax.numpy as jnp

DIRECTIONS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
SHARE = 6  # of a side, by which an image is shifted


def shifted(
  images: jax.Array, key: jax.Array, num_classes: int = len(DIRECTIONS)
) -> tuple[jax.Array, jax.Array]:
  """Images shifted along a diagonal, what leaves on one side coming back on the other.

  Args:
    images: [n, height, width, channels], any dtype.
    key: random key of the directions.
    num_classes: most classes that a head can tell; so many directions at most are used.

  Returns:
    The shifted images, and the number of each one's direction, int32 [n].

  Example:
    >>> moved, labels = shifted(jnp.arange(36).reshape(1, 6, 6, 1), jax.random.key(0))
    >>> moved.shape, sorted(moved.flatten().tolist()) == list(range(36))
    ((1, 6, 6, 1), True)
  """
  labels = jax.random.randint(key, (len(images),), 0, min(num_classes, len(DIRECTIONS)))
  height, width = images.shape[1:3]
  steps = jnp.array(DIRECTIONS) * jnp.array([height // SHARE + 1, width // SHARE + 1])
  moved = jax.vmap(lambda image, step: jnp.roll(image, step, (0, 1)))(images, steps[labels])
  return moved, labels
