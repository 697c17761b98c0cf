"""Augmentation of a batch of images on the device: pure functions of a key.

`Augmentation` composes them. Images are [batch, height, width, channels].
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from glora_jax.checks import field, validate_fields
from glora_jax.vision.data import rand_augment
from glora_jax.vision.data.normalization import Normalization, normalize

_MAX_MAGNITUDE = rand_augment.MAX_MAGNITUDE
_DRAWS_PER_BOX = 10  # as torchvision and timm
_CROP_RATIO = (3 / 4, 4 / 3)  # as torchvision and timm
_ERASED_AREA = (0.02, 1 / 3)  # as timm
_ERASED_RATIO = (0.3, 1 / 0.3)


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image left to right with probability one half.

  Args:
    key: decides which images are mirrored.
    images: [batch, height, width, channels].

  Returns:
    Images of the same shape and dtype.

  Example:
    >>> images = jnp.arange(4 * 2).reshape(4, 1, 2, 1)
    >>> random_flip(jax.random.key(0), images)[:, 0, :, 0].tolist()
    [[0, 1], [2, 3], [5, 4], [7, 6]]
  """
  is_flipped = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
  return jnp.where(is_flipped, images[:, :, ::-1], images)


def random_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
  """Moves each image by up to a number of pixels in each direction; the new margin is zero.

  Args:
    key: decides the distance of each image.
    images: [batch, height, width, channels].
    pixels: largest distance.

  Returns:
    Images of the same shape and dtype.
  """
  padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)))
  offsets = jax.random.randint(key, (len(images), 2), 0, 2 * pixels + 1)

  def crop(image: jax.Array, offset: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])

  return jax.vmap(crop)(padded, offsets)


