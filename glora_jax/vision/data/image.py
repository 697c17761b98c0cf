"""The only place that reads image files: finds and opens them with Pillow, each as a uint8 array.

The content of a file decides its format, never its name, and only the decoders of `FORMATS` may
read it: one of Pillow's others starts a program (Ghostscript, for PostScript).
"""

from __future__ import annotations

import io
import logging
import os
import typing
from typing import Literal, NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from glora_jax.checks import listed
from glora_jax.files import open_regular

log = logging.getLogger(__name__)

ResizeRule = Literal['squash', 'crop']
RULES: tuple[ResizeRule, ...] = typing.get_args(ResizeRule)
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # as Pillow calls them
EXTENSIONS = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.webp'),
  *('.tif', '.tiff', '.ppm', '.pgm'),
)
MOST_PIXELS = 178_956_970  # Pillow's own limit, which a program may have lifted
MOST_BYTES = 2**30  # of a file; some decoders read all of it first
ROUNDING = 1e-3  # by which fractions may be beyond black and white
CROP = 0.875  # share of the shorter side that 'crop' keeps, as in most ImageNet evaluations


def decode(encoded: bytes | str, *, draft: bool = False) -> Image.Image:
  """Opens an image as 8-bit RGB the right way up (see `to_rgb`).

  All image files are opened here. They must be regular files of the formats in `FORMATS`, within
  the limits `MOST_BYTES` and `MOST_PIXELS`; no other part of Pillow reads their bytes.

  Args:
    encoded: the bytes of an image file, or its path.
    draft: whether a JPEG may be decoded at a smaller size, which is much faster: enough to check
      that it can be decoded.

  Raises:
    OSError: it cannot be decoded, is cut off, of another format, or too large.

  Example:
    >>> file = io.BytesIO()
    >>> Image.new('L', (4, 2), color=7).save(file, 'png')
    >>> picture = decode(file.getvalue())
    >>> picture.size, picture.getpixel((0, 0))
    ((4, 2), (7, 7, 7))
  """
  content = encoded if isinstance(encoded, bytes) else read(encoded)
  try:
    with _identify(content) as picture:
      if draft:
        picture.draft('RGB', (1, 1))
      picture.load()
      upright = _upright(picture)
  # On damaged files Pillow's plugins raise errors of any kind.
  except Exception as error:
    raise _unreadable(error) from error
  return to_rgb(upright, picture.format)


def read(path: str) -> bytes:
  """The bytes of an image file.

  Raises:
    OSError: it cannot be read, or is too large.
  """
  try:
    with open_regular(path) as file:
      _require_size(os.fstat(file.fileno()).st_size)
      return file.read()
  except OSError as error:
    raise _unreadable(error) from error


def _unreadable(error: Exception) -> OSError:
  """An error without paths and addresses of our buffers, which differ from run to run."""
  reason = str(error).partition(' <_io')[0] or type(error).__name__
  if isinstance(error, OSError) and error.strerror:
    reason = error.strerror
  return OSError(f'not a readable image ({reason})')


def _require_size(size: int) -> None:
  if size > MOST_BYTES:
    raise OSError(f'{size:,} bytes; the limit is {MOST_BYTES:,}')


def _identify(content: bytes) -> Image.Image:
  """The image in the bytes of a file, not yet decoded.

  Raises:
    OSError: it is too long, of an unknown format or kind of one, or too large.
  """
  _require_size(len(content))
  try:
    picture = Image.open(io.BytesIO(content), formats=FORMATS)
  except UnidentifiedImageError as error:
    known = f'neither {", ".join(FORMATS[:-1])} nor {FORMATS[-1]}, or damaged'
    raise OSError(known if content else 'an empty file') from error
  width, height = picture.size
  if not 0 < width * height <= MOST_PIXELS:
    raise OSError(f'{width} x {height} pixels; the limit is {MOST_PIXELS:,}')
  return picture


def _upright(picture: Image.Image) -> Image.Image:
  """A decoded image, turned according to its EXIF data if these can be read."""
  try:
    return ImageOps.exif_transpose(picture)
  except Exception:  # of any kind; the image itself has been decoded
    return picture.copy()


