"""Every operation gives what Pillow gives."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from photographs import photographs
from PIL import Image, ImageEnhance, ImageOps

from glora_jax.data import operations
from glora_jax.data.rand_augment import OPERATIONS

GREY = (128, 128, 128)


class Reference(NamedTuple):
  """What Pillow makes of an image.

  Attributes:
    apply: function of a Pillow image, and of an argument where the operation has one.
    arguments: the arguments, the neutral one first; none for an operation without.
    largest: by how much a value may differ.
    share: which share of the values may differ.
  """

  apply: Callable
  arguments: tuple = ()
  largest: int = 0
  share: float = 0.0


def enhance(enhancer):
  def apply(image, factor):
    return enhancer(image).enhance(factor)

  return Reference(apply, (1, 0.1, 0.19, 1.5, 1.9), 1, 0.002)


def transform(matrix, *arguments):
  def apply(image, value):
    coefficients = matrix(value, *image.size)
    bilinear = Image.Resampling.BILINEAR
    return image.transform(
      image.size, Image.Transform.AFFINE, coefficients, bilinear, fillcolor=GREY
    )

  return Reference(apply, arguments, 1, 0.02)


def rotate(image, degrees):
  return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=GREY)


def posterize(image, bits):
  return ImageOps.posterize(image, bits) if bits else Image.new('RGB', image.size)


def solarize_add(image, addition):
  return image.point([min(255, n + addition) if n < 128 else n for n in range(256)] * 3)


PILLOW = {
  'auto_contrast': Reference(ImageOps.autocontrast, largest=1, share=0.02),
  'equalize': Reference(ImageOps.equalize),
  'invert': Reference(ImageOps.invert),
  'rotate': Reference(rotate, (0, -30, -7.3, 1, 27), 1, 0.02),
  'posterize': Reference(posterize, (8, 4, 2, 1, 0)),
  'solarize': Reference(ImageOps.solarize, (256, 0, 26, 128, 255)),
  'solarize_add': Reference(solarize_add, (0, 50, 99, 110)),
  'color': enhance(ImageEnhance.Color),
  'contrast': enhance(ImageEnhance.Contrast),
  'brightness': enhance(ImageEnhance.Brightness),
  'sharpness': enhance(ImageEnhance.Sharpness),
  'shear_x': transform(lambda value, w, h: (1, value, 0, 0, 1, 0), 0, -0.3, 0.1, 0.27),
  'shear_y': transform(lambda value, w, h: (1, 0, 0, value, 1, 0), 0, -0.3, 0.1, 0.27),
  'translate_x': transform(lambda value, w, h: (1, 0, value * w, 0, 1, 0), 0, -0.45, 0.25, 0.411),
  'translate_y': transform(lambda value, w, h: (1, 0, 0, 0, 1, value * h), 0, -0.45, 0.25, 0.411),
}


def test_no_operation_is_left_out():
  assert list(PILLOW) == list(OPERATIONS)


@pytest.mark.parametrize('name', PILLOW)
def test_every_operation_gives_what_pillow_gives(name):
  reference = PILLOW[name]
  images = photographs()
  arguments = [(value,) for value in reference.arguments] or [()]
  axes = (0, *[None] * len(arguments[0]))
  operation = jax.jit(jax.vmap(getattr(operations, name), axes))
  for argument in arguments:
    result = np.asarray(operation(images, *argument))
    assert result.dtype == np.uint8
    pictures = [reference.apply(Image.fromarray(image), *argument) for image in images]
    difference = np.abs(result.astype(int) - np.stack([np.asarray(p) for p in pictures]))
    assert difference.max() <= reference.largest, argument
    assert (difference > 0).mean() <= reference.share, argument
    if argument and argument is arguments[0]:
      np.testing.assert_array_equal(result, images)
