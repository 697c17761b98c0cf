"""What is known of a checkpoint besides its tensors: sizes of images, their normalization, JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from glora_jax.data.image import CROP
from glora_jax.data.normalization import NORMALIZATIONS, Normalization
from glora_jax.files import Path, load_json

OURS = 'glora_jax'  # this project's own format, and the key of what it adds to other people's files

Metadata = dict[str, Any]
"""Facts of a checkpoint by name.

'image_size': side of the images, `[height, width]` where they are not square.
'normalization': see `data.normalization.statistics`.
'resize': how images become square, see `data.image.resize`.
'crop': share of the shorter side that the rule 'crop' keeps, where it is not `data.image.CROP`.
'classes': names of the classes, in the order of the head's outputs.
'source': the `translate.Origin` of a foreign file; never written.
"""

ImageSize = int | Sequence[int]


def sides(image_size: ImageSize) -> tuple[int, int]:
  """(height, width) of an image size."""
  if isinstance(image_size, int):
    return image_size, image_size
  height, width = image_size
  return height, width


def shortest(height: int, width: int) -> int | list[int]:
  """An image size as metadata has it: one number where the image is square."""
  return height if height == width else [height, width]


def share_of(size: int, short_side: int) -> float | None:
  """The share of an image's shorter side that is kept; None where it is that of the rule 'crop'."""
  return None if short_side == round(size / CROP) else size / short_side


def normalization_of(
  mean: Sequence[float], deviation: Sequence[float]
) -> Normalization | tuple[list[float], list[float]]:
  """The name of a normalization, or mean and deviation themselves where it has none."""
  given = list(mean), list(deviation)
  for name, known in NORMALIZATIONS.items():
    if np.allclose(known, given, atol=2e-3):
      return name
  return given


def require_normalization(
  path: Path, normalization: Normalization | None, setting: str
) -> Normalization:
  """The normalization of a checkpoint's images; our own format may be written without one.

  Args:
    path: path of the checkpoint.
    normalization: what the checkpoint or its user says; None where neither does.
    setting: name by which the user gives it.

  Raises:
    ValueError: neither says it.
  """
  if normalization is None:
    raise ValueError(
      f'{path} does not say how images are normalized; give {setting}, one of '
      f'{", ".join(NORMALIZATIONS)}.'
    )
  return normalization


def read_json(path: Path) -> Any:
  """The contents of a JSON file beside a checkpoint; None where there is no such file.

  Raises:
    OSError: it cannot be read, or is no regular file.
    ValueError: it is damaged.
  """
  if not os.path.exists(path):
    return None
  return load_json(path, 'get it again, or take it away')
