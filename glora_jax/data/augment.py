"""What happens to a batch of images on the device: normalization and random augmentation, pure and keyed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Mean and standard deviation per channel of images in [0, 1].
NORMALIZATIONS = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'inception': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    'unit': ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalize(images: jax.Array, normalization: str) -> jax.Array:
  """uint8 [..., 3] to float32: 'imagenet' and 'clip' by mean and deviation, 'inception' to [-1, 1], 'unit' to [0, 1]."""
  if normalization not in NORMALIZATIONS:
    raise ValueError(f"normalization='{normalization}' is unknown; it is one of {', '.join(NORMALIZATIONS)}.")
  mean, deviation = (jnp.asarray(values, jnp.float32) for values in NORMALIZATIONS[normalization])
  return (images.astype(jnp.float32) / 255 - mean) / deviation


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image of [batch, height, width, channels] left to right with probability one half."""
  flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
  return jnp.where(flip, images[:, :, ::-1], images)


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
  """Moves each image by up to `pixels` in each direction (pad with zeros, then crop at random)."""
  padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
  offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
  crop = lambda image, offset: jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])
  return jax.vmap(crop)(padded, offsets)
