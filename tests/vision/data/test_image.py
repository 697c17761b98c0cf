"""Decoding: every kind of image comes out as what it looks like, and resized as Pillow does it."""

import os

import numpy as np
import pytest
from comparing import assert_refused
from label_lists import encoded
from numpy.testing import assert_array_equal
from PIL import Image

from glora_jax.vision.data import image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 13, 3), np.uint8)


PICTURE = Image.fromarray(PIXELS)
BITS, PALETTE = PICTURE.convert('1'), PICTURE.quantize(16)
ALPHA = np.concatenate([PIXELS, RNG.integers(0, 256, (9, 13, 1), np.uint8)], -1)


@pytest.mark.parametrize(
  'picture, options, expected',
  [
    (PICTURE, {}, PIXELS),
    (Image.fromarray(PIXELS[..., 0]), {}, np.repeat(PIXELS[..., :1], 3, -1)),
    (BITS, {}, BITS.convert('RGB')),
    (PALETTE, {}, PALETTE.convert('RGB')),
    (PALETTE, {'transparency': 3}, PALETTE.convert('RGB')),
    (Image.fromarray(ALPHA), {}, PIXELS),
    (PICTURE.convert('CMYK'), {'format': 'tiff'}, PICTURE),
  ],
  ids=['rgb', 'grey', 'bits', 'palette', 'transparent palette', 'transparent', 'cmyk'],
)
def test_every_kind_of_image_comes_out_as_what_it_looks_like(picture, options, expected):
  assert_array_equal(image.decode(encoded(picture, **options)), expected)


def test_sixteen_bit_grey_keeps_its_upper_bits():
  values = RNG.integers(0, 65536, (5, 6), np.uint16)
  for written, format in ((values, 'png'), (values, 'tiff'), (values.astype(np.int32), 'ppm')):
    for shift in (0, 15):  # also where all are 0 or 1
      found = np.asarray(image.decode(encoded(Image.fromarray(written >> shift), format)))
      assert_array_equal(found, np.repeat((values >> shift >> 8)[..., None], 3, -1))


def test_float_images_between_zero_and_one_are_scaled():
  values = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
  for rounded in (values, values * np.float32(1.000001) - np.float32(1e-7)):
    found = np.asarray(image.decode(encoded(Image.fromarray(rounded), 'tiff')))
    assert_array_equal(found[..., 0], (values * 255).astype(np.uint8))


@pytest.mark.parametrize(
  'orientation, expected',
  [(1, PIXELS), (3, PIXELS[::-1, ::-1]), (6, np.rot90(PIXELS, -1)), (2, PIXELS[:, ::-1])],
)
def test_exif_rotations_are_undone(orientation, expected):
  exif = Image.Exif()
  exif[274] = orientation
  assert_array_equal(image.decode(encoded(Image.fromarray(PIXELS), 'png', exif=exif)), expected)


@pytest.mark.parametrize('format', ['png', 'webp', 'jpeg'])
def test_an_image_with_odd_exif_data_is_taken_as_it_lies(format):
  plain = Image.fromarray(PIXELS)
  odd = encoded(plain, format, exif=b'nonsense')
  assert_array_equal(image.decode(odd), image.decode(encoded(plain, format)))


def test_an_image_file_starts_no_program(tmp_path, monkeypatch):
  """Pillow would start `gs` from the PATH for PostScript, whatever the file is called."""
  (tmp_path / 'gs').write_text(f'#!/bin/sh\ntouch {tmp_path}/started\n')
  (tmp_path / 'gs').chmod(0o755)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
  picture = tmp_path / 'picture.png'
  picture.write_text(
    '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n'
  )
  assert_refused('neither BMP', image.decode, picture, kind=OSError)
  assert not (tmp_path / 'started').exists()


def test_a_thread_of_an_image_is_cropped_without_enlarging_all_of_it():
  for size in ((3, 90_000), (90_000, 3)):
    assert image.resize(Image.new('RGB', size), 224, image.CROP).shape == (224, 224, 3)