def to_rgb(picture: Image.Image, format: str | None) -> Image.Image:
  """An upright Pillow image as 8-bit RGB.

  Gray and palette images keep their look. Transparency is dropped, as `convert('RGB')` and most
  data loaders do. CMYK is converted. 16-bit gray keeps its upper eight bits, as Pillow does with
  16-bit colors; for gray it would clip to white.

  Args:
    picture: the image.
    format: format of its file, as Pillow calls it.

  Raises:
    OSError: its colors cannot be converted to RGB; or its gray values are integers of 32 bits, not
      finite, or fractions beyond 0 to 255.
  """
  mode = picture.mode
  # Some versions of Pillow have the 16 bits of a PNG in mode I, as all have those of a PGM.
  if mode.startswith('I;16') or (mode == 'I' and format in ('PNG', 'PPM')):
    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
  elif mode == 'I':
    raise OSError(
      'not a readable image (integers of mode I have no defined white; save it with 8 or 16 bits)'
    )
  elif mode == 'F':
    picture = Image.fromarray(_to_eight_bits(np.asarray(picture)))
  try:
    return picture.convert('RGB')
  except ValueError as error:
    raise OSError(f'not a readable image (unsupported color mode {mode})') from error


def _to_eight_bits(grey: np.ndarray) -> np.ndarray:
  """Gray values as fractions of [0, 1] or [0, 255] to uint8."""
  if not np.isfinite(grey).all():
    raise OSError('not a readable image (gray values that are not finite)')
  lowest, highest = grey.min(initial=0), grey.max(initial=0)
  # Values below 2 out of 255 would be black, so these are values out of 1, or a little beyond.
  if lowest < -ROUNDING or highest > 255 + ROUNDING or 1 + ROUNDING < highest < 2:
    raise OSError(
      f'not a readable image (gray values from {lowest:g} to {highest:g}; fractions must be from 0 '
      'to 1, or from 0 to 255)'
    )
  return np.clip(grey * (255 if highest < 2 else 1), 0, 255).astype(np.uint8)


def resize(picture: Image.Image, size: int, share: float | None = None) -> np.ndarray:
  """A picture as a square array, resized bicubically as Pillow does it.

  Args:
    picture: RGB image.
    size: side of the square.
    share: share of the shorter side to keep: that side is scaled to `size / share`, and the middle
      is kept, as most code does on ImageNet. None ignores the aspect ratio, as the official GLoRA
      code does on VTAB.

  Returns:
    uint8 [size, size, 3].

  Example:
    >>> resize(Image.new('RGB', (300, 200)), size=64, share=CROP).shape
    (64, 64, 3)
  """
  bicubic = Image.Resampling.BICUBIC
  if share is None:
    return np.asarray(picture.resize((size, size), bicubic))
  short_side = round(size / share)
  width, height = (short_side * side // min(picture.size) for side in picture.size)
  left, top = round((width - size) / 2), round((height - size) / 2)
  box = (left, top, left + size, top + size)
  if width * height <= MOST_PIXELS:
    return np.asarray(picture.resize((width, height), bicubic).crop(box))
  scale = min(picture.size) / short_side  # a thread of an image: its middle alone is enlarged
  left, top, right, bottom = (scale * x for x in box)
  return np.asarray(picture.resize((size, size), bicubic, (left, top, right, bottom)))


def is_image(path: str) -> bool:
  """Whether a file is an image, by its extension."""
  return path.lower().endswith(EXTENSIONS)


def files_below(folder: str) -> list[str]:
  """The paths of all files below a folder.

  They are sorted by name, those of a folder before those of its subfolders; names that begin with a
  dot are left out. Links to folders, which may lead back, are not followed; a warning names them.

  Raises:
    OSError: a folder cannot be listed.
  """
  files, links = [], []
  for parent, folders, names in os.walk(folder, onerror=raise_listing_error):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    links += filter(os.path.islink, (os.path.join(parent, name) for name in folders))
    files += [os.path.join(parent, name) for name in sorted(names) if not name.startswith('.')]
  if links:
    log.warning('Links to folders are not followed: %s.', listed(links))
  return files


def raise_listing_error(error: OSError) -> NoReturn:
  """Raises OSError for a folder that `os.walk` cannot list."""
  raise OSError(f'The folder {error.filename} cannot be listed ({error.strerror}).') from error


def from_array(image: np.ndarray) -> Image.Image:
  """An RGB image of uint8 [height, width], [height, width, 1] or [height, width, 3]."""
  is_grey = image.ndim == 3 and image.shape[-1] == 1
  return Image.fromarray(image[..., 0] if is_grey else image).convert('RGB')
