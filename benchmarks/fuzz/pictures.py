"""Image files of all formats, most of them damaged."""

import functools
import io
import os
import random
from typing import Any

import numpy as np
from PIL import Image, features

from benchmarks.fuzz.oracle import Case, Fault
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import damaged
from glora_jax.data import image

FORMATS = tuple(
  name for name in (*image.FORMATS, 'MPO') if name != 'WEBP' or features.check('webp')
)
FOREIGN = ('EPS', 'PDF', 'ICO', 'TGA', 'DDS', 'PCX', 'SGI')  # that no decoder may look at
MODES = ('RGB', 'L', '1', 'P', 'RGBA', 'CMYK', 'I;16', 'F', 'I', 'LA', 'LAB', 'YCbCr')


def _png() -> bytes:
  file = io.BytesIO()
  Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, 'PNG')
  return file.getvalue()


PNG = _png()


def encoded(rng: random.Random) -> bytes:
  """An image file of any size from 1 to 40, mode and format."""
  generator = np.random.default_rng(rng.randrange(10**6))
  height, width = generator.integers(1, 40, 2)
  picture = Image.fromarray(generator.integers(0, 256, (height, width, 3)).astype(np.uint8))
  format, mode = rng.choice(FORMATS), rng.choice(MODES)
  if rng.random() < 0.05:
    format = rng.choice(FOREIGN)
  file = io.BytesIO()
  try:
    if mode == 'I;16':
      array = generator.integers(0, 65536, (height, width)).astype(np.uint16)
      Image.fromarray(array).save(file, format)
    else:
      picture.convert('L' if mode in ('I', 'F') else 'RGB').convert(mode).save(file, format)
  except (OSError, ValueError, KeyError):  # not every format has every mode
    file = io.BytesIO()
    picture.save(file, 'JPEG' if format == 'MPO' else 'PNG')
  return file.getvalue()


def decoded(rng: random.Random, place: Place) -> Case:
  """An image decoded and made square."""
  content = encoded(rng)
  if rng.random() < 0.8:
    content = damaged(rng, content)
  path = place.write(f'image{rng.choice(image.EXTENSIONS)}', content=content)
  size, rule = rng.choice([1, 8, 32]), rng.choice(image.RULES)
  square = functools.partial(_square, size=size, rule=rule)

  link = os.path.join(place.given, 'link.png')
  os.symlink(path, link)

  def check(pixels: np.ndarray) -> None:
    if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
      raise Fault(f'{pixels.dtype} {pixels.shape} in place of uint8 {size, size, 3}')
    if not any(content.startswith(start) for start in _STARTS):
      raise Fault(f'decoded, and it begins with {content[:12]!r}')
    try:
      image.decode(content, draft=True)
    except OSError as error:
      raise Fault(f'decoded, and as a draft it cannot be ({error})') from error

  alike = {'its bytes': functools.partial(square, content)}
  alike['through a link'] = functools.partial(square, link)
  return Case(f'image {content[:60]!r}', functools.partial(square, path), check, alike)


def _square(file: Any, size: int, rule: image.ResizeRule) -> np.ndarray:
  return image.resize(image.decode(file), size, rule)


_STARTS = (b'BM', b'GIF8', b'\xff\xd8', b'\x89PNG', b'P', b'II', b'MM', b'RIFF')
