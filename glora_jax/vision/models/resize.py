"""Grids of patches: found in a file or resized, and patch embeddings of another size."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.vision.models.vit import ImageSize, ViT, sides

Interpolation = Literal['bicubic_antialias', 'bicubic', 'linear_corners']
PUBLISHED_SIZE = 224  # of published models with computed positions
MOST_PATCHES = 2**14  # of an image: attention to more needs gigabytes for each image and head


def resize_pos_embed(
  pos_embed: np.ndarray, old: tuple[int, int], new: tuple[int, int], interpolation: Interpolation
) -> np.ndarray:
  """Interpolates the position embedding of a grid of patches for another grid.

  Args:
    pos_embed: position embedding, [1, tokens, width]; tokens is `old[0] * old[1]`, or one more with
      a class token, whose position comes first and stays.
    old: (rows, columns) of its grid.
    new: (rows, columns) of the new grid.
    interpolation: convention of the code base that the weights come from. 'bicubic_antialias' is
      timm's and PIL's: Keys' kernel with a = -1/2, widened when shrinking. 'bicubic' is DINOv2's
      and Hugging Face's: a = -3/4, the border repeated, no widening
      (`torch.nn.functional.interpolate` without antialiasing). 'linear_corners' is
      vision_transformer's and big_vision's: linear, with aligned corners (`scipy.ndimage.zoom` of
      order 1).

  Returns:
    Position embedding, [1, new tokens, width], in the type of `pos_embed`.

  Raises:
    ValueError: the number of tokens fits the old grid neither with nor without a class token.

  Example:
    >>> ramp = np.array([[[0.0], [2.0]]])
    >>> resize_pos_embed(ramp, (1, 2), (1, 3), 'linear_corners').tolist()
    [[[0.0], [1.0], [2.0]]]
  """
  _, tokens, width = pos_embed.shape
  patches = old[0] * old[1]
  class_tokens = tokens - patches
  if class_tokens not in (0, 1):
    raise ValueError(
      f'The position embedding has {tokens} tokens; a grid of {old[0]} x {old[1]} patches needs '
      f'{patches}, or one more with a class token. Correct the grid.'
    )
  if old == new:
    return pos_embed
  grid = np.asarray(pos_embed[0, class_tokens:], np.float32).reshape(*old, width)
  if interpolation == 'bicubic_antialias':
    resized = np.asarray(_resize_cubic(grid, (*new, width)))
  elif interpolation == 'bicubic':
    rows, columns = (_bicubic_weights(*sizes) for sizes in zip(old, new, strict=True))
    resized = np.einsum('yh,xw,hwc->yxc', rows, columns, grid, optimize=True)
  else:
    import scipy.ndimage  # a third of a second, which most programs save

    factors = (new[0] / old[0], new[1] / old[1], 1)
    resized = scipy.ndimage.zoom(grid, factors, order=1)
  class_pos = pos_embed[:, :class_tokens]
  return np.concatenate([class_pos, resized.reshape(1, -1, width).astype(pos_embed.dtype)], axis=1)


def _resize_cubic(array: np.ndarray | jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.image.resize(
    array, shape, 'cubic', antialias=True, precision=jax.lax.Precision.HIGHEST
  )


def _bicubic_weights(old: int, new: int) -> np.ndarray:
  """Weights of bicubic interpolation between pixel centers, as in PyTorch.

  The kernel is that of Keys with a = -3/4, the border is repeated.

  Returns:
    Weights of the old pixels for each new one, [new, old].
  """
  a = -0.75
  center = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(center).astype(int) - 1
  weights = np.zeros((new, old))
  for tap in range(4):
    distance = np.abs(center - (first + tap))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    pixels = np.clip(first + tap, 0, old - 1)
    np.add.at(weights, (np.arange(new), pixels), np.where(distance <= 1, near, far))
  return weights


def resize_patch_embed(kernel: np.ndarray, size: int) -> np.ndarray:
  """Patch embeddings for another patch size (FlexiViT, arXiv 2212.08013, section 3.4).

  The new kernel is the pseudo-inverse of resizing times the old one, so that its outputs for an
  enlarged patch are those of the old kernel for the patch. Resizing the kernel would scale them.

  Args:
    kernel: kernel of the patch embedding, [patch, patch, channels, width].
    size: the new patch size.

  Returns:
    Kernel, [size, size, channels, width], in the type of `kernel`.
  """
  old = kernel.shape[0]
  if size == old:
    return kernel
  pixels = jnp.eye(old * old, dtype=jnp.float32).reshape(old, old, old * old)
  # Each column of [size * size, old * old] is one pixel of the old patch, resized.
  enlarge = np.asarray(_resize_cubic(pixels, (size, size, old * old)), np.float64)
  inverse = np.linalg.pinv(enlarge.reshape(size * size, old * old).T)
  flat = np.asarray(kernel, np.float64).reshape(old * old, -1)
  return (inverse @ flat).reshape(size, size, *kernel.shape[2:]).astype(kernel.dtype)


def check_patches(image_size: ImageSize, patch_size: int) -> None:
  """Checks that attention to all patches of an image can be computed, before memory is reserved.

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
      f'image_size={image_size} makes {patches:,} patches of {patch_size} pixels, but at most '
      f'{MOST_PATCHES:,} are supported; lower it.'
    )


def find_grid(
  path: str, model: ViT, tokens: int | None, image_size: ImageSize | None
) -> tuple[tuple[int, int], bool]:
  """Finds the grid of the position embedding.

  Args:
    path: path of the file, for error messages.
    model: its ViT.
    tokens: number of position embeddings; None if they are computed, for any grid.
    image_size: image size from the caller or `config.json`.

  Returns:
    ((height, width) of the images, whether the class token has a position).

  Raises:
    ValueError: the position embeddings do not fit, or there are too many.
  """
  patch = model.patch_size
  extra_tokens = (1, 0) if model.class_token else (0,)  # in addition to patches, the likelier first
  if image_size is None and tokens is not None:
    for extra in extra_tokens:
      side = math.isqrt(max(tokens - extra, 0))
      if side and side * side + extra == tokens:
        return (side * patch, side * patch), bool(extra)
    raise ValueError(
      f'{path}: {tokens} position embeddings do not fit a square grid; pass weights.load their '
      'image_size, (height, width).'
    )
  if image_size is None:
    image_size = PUBLISHED_SIZE // patch * patch
  check_patches(image_size, patch)
  height, width = sides(image_size)
  if tokens is None:
    if height != width:
      raise ValueError(
        f'{path} has computed positions, which are supported for square images; '
        f'image_size is {height} x {width}.'
      )
    return (height, width), False
  patches = (height // patch) * (width // patch)
  if tokens - patches not in extra_tokens:
    raise ValueError(
      f'{path} has {tokens} position embeddings; images of {height} x {width} in patches of '
      f'{patch} have {patches} patches, and perhaps a class token. Check image_size, or that of '
      'the config.json next to it.'
    )
  return (height, width), tokens > patches
