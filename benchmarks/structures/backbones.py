"""The backbones on which structures are compared, and the images as they see them."""

import os
from typing import Any, NamedTuple

import jax.image
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery import embedded_task
from glora_jax.data.pipeline import Split
from glora_jax.models import weights

EMBEDDED, VIT_S = 'embedded', 'vit_s'
SIDES = {EMBEDDED: embedded_task.IMAGE_SIZE, VIT_S: 56}  # pixels
FOLDERS = {EMBEDDED: weights.EMBEDDED_FILE, VIT_S: os.path.join('runs', 'transfer', 'vit_s')}
ALL_RANKS = tuple(range(1, 17))  # 16 of LoRA on qkv at 36,864 parameters

Ranks = tuple[int, ...]


class Model(NamedTuple):
  """What a program is compiled for.

  Attributes:
    num_classes: of its head.
    ranks: that are on offer.
    backbone: name.
  """

  num_classes: int
  ranks: Ranks = ALL_RANKS
  backbone: str = EMBEDDED


def load(name: str, num_classes: int) -> tuple[Any, Any, dict[str, Any]]:
  """Model, parameters and metadata of a backbone with a new head; see `weights.refit`.

  Raises:
    FileNotFoundError: the ViT-S was not prepared; the sentence says how.
  """
  if not os.path.exists(FOLDERS[name]):
    raise FileNotFoundError(
      f'There is no {FOLDERS[name]}; python -m benchmarks.transfer prepare --blocks 12 makes it.'
    )
  return weights.refit(
    *weights.load(FOLDERS[name]), num_classes=num_classes, image_size=SIDES[name]
  )


def as_seen_by(name: str, split: Split) -> Split:
  """Images on the device, as large as a backbone wants them, uint8 [n, side, side, 3]."""
  images, labels = embedded_task.on_device(split)
  number, height, _, channels = images.shape
  side = SIDES[name]
  if height != side:
    size = (number, side, side, channels)
    images = jax.image.resize(images.astype(jnp.float32), size, 'linear')
    images = jnp.clip(jnp.round(images), 0, 255).astype(np.uint8)
  return Split(images, labels)
