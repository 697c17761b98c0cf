"""RandAugment on the device (Cubuk et al. 2020, arXiv 1909.13719), drawn as timm draws it.

The 15 operations, their ranges and the scale of magnitudes are timm's `rand-m9-mstd0.5-inc1`
(timm/data/auto_augment.py): effects increase with the magnitude. Two things are fixed that vary in
timm: new margins are gray (128, timm's default without the mean of the images), and rotating,
shearing and translating is bilinear (by default, timm chooses between bilinear and bicubic for each
image).

The operations are Pillow's, as pure functions. Each needs a uint8 image [height, width, 3] and,
except for three, an argument in the unit of the operation. It returns a uint8 image of the same
shape, rounded as Pillow rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

MAX_MAGNITUDE = 10.0
_MAGNITUDE_STD = 0.5
_LAYERS = 2  # operations that are drawn for an image, one after the other
FILL = 128  # gray of new margins
_GRID = 4096  # steps of a pixel that coordinates are rounded to

Matrix = jax.Array | Sequence[Sequence[jax.typing.ArrayLike]]


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


def sample_levels(
  key: jax.Array, shape: tuple[int, ...], magnitude: float
) -> tuple[jax.Array, jax.Array]:
  """Draws levels and signs of operations.

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


def luma(image: jax.Array) -> jax.Array:
  """Gray values of a uint8 image as int32 [height, width, 1].

  ITU-R 601-2, in Pillow's 16-bit fixed point.
  """
  weighted = image.astype(jnp.int32) * jnp.asarray((19595, 38470, 7471))
  return (weighted.sum(-1, keepdims=True) + 0x8000) >> 16


def blend(degenerate: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
  """From `degenerate` (factor 0) over the image (factor 1) and beyond, cut off at 0 and 255.

  As Pillow's ImageEnhance.
  """
  degenerate = degenerate.astype(jnp.float32)
  blended = degenerate + factor * (image.astype(jnp.float32) - degenerate)
  return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Black at factor 0, the image at 1."""
  return blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
  """The mean of the gray values everywhere at factor 0, the image at 1."""
  grey = luma(image)
  return blend((grey.sum() + grey.size // 2) // grey.size, image, factor)


def color(image: jax.Array, factor: jax.Array) -> jax.Array:
  """The gray image at factor 0, the image at 1; also called saturation."""
  return blend(luma(image), image, factor)


def sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Smoothed over 3 x 3 pixels at factor 0, the image at 1; the outermost pixels stay."""
  values = jnp.asarray(image, jnp.int32)
  window_sums = jax.lax.reduce_window(values, 0, jax.lax.add, (3, 3, 1), (1, 1, 1), 'VALID')
  weighted_sums = window_sums + 4 * values[1:-1, 1:-1]  # weights 1, and 5 in the middle: 13
  smooth = (2 * weighted_sums + 13) // 26
  return blend(values.at[1:-1, 1:-1].set(smooth), image, factor)


def auto_contrast(image: jax.Array) -> jax.Array:
  """Stretches each channel to reach from 0 to 255; a channel of one value stays."""
  values = image.astype(jnp.int32)
  low = values.min((0, 1))
  high = values.max((0, 1))
  stretched = (values - low) * 255 // jnp.maximum(high - low, 1)
  return jnp.where(high > low, stretched, values).astype(jnp.uint8)


def equalize(image: jax.Array) -> jax.Array:
  """Gives each channel a flat histogram.

  A channel with too few pixels below its highest value for 255 steps stays.
  """

  def equalize_channel(channel: jax.Array) -> jax.Array:
    counts = jnp.bincount(channel.reshape(-1), length=256)
    below = jnp.cumsum(counts) - counts
    step = below[channel.max()] // 255
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, jnp.arange(256)).astype(jnp.uint8)[channel]

  return jax.vmap(equalize_channel, -1, -1)(image)


def invert(image: jax.Array) -> jax.Array:
  """Black to white and white to black."""
  return 255 - image


def posterize(image: jax.Array, bits: jax.Array) -> jax.Array:
  """Keeps the `bits` highest bits of each value, 0 to 8.

  With 0 all is black, as in Pillow before it raised an error for that.
  """
  return image & (0xFF00 >> jnp.asarray(bits, jnp.int32)).astype(jnp.uint8)


def solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
  """Inverts the values of `threshold` and above, 0 to 256."""
  return jnp.where(image.astype(jnp.int32) < threshold, image, 255 - image)


