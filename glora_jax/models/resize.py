"""Position embeddings for another grid, patch embeddings for another patch size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

INTERPOLATIONS = ('bicubic_antialias', 'bicubic', 'linear_corners')


def resize_pos_embed(
  pos_embed: np.ndarray, old: tuple[int, int], new: tuple[int, int], interpolation: str
) -> np.ndarray:
  """Position embeddings of one grid of patches, interpolated for another.

  Args:
    pos_embed: [1, tokens, width]; tokens is `old[0] * old[1]`, one more with a class token, whose entry comes first and stays.
    old, new: (rows, columns) of the grids.
    interpolation: the convention of the code base that the weights come from. 'bicubic_antialias': timm's and PIL's, Keys' kernel
      with a = -1/2, widened when shrinking. 'bicubic': DINOv2's and Hugging Face's, a = -3/4, the border repeated, no widening
      (`torch.nn.functional.interpolate` without antialiasing). 'linear_corners': vision_transformer's and big_vision's, linear
      with corner on corner (`scipy.ndimage.zoom` of order 1).

  Returns:
    [1, new tokens, width], in the type of `pos_embed`.

  Raises:
    ValueError: the number of tokens fits the old grid neither with nor without a class token.
  """
  _, tokens, width = pos_embed.shape
  extra = tokens - old[0] * old[1]
  if extra not in (0, 1):
    raise ValueError(
      f'The position embedding has {tokens} tokens; a grid of {old[0]} x {old[1]} patches needs {old[0] * old[1]}, '
      'or one more with a class token. Say which grid it has.'
    )
  if interpolation not in INTERPOLATIONS:
    raise ValueError(
      f"interpolation='{interpolation}' is unknown; it is one of {', '.join(INTERPOLATIONS)}."
    )
  if old == new:
    return pos_embed
  grid = np.asarray(pos_embed[0, extra:], np.float32).reshape(*old, width)
  if interpolation == 'bicubic_antialias':
    grid = np.asarray(
      jax.image.resize(
        grid, (*new, width), 'cubic', antialias=True, precision=jax.lax.Precision.HIGHEST
      )
    )
  elif interpolation == 'bicubic':
    grid = np.einsum(
      'yh,xw,hwc->yxc', _bicubic(old[0], new[0]), _bicubic(old[1], new[1]), grid, optimize=True
    )
  else:
    grid = scipy.ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
  return np.concatenate(
    [pos_embed[:, :extra], grid.reshape(1, -1, width).astype(pos_embed.dtype)], axis=1
  )


def _bicubic(old: int, new: int) -> np.ndarray:
  """[new, old] weights of bicubic interpolation with a = -3/4 between pixel centers, the border repeated (PyTorch's)."""
  a = -0.75
  center = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(center).astype(int) - 1
  weights = np.zeros((new, old))
  for tap in range(4):
    distance = np.abs(center - (first + tap))
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    np.add.at(
      weights,
      (np.arange(new), np.clip(first + tap, 0, old - 1)),
      np.where(distance <= 1, near, far),
    )
  return weights


def resize_patch_embed(kernel: np.ndarray, size: int) -> np.ndarray:
  """Patch embeddings for another patch size, by the pseudo-inverse of resizing (FlexiViT, arXiv 2212.08013, section 3.4).

  What it embeds an enlarged patch as is what the old kernel embeds the patch as; a plain resize of the kernel would scale it.

  Args:
    kernel: [patch, patch, channels, width].
    size: the new patch size.

  Returns:
    [size, size, channels, width], in the type of `kernel`.
  """
  old = kernel.shape[0]
  if size == old:
    return kernel
  # Each column of `enlarge`, [size * size, old * old], is one pixel of the old patch, resized.
  pixels = jnp.eye(old * old, dtype=jnp.float32).reshape(old, old, old * old)
  enlarge = jax.image.resize(
    pixels, (size, size, old * old), 'cubic', antialias=True, precision=jax.lax.Precision.HIGHEST
  )
  inverse = np.linalg.pinv(np.asarray(enlarge, np.float64).reshape(size * size, old * old).T)
  flat = np.asarray(kernel, np.float64).reshape(old * old, -1)
  return (inverse @ flat).reshape(size, size, *kernel.shape[2:]).astype(kernel.dtype)