def random_boxes(
  key: jax.Array,
  number: int,
  image_shape: tuple[int, int],
  area: tuple[float, float],
  ratio: tuple[float, float],
  largest: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
  """Boxes within an image, as torchvision and timm draw them.

  The share of the image's area and the logarithm of width to height are uniform between their
  bounds. The first of ten draws that is small enough is used, at a uniform position.

  Args:
    key: decides the boxes.
    number: number of boxes.
    image_shape: height and width of the image.
    area: least and largest share of the image's area.
    ratio: least and largest ratio of width to height.
    largest: largest height and width in pixels.

  Returns:
    The boxes, int32 [number, 4] (top, left, height, width), and whether a draw was small enough,
    bool [number].
  """
  image_height, image_width = image_shape
  area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
  shape = (number, _DRAWS_PER_BOX)
  shares = jax.random.uniform(area_key, shape, minval=area[0], maxval=area[1])
  areas = shares * image_height * image_width
  least_log, largest_log = map(math.log, ratio)
  ratios = jnp.exp(jax.random.uniform(ratio_key, shape, minval=least_log, maxval=largest_log))
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
) -> jax.Array:
  """The boxes of `random_resized_crop`.

  If none of ten draws fits into the image, the box is the largest one in the middle whose ratio is
  within bounds.

  Args:
    key: decides the boxes.
    number: number of boxes.
    image_shape: height and width of the image.
    scale: least and largest share of the image's area.

  Returns:
    int32 [number, 4] (top, left, height, width).
  """
  boxes, fits = random_boxes(key, number, image_shape, scale, _CROP_RATIO, image_shape)
  image_height, image_width = image_shape
  height = min(image_height, round(image_width / _CROP_RATIO[0]))
  width = min(image_width, round(image_height * _CROP_RATIO[1]))
  middle = jnp.asarray([(image_height - height) // 2, (image_width - width) // 2, height, width])
  return jnp.where(fits[:, None], boxes, middle)


def random_resized_crop(
  key: jax.Array,
  images: jax.Array,
  size: int,
  scale: tuple[float, float] = (0.08, 1.0),
) -> jax.Array:
  """A random part of each image, resized (Szegedy et al. 2015, arXiv 1409.4842).

  The share of the area is uniform in `scale`, the ratio of width to height log-uniform between 3/4
  and 4/3, as in torchvision and timm. Resizing is bilinear and antialiased. It also reads the image
  a little beyond the crop, for the outermost pixels of the result; Pillow crops first.

  Args:
    key: decides the parts.
    images: uint8 [batch, height, width, channels].
    size: side of the result.
    scale: least and largest share of the image's area.

  Returns:
    uint8 [batch, size, size, channels].
  """

  def crop(image: jax.Array, box: jax.Array) -> jax.Array:
    zoom = size / box[2:]
    resized = jax.image.scale_and_translate(
      image.astype(jnp.float32),
      shape=(size, size, image.shape[-1]),
      spatial_dims=(0, 1),
      scale=zoom,
      translation=-box[:2] * zoom,
      method='linear',
    )
    return jnp.clip(jnp.round(resized), 0, 255).astype(jnp.uint8)

  number, height, width, _ = images.shape
  return jax.vmap(crop)(images, crop_boxes(key, number, (height, width), scale))


def color_jitter(key: jax.Array, images: jax.Array, strength: float = 0.4) -> jax.Array:
  """Brightness, contrast and saturation of each image, changed in random order.

  torchvision's ColorJitter without hue, and with its rounding after each of the three.

  Args:
    key: decides the factors and their order.
    images: uint8 [batch, height, width, 3].
    strength: the factors are uniform in 1 - strength to 1 + strength.

  Returns:
    uint8 [batch, height, width, 3].
  """
  factor_key, order_key = jax.random.split(key)
  changes = (rand_augment.brightness, rand_augment.contrast, rand_augment.color)
  shape = (len(images), len(changes))
  least = jnp.maximum(1 - strength, 0)
  factors = jax.random.uniform(factor_key, shape, minval=least, maxval=1 + strength)
  in_order = jnp.broadcast_to(jnp.arange(len(changes)), shape)
  orders = jax.random.permutation(order_key, in_order, axis=1, independent=True)

  def jitter(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    for index in order:
      image = jax.lax.switch(index, changes, image, factors[index])
    return image

  return jax.vmap(jitter)(images, factors, orders)


def random_erasing(key: jax.Array, images: jax.Array, probability: float = 0.25) -> jax.Array:
  """Fills a box of an image with normal noise (Zhong et al. 2017, arXiv 1708.04896).

  timm's mode 'pixel': one box of 2% to a third of the area, its ratio between 0.3 and 1 / 0.3,
  lower and narrower than the image. If ten draws give none, the image is unchanged.

  Args:
    key: decides which images have a box, its position, and the noise.
    images: floats [batch, height, width, channels], already normalized.
    probability: probability that an image has a box.

  Returns:
    Images of the same shape and dtype.
  """
  box_key, erased_key, noise_key = jax.random.split(key, 3)
  number, height, width, _ = images.shape
  boxes, fits = random_boxes(
    box_key, number, (height, width), _ERASED_AREA, _ERASED_RATIO, (height - 1, width - 1)
  )
  top, left, box_height, box_width = (column[:, None] for column in boxes.T)
  rows = jnp.arange(height)
  columns = jnp.arange(width)
  in_rows = (rows >= top) & (rows < top + box_height)
  in_columns = (columns >= left) & (columns < left + box_width)
  has_box = fits & jax.random.bernoulli(erased_key, probability, (number,))
  is_erased = has_box[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]
  noise = jax.random.normal(noise_key, images.shape, images.dtype)
  return jnp.where(is_erased[..., None], noise, images)


def mixup(
  key: jax.Array, images: jax.Array, labels: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
  """Each image and label mixed with those of the batch read backwards (arXiv 1710.09412).

  The share is the same for the whole batch, as in timm's mode 'batch'.

  Args:
    key: decides the share.
    images: floats [batch, ...].
    labels: floats [batch, classes], one-hot or soft.
    alpha: the share is drawn from Beta(alpha, alpha).

  Returns:
    The mixed images and labels, of the same shapes and dtypes.
  """
  share = jax.random.beta(key, alpha, alpha)

  def mix(values: jax.Array) -> jax.Array:
    kept = share.astype(values.dtype)
    mixed_in = (1 - share).astype(values.dtype)
    return kept * values + mixed_in * values[::-1]

  return mix(images), mix(labels)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Augmentation of training images, in the order of the fields; all of it is off by default.

  Attributes:
    crop: smallest share of the area that `random_resized_crop` keeps, e.g. 0.08. It crops the
      stored square images, so it has no more pixels than these, and nothing that `data.resize` cut
      off. 0 turns crops off.
    flip: whether `random_flip` is applied.
    shift: largest shift of `random_shift`, in pixels.
    color_jitter: strength of `color_jitter`.
    rand_augment: magnitude of `rand_augment` on timm's scale of 0 to 10, usually 9; 0 turns it off.
    erasing: probability of `random_erasing`.
    mixup: alpha of `mixup`. It needs the labels, so the caller of `apply` mixes.

  Raises:
    TypeError: a field has another type.
    ValueError: a number is not finite or beyond its limits.

  Example:
    >>> augmentation = Augmentation(flip=True, shift=1)
    >>> images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
    >>> augmentation.apply(jax.random.key(0), images, size=4, normalization='unit').dtype
    dtype('float32')
  """

  crop: float = field(0.0, least=0, most=1)
  flip: bool = False
  shift: int = field(0, least=0)
  color_jitter: float = field(0.0, least=0)
  rand_augment: float = field(0.0, least=0, most=_MAX_MAGNITUDE)
  erasing: float = field(0.0, least=0, most=1)
  mixup: float = field(0.0, least=0)

  def __post_init__(self):
    validate_fields(self)

  def check_size(self, size: int) -> None:
    """Checks that images of a size can be augmented.

    Args:
      size: side of the result.

    Raises:
      ValueError: a shift would leave nothing of an image.
    """
    if self.shift >= size:
      raise ValueError(f'shift={self.shift} must be below the size of the images, {size}.')

  def apply(
    self, key: jax.Array, images: jax.Array, size: int, normalization: Normalization
  ) -> jax.Array:
    """Augments and normalizes a batch.

    Args:
      key: decides the augmentation of each image.
      images: uint8 [batch, height, width, 3]; without `crop`, height and width must be `size`.
      size: side of the result.
      normalization: see `normalize`.

    Returns:
      float32 [batch, size, size, 3].

    Raises:
      ValueError: the images have another size and are not cropped; or see `check_size`.
    """
    self.check_size(size)
    height, width = images.shape[1:3]
    if not self.crop and (height, width) != (size, size):
      raise ValueError(
        f'The images have {height} x {width} pixels, but size={size}; only a crop resizes them.'
      )
    keys = jax.random.split(key, 6)
    crop_key, flip_key, shift_key, color_key, operations_key, erasing_key = keys
    if self.crop:
      images = random_resized_crop(crop_key, images, size, (self.crop, 1.0))
    if self.flip:
      images = random_flip(flip_key, images)
    if self.shift:
      images = random_shift(shift_key, images, self.shift)
    if self.color_jitter:
      images = color_jitter(color_key, images, self.color_jitter)
    if self.rand_augment:
      images = rand_augment.rand_augment(operations_key, images, self.rand_augment)
    images = normalize(images, normalization)
    if self.erasing:
      images = random_erasing(erasing_key, images, self.erasing)
    return images
