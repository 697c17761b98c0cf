"""What happens to a batch of images on the device: normalization and random augmentation, pure and keyed."""

from __future__ import annotations

import dataclasses
import math

import dm_pix
import jax
import jax.numpy as jnp

from glora_jax.data import rand_augment
from glora_jax.data.normalization import normalize


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image of [batch, height, width, channels] left to right with probability one half."""
  flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
  return jnp.where(flip, dm_pix.flip_left_right(images), images)


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
  """Moves each image by up to `pixels` in each direction (pad with zeros, then crop at random)."""
  padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
  offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)
  crop = lambda image, offset: jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])
  return jax.vmap(crop)(padded, offsets)


def random_boxes(
  key: jax.Array,
  number: int,
  image_shape: tuple[int, int],
  area: tuple[float, float],
  ratio: tuple[float, float],
  largest: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
  """Boxes within an image, as torchvision and timm draw them: int32 [number, 4] (top, left, height, width), and bool [number].

  The share of the image's area and the logarithm of width to height are uniform between their two bounds. Of ten draws the first of
  at most the size `largest` (height, width) is taken, at a uniform place; where none is so small, the second result is False.
  """
  image_height, image_width = image_shape
  area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
  areas = (
    jax.random.uniform(area_key, (number, 10), minval=area[0], maxval=area[1])
    * image_height
    * image_width
  )
  ratios = jnp.exp(
    jax.random.uniform(
      ratio_key, (number, 10), minval=math.log(ratio[0]), maxval=math.log(ratio[1])
    )
  )
  heights = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
  widths = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
  fits = (heights > 0) & (widths > 0) & (heights <= largest[0]) & (widths <= largest[1])
  first = jnp.arange(number), fits.argmax(-1)
  height, width = heights[first], widths[first]
  top = jax.random.randint(top_key, (number,), 0, jnp.maximum(image_height - height, 0) + 1)
  left = jax.random.randint(left_key, (number,), 0, jnp.maximum(image_width - width, 0) + 1)
  return jnp.stack([top, left, height, width], -1), fits[first]


def crop_boxes(
  key: jax.Array,
  number: int,
  image_shape: tuple[int, int],
  scale: tuple[float, float],
  ratio: tuple[float, float],
) -> jax.Array:
  """The boxes of `random_resized_crop`, int32 [number, 4] (top, left, height, width).

  Where none of ten draws fits into the image, the box is the largest one in the middle whose ratio is within bounds.
  """
  boxes, fits = random_boxes(key, number, image_shape, scale, ratio, image_shape)
  image_height, image_width = image_shape
  height = min(image_height, round(image_width / ratio[0]))
  width = min(image_width, round(image_height * ratio[1]))
  middle = jnp.asarray([(image_height - height) // 2, (image_width - width) // 2, height, width])
  return jnp.where(fits[:, None], boxes, middle)


def random_resized_crop(
  key: jax.Array,
  images: jax.Array,
  size: int,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> jax.Array:
  """A part of each image, resized to [batch, size, size, channels]; uint8 in and out. Szegedy et al. 2015, https://arxiv.org/abs/1409.4842.

  The share of the area is uniform in `scale`, the ratio of width to height log-uniform in `ratio`, as in torchvision and timm.
  Resizing is bilinear and antialiased. It reads the image a little beyond the crop, so that, unlike with Pillow, which crops first,
  the outermost pixels of the result know their neighbours.
  """

  def crop(image, box):
    zoom = size / box[2:]
    resized = jax.image.scale_and_translate(
      image.astype(jnp.float32),
      (size, size, image.shape[-1]),
      (0, 1),
      zoom,
      -box[:2] * zoom,
      'linear',
    )
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)

  return jax.vmap(crop)(images, crop_boxes(key, len(images), images.shape[1:3], scale, ratio))


def color_jitter(key: jax.Array, images: jax.Array, strength: float = 0.4) -> jax.Array:
  """Brightness, contrast and saturation of each image, changed in random order by factors uniform in 1 - strength to 1 + strength.

  uint8 [batch, height, width, 3] to the same; torchvision's ColorJitter without hue, and with its rounding after each of the three.
  """
  factor_key, order_key = jax.random.split(key)
  shape = (len(images), 3)
  factors = jax.random.uniform(
    factor_key, shape, minval=jnp.maximum(1 - strength, 0), maxval=1 + strength
  )
  orders = jax.random.permutation(
    order_key, jnp.broadcast_to(jnp.arange(3), shape), axis=1, independent=True
  )

  def jitter(image, factors, order):
    for index in order:
      image = jax.lax.switch(
        index,
        (rand_augment.brightness, rand_augment.contrast, rand_augment.color),
        image,
        factors[index],
      )
    return image

  return jax.vmap(jitter)(images, factors, orders)


def random_erasing(key: jax.Array, images: jax.Array, probability: float = 0.25) -> jax.Array:
  """Fills a box of each image with normal noise, with this probability. Zhong et al. 2017, https://arxiv.org/abs/1708.04896.

  Images are floats [batch, height, width, channels], already normalized. timm's mode 'pixel': one box of 2% to a third of the area,
  its ratio between 0.3 and 1 / 0.3, lower and narrower than the image; an image for which ten draws give none stays whole.
  """
  box_key, erased_key, noise_key = jax.random.split(key, 3)
  number, height, width, _ = images.shape
  boxes, fits = random_boxes(
    box_key, number, (height, width), (0.02, 1 / 3), (0.3, 1 / 0.3), (height - 1, width - 1)
  )
  top, left, box_height, box_width = (column[:, None] for column in boxes.T)
  rows, columns = jnp.arange(height), jnp.arange(width)
  in_rows = (rows >= top) & (rows < top + box_height)
  in_columns = (columns >= left) & (columns < left + box_width)
  erased = (
    (fits & jax.random.bernoulli(erased_key, probability, (number,)))[:, None, None]
    & in_rows[:, :, None]
    & in_columns[:, None, :]
  )
  return jnp.where(
    erased[..., None], jax.random.normal(noise_key, images.shape, images.dtype), images
  )


def mixup(
  key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Each image and label mixed with those of the batch read backwards. Zhang et al. 2018, https://arxiv.org/abs/1710.09412.

  Float images [batch, ...] and labels [batch, classes], one-hot or soft. One share, from Beta(alpha, alpha), for the whole batch,
  as timm's mode 'batch'.
  """
  share = jax.random.beta(key, alpha, alpha)
  mix = lambda values: (
    share.astype(values.dtype) * values + (1 - share).astype(values.dtype) * values[::-1]
  )
  return mix(images), mix(labels)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What is done to training images, in the order of the fields; all of it is off by default.

  crop          `random_resized_crop`, to shares of the area within `crop_scale`
  flip          `random_flip`
  shift         `random_shift` by up to so many pixels
  color_jitter  `color_jitter` with this strength
  rand_augment  `rand_augment` with this `magnitude` on timm's scale of 0 to 10
  erasing       `random_erasing` with this probability
  mixup         the alpha of `mixup`, which needs the labels: `apply` leaves it to its caller
  """

  crop: bool = False
  crop_scale: tuple[float, float] = (0.08, 1.0)
  flip: bool = False
  shift: int = 0
  color_jitter: float = 0.0
  rand_augment: bool = False
  magnitude: float = 9.0
  erasing: float = 0.0
  mixup: float = 0.0

  def __post_init__(self):
    def check(name, right, wanted):
      if not right:
        raise ValueError(f'{name}={getattr(self, name)!r} is not {wanted}.')

    is_number = lambda value: (
      isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )
    is_pair = (
      isinstance(self.crop_scale, tuple | list)
      and len(self.crop_scale) == 2
      and all(map(is_number, self.crop_scale))
    )
    for name in ('crop', 'flip', 'rand_augment'):
      check(name, isinstance(getattr(self, name), bool), 'True or False')
    check(
      'crop_scale',
      is_pair and 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1,
      'two shares, 0 < smallest <= largest <= 1',
    )
    object.__setattr__(self, 'crop_scale', tuple(self.crop_scale))
    check(
      'shift',
      isinstance(self.shift, int) and not isinstance(self.shift, bool) and self.shift >= 0,
      'a whole number of pixels, 0 or more',
    )
    check(
      'color_jitter',
      is_number(self.color_jitter) and self.color_jitter >= 0,
      'a number of 0 or more',
    )
    check(
      'magnitude',
      is_number(self.magnitude) and 0 <= self.magnitude <= rand_augment.MAX_MAGNITUDE,
      'a number from 0 to 10',
    )
    check('erasing', is_number(self.erasing) and 0 <= self.erasing <= 1, 'a probability, 0 to 1')
    check('mixup', is_number(self.mixup) and self.mixup >= 0, 'a number of 0 or more')

  def apply(self, key: jax.Array, images: jax.Array, size: int, normalization: str) -> jax.Array:
    """uint8 [batch, height, width, 3] to normalized float32 [batch, size, size, 3]; without `crop`, height and width are `size` already."""
    if not self.crop and images.shape[1:3] != (size, size):
      raise ValueError(
        f'Images of {images.shape[1]} x {images.shape[2]} pixels are not of size={size}, and only crop=True resizes them.'
      )
    crop_key, flip_key, shift_key, color_key, operations_key, erasing_key = jax.random.split(key, 6)
    if self.crop:
      images = random_resized_crop(crop_key, images, size, self.crop_scale)
    if self.flip:
      images = random_flip(flip_key, images)
    if self.shift:
      images = random_shift(shift_key, images, self.shift)
    if self.color_jitter:
      images = color_jitter(color_key, images, self.color_jitter)
    if self.rand_augment:
      images = rand_augment.rand_augment(operations_key, images, self.magnitude)
    images = normalize(images, normalization)
    return random_erasing(erasing_key, images, self.erasing) if self.erasing else images
