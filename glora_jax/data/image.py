"""One encoded image to one uint8 array: decoding, colour, orientation, size; all by Pillow."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

RULES = ('squash', 'crop')
CROP = 0.875  # share of the shorter side that 'crop' keeps, as in most ImageNet evaluations


def decode(encoded: bytes | str | os.PathLike | Any) -> Image.Image:
  """Opens an image, from its bytes, its path or an open file, as 8-bit RGB the right way up (`to_rgb`).

  Raises:
    OSError: it cannot be decoded, or is cut off.
  """
  source = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
  try:
    with Image.open(source) as picture:
      return to_rgb(picture)
  except (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    EOFError,
  ) as error:  # Pillow's plugins raise all of these
    reason = str(error).partition(' <_io')[
      0
    ]  # the address of our buffer says nothing, and differs from run to run
    raise OSError(f'not a readable image ({reason})') from error


def to_rgb(picture: Image.Image) -> Image.Image:
  """Any Pillow image as 8-bit RGB, turned as its EXIF orientation says.

  Grey and palette images become what they look like; transparency is dropped, as `convert('RGB')` and with it the data loaders
  of the field do; CMYK is converted; 16-bit grey keeps its upper eight bits, where Pillow alone would clip it to white.
  """
  picture = ImageOps.exif_transpose(picture)
  if picture.mode.startswith(('I', 'F')):
    values = np.asarray(picture)
    if picture.mode == 'F':
      values = values * (255 if values.max(initial=0) <= 1 else 1)
    else:
      values = values >> 8 if values.max(initial=0) > 255 else values
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
  return picture.convert('RGB')


def resize(picture: Image.Image, size: int, rule: str = 'squash') -> np.ndarray:
  """RGB uint8 [size, size, 3], bicubic as Pillow does it.

  Args:
    picture: RGB.
    size: side of the square.
    rule: 'squash' ignores the aspect ratio, as the official GLoRA code does on VTAB; 'crop' scales the shorter side to `size / 0.875`
      and takes the middle, as most code does on ImageNet.

  Raises:
    ValueError: an unknown rule.
  """
  if rule not in RULES:
    raise ValueError(f"The resize rule '{rule}' is unknown; it is one of {', '.join(RULES)}.")
  if rule == 'squash':
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
  width, height = picture.size
  short = round(size / CROP)
  larger = [short * side // min(width, height) for side in (width, height)]
  left, top = (round((side - size) / 2) for side in larger)
  return np.asarray(
    picture.resize(larger, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
  )


def from_array(image: np.ndarray) -> Image.Image:
  """uint8 [height, width], [height, width, 1] or [height, width, 3] as an RGB image."""
  return Image.fromarray(
    image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
  ).convert('RGB')
