"""RandAugment: operations as Pillow has them, the scale of timm, and what is drawn at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from photographs import photographs
from PIL import Image, ImageEnhance, ImageOps

from glora_jax.data import operations, rand_augment
from glora_jax.data.rand_augment import OPERATIONS

GREY = (128, 128, 128)


def enhance(enhancer):
  return lambda image, factor: enhancer(image).enhance(factor), (1, 0.1, 0.19, 1.5, 1.9), 0.002


def transform(matrix, *arguments):
  def apply(image, value):
    coefficients = matrix(value, *image.size)
    bilinear = Image.Resampling.BILINEAR
    return image.transform(
      image.size, Image.Transform.AFFINE, coefficients, bilinear, fillcolor=GREY
    )

  return apply, arguments, 0.02


def rotate(image, degrees):
  return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=GREY)


def posterize(image, bits):
  return ImageOps.posterize(image, bits) if bits else Image.new('RGB', image.size)


def solarize_add(image, addition):
  return image.point([min(255, n + addition) if n < 128 else n for n in range(256)] * 3)


# What Pillow makes of an image; the arguments, the neutral one first, where there are some; and
# which share of the values may differ by one.
PILLOW = {
  'auto_contrast': (ImageOps.autocontrast, (), 0.02),
  'equalize': (ImageOps.equalize, (), 0),
  'invert': (ImageOps.invert, (), 0),
  'rotate': (rotate, (0, -30, -7.3, 1, 27), 0.02),
  'posterize': (posterize, (8, 4, 2, 1, 0), 0),
  'solarize': (ImageOps.solarize, (256, 0, 26, 128, 255), 0),
  'solarize_add': (solarize_add, (0, 50, 99, 110), 0),
  'color': enhance(ImageEnhance.Color),
  'contrast': enhance(ImageEnhance.Contrast),
  'brightness': enhance(ImageEnhance.Brightness),
  'sharpness': enhance(ImageEnhance.Sharpness),
  'shear_x': transform(lambda value, w, h: (1, value, 0, 0, 1, 0), 0, -0.3, 0.1, 0.27),
  'shear_y': transform(lambda value, w, h: (1, 0, 0, value, 1, 0), 0, -0.3, 0.1, 0.27),
  'translate_x': transform(lambda value, w, h: (1, 0, value * w, 0, 1, 0), 0, -0.45, 0.25, 0.411),
  'translate_y': transform(lambda value, w, h: (1, 0, 0, 0, 1, value * h), 0, -0.45, 0.25, 0.411),
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_every_operation_gives_what_pillow_gives(name):
  apply, values, share = PILLOW[name]
  images = photographs()
  arguments = [(value,) for value in values] or [()]
  axes = (0, *[None] * len(arguments[0]))
  operation = jax.jit(jax.vmap(getattr(operations, name), axes))
  for argument in arguments:
    result = np.asarray(operation(images, *argument))
    assert result.dtype == np.uint8
    pictures = [apply(Image.fromarray(image), *argument) for image in images]
    difference = np.abs(result.astype(int) - np.stack([np.asarray(p) for p in pictures]))
    assert difference.max() <= 1, argument
    assert (difference > 0).mean() <= share, argument
    if argument and argument is arguments[0]:
      assert_array_equal(result, images)


def test_the_loop_and_the_vectorized_form_agree(monkeypatch):
  images = np.repeat(photographs((24, 24))[:1], 16, 0)
  by_loop = jax.jit(rand_augment.rand_augment)(jax.random.key(0), images).astype(int)

  def vectorized(*arguments, cpu, default):
    return default(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', vectorized)
  apply = jax.jit(lambda *arguments: rand_augment.rand_augment(*arguments))
  difference = apply(jax.random.key(0), images) - by_loop
  assert (by_loop != images).any()
  assert (np.abs(difference) > 1).mean() < 0.001


def test_each_layer_applies_one_operation_or_none(monkeypatch):
  operations = {
    'add 1': rand_augment.Operation(lambda image: image + 1),
    'add 16': rand_augment.Operation(lambda image: image + 16),
  }
  monkeypatch.setattr(rand_augment, 'OPERATIONS', operations)
  images = jnp.zeros((4000, 1, 1, 3), jnp.uint8)
  result = jax.jit(lambda *arguments: rand_augment.rand_augment(*arguments))(
    jax.random.key(0), images
  )
  found = np.bincount(np.asarray(result)[:, 0, 0, 0], minlength=33) / 4000
  layer = np.bincount([0, 0, 1, 16]) / 4  # none with probability 1/2
  expected = np.convolve(layer, layer)
  assert_allclose(found, expected, atol=0.03)
  assert not found[expected == 0].any()
