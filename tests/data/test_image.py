"""Decoding: every kind of image comes out as what it looks like, and resized as Pillow does it."""

import io

import numpy as np
import pytest
from PIL import Image

from glora_jax.data import image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 13, 3), np.uint8)


def encoded(picture, format='png', **options):
  buffer = io.BytesIO()
  picture.save(buffer, format, **options)
  return buffer.getvalue()


def test_rgb_is_left_alone():
  np.testing.assert_array_equal(image.decode(encoded(Image.fromarray(PIXELS))), PIXELS)


def test_grey_is_three_times_grey():
  grey = PIXELS[..., 0]
  np.testing.assert_array_equal(
    image.decode(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, -1)
  )


def test_one_bit_is_black_and_white():
  bits = Image.fromarray(PIXELS[..., 0]).convert('1')
  np.testing.assert_array_equal(np.unique(image.decode(encoded(bits))), [0, 255])


@pytest.mark.parametrize('transparent', [False, True])
def test_palettes_are_looked_up(transparent):
  palette = Image.fromarray(PIXELS).quantize(16)
  options = {'transparency': 3} if transparent else {}
  np.testing.assert_array_equal(image.decode(encoded(palette, **options)), palette.convert('RGB'))


def test_transparency_is_dropped_as_convert_does():
  rgba = np.concatenate([PIXELS, RNG.integers(0, 256, (9, 13, 1), np.uint8)], -1)
  np.testing.assert_array_equal(image.decode(encoded(Image.fromarray(rgba))), PIXELS)


def test_cmyk_is_converted():
  cmyk = Image.fromarray(np.full((16, 16, 3), (200, 30, 60), np.uint8)).convert('CMYK')
  found = np.asarray(image.decode(encoded(cmyk, 'jpeg', quality=95)))
  assert np.abs(found.astype(int) - (200, 30, 60)).max() < 12


@pytest.mark.parametrize('format', ['png', 'tiff'])
def test_sixteen_bit_grey_keeps_its_upper_bits(format):
  values = RNG.integers(0, 65536, (5, 6), np.uint16)
  values[0, 0] = 65535
  expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1)
  np.testing.assert_array_equal(image.decode(encoded(Image.fromarray(values), format)), expected)


def test_float_images_between_zero_and_one_are_scaled():
  values = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
  found = np.asarray(image.decode(encoded(Image.fromarray(values), 'tiff')))
  np.testing.assert_array_equal(found[..., 0], (values * 255).astype(np.uint8))


@pytest.mark.parametrize(
  'orientation, expected',
  [(1, PIXELS), (3, PIXELS[::-1, ::-1]), (6, np.rot90(PIXELS, -1)), (2, PIXELS[:, ::-1])],
)
def test_exif_rotations_are_undone(orientation, expected):
  exif = Image.Exif()
  exif[274] = orientation
  np.testing.assert_array_equal(
    image.decode(encoded(Image.fromarray(PIXELS), 'png', exif=exif)), expected
  )


def test_resizing_is_pillows_within_one_level():
  picture = Image.fromarray(PIXELS)
  ours = image.resize(picture, 7).astype(int)
  assert np.abs(ours - np.asarray(picture.resize((7, 7), Image.Resampling.BICUBIC))).max() <= 1


def test_cropping_keeps_the_aspect_ratio_and_the_middle():
  wide = np.zeros((100, 300, 3), np.uint8)
  wide[:, 100:200] = 255
  cropped = image.resize(Image.fromarray(wide), 64, 'crop')
  assert cropped.shape == (64, 64, 3)
  assert (cropped == 255).all()
  picture = Image.fromarray(RNG.integers(0, 256, (100, 150, 3), np.uint8))
  # As torchvision's Resize and CenterCrop.
  reference = picture.resize((109, 73), Image.Resampling.BICUBIC).crop((22, 4, 86, 68))
  np.testing.assert_array_equal(image.resize(picture, 64, 'crop'), reference)
  with pytest.raises(ValueError, match='squash, crop'):
    image.resize(picture, 64, 'fill')


@pytest.mark.parametrize(
  'content', [b'', b'no image', encoded(Image.fromarray(PIXELS.repeat(20, 0)), 'jpeg')[:200]]
)
def test_what_cannot_be_decoded_is_one_kind_of_error(content):
  with pytest.raises(OSError, match='not a readable image'):
    image.decode(content)
