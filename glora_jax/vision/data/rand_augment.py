"""RandAugment on the device (Cubuk et al. 2020, arXiv 1909.13719), drawn as timm draws it.

The 15 operations, their ranges and the scale of magnitudes are timm's `rand-m9-mstd0.5-inc1`
(timm/data/auto_augment.py): effects increase with the magnitude. Two things are fixed that timm
lets vary: what comes in from outside of the image is grey (128, timm's fill when it is told no mean
of the images), and rotating, shearing and translating is bilinear (timm, unless told, chooses
between bilinear and bicubic for each image).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from glora_jax.vision.data import operations

MAX_MAGNITUDE = 10.0
_MAGNITUDE_STD = 0.5
_LAYERS = 2  # operations that are drawn for an image, one after the other

Argument = Callable[[jax.Array, jax.Array], jax.Array]  # level in [0, 1], sign


@dataclasses.dataclass(frozen=True)
class Operation:
  """An operation, and the argument that it is given.

  Attributes:
    function: function of an image and, where `argument` is not None, its argument.
    argument: function of the level in [0, 1] and a sign of -1 or 1; None if the operation needs no
      argument.
  """

  function: Callable[..., jax.Array]
  argument: Argument | None = None

  def __call__(self, image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """Applies the operation to an image, uint8 [height, width, 3]."""
    if self.argument is None:
      return self.function(image)
    return self.function(image, self.argument(level, sign))


def _signed(largest: float) -> Argument:
  """A distance or an angle to either side, up to the largest."""
  return lambda level, sign: sign * largest * level


def _whole(largest: int, weakens: bool = False) -> Argument:
  """A whole number from 0 to the largest, perhaps of what does less the larger it is."""

  def argument(level: jax.Array, sign: jax.Array) -> jax.Array:
    whole = jnp.floor(largest * level).astype(jnp.int32)
    return largest - whole if weakens else whole

  return argument


def _factor(level: jax.Array, sign: jax.Array) -> jax.Array:
  """A factor of `operations.blend`, from 0.1 to 1.9; 1 changes nothing."""
  return jnp.maximum(0.1, 1 + sign * 0.9 * level)


OPERATIONS = {
  'auto_contrast': Operation(operations.auto_contrast),
  'equalize': Operation(operations.equalize),
  'invert': Operation(operations.invert),
  'rotate': Operation(operations.rotate, _signed(30.0)),
  'posterize': Operation(operations.posterize, _whole(4, weakens=True)),
  'solarize': Operation(operations.solarize, _whole(256, weakens=True)),
  'solarize_add': Operation(operations.solarize_add, _whole(110)),
  'color': Operation(operations.color, _factor),
  'contrast': Operation(operations.contrast, _factor),
  'brightness': Operation(operations.brightness, _factor),
  'sharpness': Operation(operations.sharpness, _factor),
  'shear_x': Operation(operations.shear_x, _signed(0.3)),
  'shear_y': Operation(operations.shear_y, _signed(0.3)),
  'translate_x': Operation(operations.translate_x, _signed(0.45)),
  'translate_y': Operation(operations.translate_y, _signed(0.45)),
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
  branches = (Operation(lambda image: image), *OPERATIONS.values())

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
