"""One encoded image to one uint8 array: decoding, colour, orientation, size; all by Pillow."""

from __future__ import annotations

import io
import os
import typing
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

ResizeRule = Literal['squash', 'crop']
RULES: tuple[ResizeRule, ...] = typing.get_args(ResizeRule)
CROP = 0.875  # share of the shorter side that 'crop' keeps, as in most ImageNet evaluations


def decode(encoded: bytes | str | os.PathLike | BinaryIO) -> Image.Image:
  """Opens an image as 8-bit RGB the right way up (see `to_rgb`).

  Args:
    encoded: the bytes of an image file, its path, or the open file.

  Raises:
    OSError: it cannot be decoded, or is cut off.

  Example:
    >>> file = io.BytesIO()
    >>> Image.new('L', (4, 2), color=7).save(file, 'png')
    >>> picture = decode(file.getvalue())
    >>> picture.size, picture.getpixel((0, 0))
    ((4, 2), (7, 7, 7))
  """
  source = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
  try:
    with Image.open(source) as picture:
      return to_rgb(picture)
  # Pillow's plugins raise all of these.
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, EOFError) as error:
    # The address of our buffer says nothing, and differs from run to run.
    reason = str(error).partition(' <_io')[0]
    raise OSError(f'not a readable image ({reason})') from error


def to_rgb(picture: Image.Image) -> Image.Image:
  """Any Pillow image as 8-bit RGB, turned as its EXIF orientation says.

  Grey and palette images become what they look like; transparency is dropped, as `convert('RGB')`
  and with it the data loaders of the field do; CMYK is converted; 16-bit grey keeps its upper eight
  bits, where Pillow alone would clip it to white.
  """
  picture = ImageOps.exif_transpose(picture)
  if picture.mode.startswith(('I', 'F')):
    picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
  return picture.convert('RGB')


def _to_eight_bits(grey: np.ndarray) -> np.ndarray:
  """Grey values to uint8: floats from [0, 1] or [0, 255], whole numbers of 8 or of 16 bits."""
  highest = grey.max(initial=0)
  if np.issubdtype(grey.dtype, np.floating):
    grey = grey * (255 if highest <= 1 else 1)
  elif highest > 255:
    grey = grey >> 8
  return np.clip(grey, 0, 255).astype(np.uint8)


def resize(picture: Image.Image, size: int, rule: ResizeRule = 'squash') -> np.ndarray:
  """A picture as a square array, resized bicubically as Pillow does it.

  Args:
    picture: RGB image.
    size: side of the square.
    rule: 'squash' ignores the aspect ratio, as the official GLoRA code does on VTAB; 'crop' scales
      the shorter side to `size / 0.875` and takes the middle, as most code does on ImageNet.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: the rule is unknown.

  Example:
    >>> resize(Image.new('RGB', (300, 200)), size=64, rule='crop').shape
    (64, 64, 3)
  """
  if rule not in RULES:
    raise ValueError(f"The resize rule '{rule}' is unknown; it is one of {', '.join(RULES)}.")
  if rule == 'squash':
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
  short_side = round(size / CROP)
  width, height = (short_side * side // min(picture.size) for side in picture.size)
  left = round((width - size) / 2)
  top = round((height - size) / 2)
  larger = picture.resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(larger.crop((left, top, left + size, top + size)))


def from_array(image: np.ndarray) -> Image.Image:
  """An RGB image of uint8 [height, width], [height, width, 1] or [height, width, 3]."""
  is_grey = image.ndim == 3 and image.shape[-1] == 1
  return Image.fromarray(image[..., 0] if is_grey else image).convert('RGB')
