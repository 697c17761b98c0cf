"""The grid of patches that the position embedding of a file was made for."""

from __future__ import annotations

import math
from typing import NamedTuple

from glora_jax.models.metadata import ImageSize, sides
from glora_jax.models.vit import ViT

PUBLISHED_SIZE = 224  # that models with computed positions were published for
MOST_PATCHES = 2**14  # of an image: attention to more takes gigabytes for each image and head


def check_patches(image_size: ImageSize, patch_size: int) -> None:
  """Checks that attention to all patches of an image can be computed, before memory is taken.

  Args:
    image_size: side of the images, or [height, width].
    patch_size: side of a patch.

  Raises:
    ValueError: there are more than `MOST_PATCHES`.
  """
  height, width = sides(image_size)
  patches = (height // patch_size) * (width // patch_size)
  if patches > MOST_PATCHES:
    raise ValueError(
      f'image_size={image_size} makes {patches:,} patches of {patch_size} pixels, of which at most '
      f'{MOST_PATCHES:,} are taken; lower it.'
    )


class Grid(NamedTuple):
  """What a number of position embeddings means.

  Attributes:
    image_size: (height, width) of the images.
    class_pos: whether the class token has a position of its own.
  """

  image_size: tuple[int, int]
  class_pos: bool


def find_grid(
  path: str,
  model: ViT,
  tokens: int | None,
  image_size: ImageSize | None,
  hinted_size: ImageSize | None,
) -> Grid:
  """Finds the grid of the position embedding.

  Args:
    path: path of the file, for the sentences of errors.
    model: the ViT that it holds.
    tokens: number of position embeddings; None where they are computed, which fit any grid.
    image_size: image size that the caller gives.
    hinted_size: image size that `config.json` tells, for where the caller gives none.

  Raises:
    ValueError: the position embeddings do not fit, or there are too many.
  """
  told = image_size or hinted_size
  if told is not None:
    check_patches(told, model.patch_size)
  if tokens is None:
    return Grid(_computed_size(path, model.patch_size, told), class_pos=False)
  if told is None:
    return _square_grid(path, model, tokens)
  height, width = sides(told)
  patch = model.patch_size
  patches = (height // patch) * (width // patch)
  if tokens - patches not in _extra_tokens(model):
    extra = 'and perhaps a class token' if model.class_token else 'and no class token'
    teller = 'image_size' if image_size else 'image_size in the config.json beside it'
    raise ValueError(
      f'{path} has {tokens} position embeddings; images of {height} x {width} in patches of '
      f'{patch} have {patches} patches {extra}. Check {teller}.'
    )
  return Grid((height, width), class_pos=tokens > patches)


def _extra_tokens(model: ViT) -> tuple[int, ...]:
  """How many position embeddings there may be beside those of the patches, the likelier first."""
  return (1, 0) if model.class_token else (0,)


def _computed_size(path: str, patch: int, told: ImageSize | None) -> tuple[int, int]:
  if told is None:
    side = PUBLISHED_SIZE // patch * patch
    return side, side
  height, width = sides(told)
  if height != width:
    raise ValueError(
      f'{path} has computed positions, which are supported for square images; '
      f'image_size is {height} x {width}.'
    )
  return height, width


def _square_grid(path: str, model: ViT, tokens: int) -> Grid:
  for extra in _extra_tokens(model):
    side = math.isqrt(max(tokens - extra, 0))
    if side and side * side + extra == tokens:
      pixels = side * model.patch_size
      return Grid((pixels, pixels), class_pos=bool(extra))
  token = 'with or without a class token' if model.class_token else 'without a class token'
  raise ValueError(
    f'{path}: {tokens} position embeddings fit no square grid {token}; '
    'give weights.load their image_size, (height, width).'
  )
