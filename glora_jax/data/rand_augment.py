"""RandAugment on the device (Cubuk et al. 2020, arXiv 1909.13719), drawn as timm draws it.

The 15 operations, their ranges and the scale of magnitudes are timm's `rand-m9-mstd0.5-inc1`
(timm/data/auto_augment.py). Two things are fixed that timm lets vary: what comes in from outside of
the image is grey (128, timm's fill when it is told no mean of the images), and rotating, shearing
and translating is bilinear (timm, unless told, chooses between bilinear and bicubic for each
image).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from glora_jax.data import operations

MAX_MAGNITUDE = 10.0


class Operation(NamedTuple):
  """An operation, and the argument that it is given.

  Attributes:
    function: function of an image and, where `argument` is not None, its argument.
    argument: function of the level in [0, 1], a sign of -1 or 1, and whether effects increase with
      the level; None where the operation takes no argument.
  """

  function: Callable[..., jax.Array]
  argument: Callable[[jax.Array, jax.Array, bool], jax.Array] | None = None

  def __call__(
    self, image: jax.Array, level: jax.Array, sign: jax.Array, increasing: bool = True
  ) -> jax.Array:
    """Applies the operation.

    Args:
      image: uint8 [height, width, 3].
      level: float [], strength in [0, 1].
      sign: float [], -1 or 1.
      increasing: whether effects increase with the level.

    Returns:
      uint8 [height, width, 3].
    """
    if self.argument is None:
      return self.function(image)
    return self.function(image, self.argument(level, sign, increasing))


def _signed(largest: float, level: jax.Array, sign: jax.Array, increasing: bool) -> jax.Array:
  """A distance or an angle to either side, up to the largest."""
  return sign * largest * level


def _whole(largest: int, level: jax.Array, sign: jax.Array, increasing: bool) -> jax.Array:
  """A whole number from 0 to the largest."""
  return jnp.floor(largest * level).astype(jnp.int32)


def _whole_that_weakens(
  largest: int, level: jax.Array, sign: jax.Array, increasing: bool
) -> jax.Array:
  """A whole number from 0 to the largest, of an operation that does less the larger it is."""
  whole = _whole(largest, level, sign, increasing)
  return largest - whole if increasing else whole


def _factor(level: jax.Array, sign: jax.Array, increasing: bool) -> jax.Array:
  """A factor of `operations.blend`, from 0.1 to 1.9; 1 changes nothing."""
  return jnp.maximum(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level


OPERATIONS = {
  'auto_contrast': Operation(operations.auto_contrast),
  'equalize': Operation(operations.equalize),
  'invert': Operation(operations.invert),
  'rotate': Operation(operations.rotate, partial(_signed, 30.0)),
  'posterize': Operation(operations.posterize, partial(_whole_that_weakens, 4)),
  'solarize': Operation(operations.solarize, partial(_whole_that_weakens, 256)),
  'solarize_add': Operation(operations.solarize_add, partial(_whole, 110)),
  'color': Operation(operations.color, _factor),
  'contrast': Operation(operations.contrast, _factor),
  'brightness': Operation(operations.brightness, _factor),
  'sharpness': Operation(operations.sharpness, _factor),
  'shear_x': Operation(operations.shear_x, partial(_signed, 0.3)),
  'shear_y': Operation(operations.shear_y, partial(_signed, 0.3)),
  'translate_x': Operation(operations.translate_x, partial(_signed, 0.45)),
  'translate_y': Operation(operations.translate_y, partial(_signed, 0.45)),
}


def sample_levels(
  key: jax.Array, shape: tuple[int, ...], magnitude: float, magnitude_std: float
) -> tuple[jax.Array, jax.Array]:
  """Draws how strongly, and to which side, operations are applied.

  Args:
    key: decides the levels and signs.
    shape: shape of both.
    magnitude: mean of the magnitudes, which are normal and cut off at 0 and 10.
    magnitude_std: standard deviation of the magnitudes.

  Returns:
    Levels in [0, 1] (magnitudes divided by 10) and signs of -1 or 1, both float32 of `shape`.
  """
  level_key, sign_key = jax.random.split(key)
  magnitudes = magnitude + magnitude_std * jax.random.normal(level_key, shape)
  levels = jnp.clip(magnitudes, 0, MAX_MAGNITUDE) / MAX_MAGNITUDE
  signs = jax.random.rademacher(sign_key, shape, jnp.float32)
  return levels, signs


def rand_augment(
  key: jax.Array,
  images: jax.Array,
  magnitude: float = 9,
  num_layers: int = 2,
  magnitude_std: float = 0.5,
  increasing: bool = True,
) -> jax.Array:
  """Applies random OPERATIONS to each image, each with probability one half.

  The defaults are timm's `rand-m9-mstd0.5-inc1`.

  Args:
    key: decides operations, levels and signs.
    images: uint8 [batch, height, width, 3].
    magnitude: mean strength of the operations, on timm's scale of 0 to 10.
    num_layers: operations that are drawn for an image, one after the other.
    magnitude_std: standard deviation of the strength.
    increasing: whether effects increase with the magnitude. Otherwise posterize and solarize are
      strongest at 0, and the factors of color, contrast, brightness and sharpness run from 0.1 to
      1.9, as in the paper.

  Returns:
    uint8 [batch, height, width, 3].
  """
  choice_key, applied_key, level_key = jax.random.split(key, 3)
  shape = (num_layers, len(images))
  choices = jax.random.randint(choice_key, shape, 1, 1 + len(OPERATIONS))
  choices = jnp.where(jax.random.bernoulli(applied_key, 0.5, shape), choices, 0)
  levels, signs = sample_levels(level_key, shape, magnitude, magnitude_std)
  branches = [
    _leave_alone,
    *(partial(operation, increasing=increasing) for operation in OPERATIONS.values()),
  ]

  def transform(
    image: jax.Array, choice: jax.Array, level: jax.Array, sign: jax.Array
  ) -> jax.Array:
    return jax.lax.switch(choice, branches, image, level, sign)

  def transform_in_turn(*batch: jax.Array) -> jax.Array:
    return jax.lax.map(lambda arguments: transform(*arguments), batch)

  def apply_layer(images: jax.Array, draws: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
    # Vectorized, every image goes through all operations, and one result is kept. An accelerator is
    # better off with that than with a loop over images, each too small to fill it; a CPU is not,
    # and the loop computes only what was chosen.
    transformed = jax.lax.platform_dependent(
      images, *draws, cpu=transform_in_turn, default=jax.vmap(transform)
    )
    return transformed, None

  return jax.lax.scan(apply_layer, images, (choices, levels, signs))[0]


def _leave_alone(image: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
  return image