def solarize_add(image: jax.Array, addition: jax.Array) -> jax.Array:
  """Adds to the values below 128, up to 255."""
  values = image.astype(jnp.int32)
  return jnp.where(values < 128, jnp.minimum(values + addition, 255), values).astype(jnp.uint8)


def affine(image: jax.Array, matrix: Matrix) -> jax.Array:
  """An affine transformation, bilinear, in Pillow's convention.

  Args:
    image: uint8 [height, width, 3].
    matrix: [2, 3], maps (x, y, 1) of the result to (x, y) in `image`; the middle of a pixel is at
      + 0.5.

  Returns:
    uint8 [height, width, 3].
  """
  height, width, _ = image.shape
  x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
  x, y = (row[0] * x + row[1] * y + row[2] for row in jnp.asarray(matrix, jnp.float32))
  # XLA may compute a coordinate twice, for the index and for the weight, with different last bits.
  # If these are on two sides of a whole number, a pixel would be read from its neighbor. On a grid,
  # whole numbers are exact.
  x, y = (jnp.round(coordinate * _GRID) / _GRID for coordinate in (x, y))

  def sample(channel: jax.Array) -> jax.Array:
    coordinates = [y - 0.5, x - 0.5]
    return jax.scipy.ndimage.map_coordinates(channel, coordinates, order=1, mode='nearest')

  sampled = jax.vmap(sample, -1, -1)(image.astype(jnp.float32))
  inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
  # Pillow truncates. The hundredth keeps an even area unchanged if the four weights sum to a little
  # less than one.
  return jnp.where(inside[..., None], sampled + 0.01, FILL).astype(jnp.uint8)


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
  """Rotates the image counter-clockwise around its middle."""
  height, width, _ = image.shape
  cos = jnp.cos(jnp.deg2rad(degrees))
  sin = jnp.sin(jnp.deg2rad(degrees))
  offset_x = (width - cos * width + sin * height) / 2
  offset_y = (height - sin * width - cos * height) / 2
  return affine(image, [[cos, -sin, offset_x], [sin, cos, offset_y]])


def shear_x(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Moves each row to the left by `factor` times its distance from the top."""
  return affine(image, [[1, factor, 0], [0, 1, 0]])


def shear_y(image: jax.Array, factor: jax.Array) -> jax.Array:
  """Moves each column up by `factor` times its distance from the left."""
  return affine(image, [[1, 0, 0], [factor, 1, 0]])


def translate_x(image: jax.Array, fraction: jax.Array) -> jax.Array:
  """Moves the image to the left by this fraction of its width."""
  return affine(image, [[1, 0, fraction * image.shape[1]], [0, 1, 0]])


def translate_y(image: jax.Array, fraction: jax.Array) -> jax.Array:
  """Moves the image up by this fraction of its height."""
  return affine(image, [[1, 0, 0], [0, 1, fraction * image.shape[0]]])


def _factor(level: jax.Array, sign: jax.Array) -> jax.Array:
  """A factor of `blend`, from 0.1 to 1.9; 1 changes nothing."""
  return jnp.maximum(0.1, 1 + sign * 0.9 * level)


def _whole(number: jax.Array) -> jax.Array:
  return jnp.floor(number).astype(jnp.int32)


# Functions of an image, uint8 [height, width, 3], a level in [0, 1], and a sign of -1 or 1.
OPERATIONS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
  'auto_contrast': lambda image, level, sign: auto_contrast(image),
  'equalize': lambda image, level, sign: equalize(image),
  'invert': lambda image, level, sign: invert(image),
  'rotate': lambda image, level, sign: rotate(image, sign * 30.0 * level),
  'posterize': lambda image, level, sign: posterize(image, 4 - _whole(4 * level)),
  'solarize': lambda image, level, sign: solarize(image, 256 - _whole(256 * level)),
  'solarize_add': lambda image, level, sign: solarize_add(image, _whole(110 * level)),
  'color': lambda image, level, sign: color(image, _factor(level, sign)),
  'contrast': lambda image, level, sign: contrast(image, _factor(level, sign)),
  'brightness': lambda image, level, sign: brightness(image, _factor(level, sign)),
  'sharpness': lambda image, level, sign: sharpness(image, _factor(level, sign)),
  'shear_x': lambda image, level, sign: shear_x(image, sign * 0.3 * level),
  'shear_y': lambda image, level, sign: shear_y(image, sign * 0.3 * level),
  'translate_x': lambda image, level, sign: translate_x(image, sign * 0.45 * level),
  'translate_y': lambda image, level, sign: translate_y(image, sign * 0.45 * level),
}
