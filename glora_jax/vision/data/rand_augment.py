"""RandAugment on the device (Cubuk et al. 2020, arXiv 1909.13719), drawn as timm draws it.

The 15 operations, their ranges and the scale of magnitudes are timm's `rand-m9-mstd0.5-inc1`
(timm/data/auto_augment.py): effects increase with the magnitude. Two things are fixed that timm
lets vary: what comes in from outside of the image is grey (128, timm's fill when it is told no mean
of the images), and rotating, shearing and translating is bilinear (timm, unless told, chooses
between bilinear and bicubic for each image).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from glora_jax.vision.data import operations

MAX_MAGNITUDE = 10.0
_MAGNITUDE_STD = 0.5
_LAYERS = 2  # operations that are drawn for an image, one after the other


def _factor(level: jax.Array, sign: jax.Array) -> jax.Array:
  """A factor of `operations.blend`, from 0.1 to 1.9; 1 changes nothing."""
  return jnp.maximum(0.1, 1 + sign * 0.9 * level)


def _whole(number: jax.Array) -> jax.Array:
  return jnp.floor(number).astype(jnp.int32)


# Functions of an image, uint8 [height, width, 3], a level in [0, 1], and a sign of -1 or 1.
OPERATIONS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
  'auto_contrast': lambda image, level, sign: operations.auto_contrast(image),
  'equalize': lambda image, level, sign: operations.equalize(image),
  'invert': lambda image, level, sign: operations.invert(image),
  'rotate': lambda image, level, sign: operations.rotate(image, sign * 30.0 * level),
  'posterize': lambda image, level, sign: operations.posterize(image, 4 - _whole(4 * level)),
  'solarize': lambda image, level, sign: operations.solarize(image, 256 - _whole(256 * level)),
  'solarize_add': lambda image, level, sign: operations.solarize_add(image, _whole(110 * level)),
  'color': lambda image, level, sign: operations.color(image, _factor(level, sign)),
  'contrast': lambda image, level, sign: operations.contrast(image, _factor(level, sign)),
  'brightness': lambda image, level, sign: operations.brightness(image, _factor(level, sign)),
  'sharpness': lambda image, level, sign: operations.sharpness(image, _factor(level, sign)),
  'shear_x': lambda image, level, sign: operations.shear_x(image, sign * 0.3 * level),
  'shear_y': lambda image, level, sign: operations.shear_y(image, sign * 0.3 * level),
  'translate_x': lambda image, level, sign: operations.translate_x(image, sign * 0.45 * level),
  'translate_y': lambda image, level, sign: operations.translate_y(image, sign * 0.45 * level),
}


def sample_levels(
  key: jax.Array, shape: tuple[int, ...], magnitude: float
) -> tuple[jax.Array, jax.Array]:
  """Draws how strongly, and to which side, operations are applied.

  Args:
    key: decides the levels and signs.
    shape: shape of both.
    magnitude: mean of the magnitudes, which are normal and cut off at 0 and 10.

  Returns:
    Levels in [0, 1] (magnitudes divided by 10) and signs of -1 or 1, both float32 of `shape`.
  """
  level_key, sign_key = jax.random.split(key)
  magnitudes = magnitude + _MAGNITUDE_STD * jax.random.normal(level_key, shape)
  levels = jnp.clip(magnitudes, 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
  signs = jax.random.rademacher(sign_key, shape, jnp.float32)
  return levels, signs


def rand_augment(key: jax.Array, images: jax.Array, magnitude: float = 9) -> jax.Array:
  """Applies two random OPERATIONS to each image, each with probability one half.

  Args:
    key: decides operations, levels and signs.
    images: uint8 [batch, height, width, 3].
    magnitude: mean strength of the operations, on timm's scale of 0 to 10.

  Returns:
    uint8 [batch, height, width, 3].
  """
  choice_key, applied_key, level_key = jax.random.split(key, 3)
  shape = (_LAYERS, len(images))
  choices = jax.random.randint(choice_key, shape, 1, 1 + len(OPERATIONS))
  choices = jnp.where(jax.random.bernoulli(applied_key, 0.5, shape), choices, 0)
  levels, signs = sample_levels(level_key, shape, magnitude)
  # The first one leaves the image alone.
  branches = (lambda image, level, sign: image, *OPERATIONS.values())

  def transform(arguments: tuple[jax.Array, ...]) -> jax.Array:
    image, choice, level, sign = arguments
    return jax.lax.switch(choice, branches, image, level, sign)

  def apply_layer(images: jax.Array, draws: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
    # Vectorized, every image goes through all operations, and one result is kept. An accelerator is
    # better off with that than with a loop over images, each too small to fill it; a CPU is not,
    # and the loop computes only what was chosen.
    loop, vectorized = partial(jax.lax.map, transform), jax.vmap(transform)
    batch = (images, *draws)
    return jax.lax.platform_dependent(batch, cpu=loop, default=vectorized), None

  return jax.lax.scan(apply_layer, images, (choices, levels, signs))[0]
