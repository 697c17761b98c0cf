"""Fits a pretrained ViT to another task: another head, image size, patch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from glora_jax.models.formats.table import FORMATS
from glora_jax.models.load import Checkpoint
from glora_jax.models.metadata import check_facts, shortest, sides
from glora_jax.models.resize import check_patches, resize_patch_embed, resize_pos_embed
from glora_jax.models.vit import ViT
from glora_jax.settings import Whole, taken

# Resizing takes a matrix of the pixels of both patches.


def refit(
  model: ViT,
  params: Mapping[str, Any],
  metadata: Mapping[str, Any],
  *,
  num_classes: int | None = None,
  image_size: int | tuple[int, int] | None = None,
  patch_size: int | None = None,
) -> Checkpoint:
  """Fits a pretrained model to another task; what is given stays as it is.

  Args:
    model: the ViT.
    params: its parameters, nested.
    metadata: what `load` returned beside them.
    num_classes: size of a new head of zeros, which takes the place of the old one and of its
      pre-logits; 0 leaves the model without a head, None keeps the old one.
    image_size: image size, (height, width) where it is not square, that the position embedding is
      resized for, in the way of the checkpoint's own code base (see `resize_pos_embed`).
    patch_size: patch size that the patch embedding is resized to (see `resize_patch_embed`); the
      position embedding follows.

  Returns:
    (model, params, metadata) of the new model.

  Raises:
    ValueError: the image size is no multiple of the patch size, has too many patches, or a size
      cannot be.

  Example:
    >>> from glora_jax.models import weights
    >>> checkpoint = weights.load(weights.EMBEDDED_FILE)
    >>> model, params, metadata = weights.refit(*checkpoint, num_classes=3, image_size=56)
    >>> params['head']['kernel'].shape, metadata['image_size']
    ((96, 3), 56)
  """
  check_facts({'image_size': image_size})
  patch_size = taken(patch_size, 'patch_size', Whole | None, ge=1, le=256)
  num_classes = taken(num_classes, 'num_classes', Whole | None, ge=0)
  params = dict(params)
  metadata = dict(metadata)
  old_size = sides(metadata['image_size'])
  new_size = old_size if image_size is None else sides(image_size)
  patch = model.patch_size if patch_size is None else patch_size
  if patch < 1 or any(side % patch or side < 1 for side in new_size):
    wanted = metadata['image_size'] if image_size is None else image_size
    raise ValueError(f'image_size={wanted} is not a multiple of the patch size {patch}.')
  check_patches(shortest(*new_size), patch)
  if patch != model.patch_size:
    kernel = resize_patch_embed(params['embed']['kernel'], patch)
    params['embed'] = {**params['embed'], 'kernel': kernel}
  old_grid = old_size[0] // model.patch_size, old_size[1] // model.patch_size
  new_grid = new_size[0] // patch, new_size[1] // patch
  if old_grid != new_grid:
    origin, positions = metadata.get('source'), (params['pos_embed'], old_grid, new_grid)
    params['pos_embed'] = (
      FORMATS[origin.format].resize_positions(*positions, origin.variant)
      if origin
      else resize_pos_embed(*positions, 'bicubic_antialias')
    )
  model = model.clone(patch_size=patch)
  metadata['image_size'] = shortest(*new_size)
  if num_classes is not None:
    model = _replace_head(model, params, num_classes)
    metadata.pop('classes', None)
  return Checkpoint(model, params, metadata)


def _replace_head(model: ViT, params: dict[str, Any], num_classes: int) -> ViT:
  """Puts a head of zeros, or none, in the place of the old one; returns the model with it."""
  params.pop('pre_logits', None)
  params.pop('head', None)
  if num_classes:
    inputs = model.width * (2 if model.pool == 'token+gap' else 1)
    params['head'] = {
      'kernel': np.zeros((inputs, num_classes), np.float32),
      'bias': np.zeros(num_classes, np.float32),
    }
  return model.clone(num_classes=num_classes, pre_logits=None)
