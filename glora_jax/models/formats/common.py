"""What the families of formats have in common."""

from __future__ import annotations

import re

import numpy as np

from glora_jax.models.formats.format import Flat, Shapes, Variant
from glora_jax.models.vit import ViT

# Number of heads of the published models, by width.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}


def depth(shapes: Shapes, pattern: str) -> int:
  """Number of blocks; the pattern's first group is the number of a block."""
  matches = (re.match(pattern, name) for name in shapes)
  return 1 + max((int(match.group(1)) for match in matches if match), default=-1)


def patch_side(height: int, width: int) -> int:
  """The side of a patch.

  Raises:
    ValueError: patches are not square.
  """
  if height != width:
    raise ValueError(f'the patches are {height} x {width}; only square ones are supported.')
  return height


def fold_layer_scale(model: ViT, flat: Flat) -> tuple[ViT, Flat]:
  """Multiplies LayerScale into the layers before it; nothing changes in what is computed."""
  if model.layer_scale is None:
    return model, flat
  flat = dict(flat)
  for scale, layer in (('scale1', 'attn/proj'), ('scale2', 'mlp/fc2')):
    gamma = flat.pop(f'blocks/{scale}/gamma')
    flat[f'blocks/{layer}/kernel'] = flat[f'blocks/{layer}/kernel'] * gamma[:, None, :]
    flat[f'blocks/{layer}/bias'] = flat[f'blocks/{layer}/bias'] * gamma
  return model.clone(layer_scale=None), flat


def fold_class_position(model: ViT, flat: Flat, variant: Variant) -> Flat:
  """Adds the class token's position to the token itself where a file has no place for it."""
  if variant.class_pos or not model.class_token:
    return flat
  class_pos, grid = flat['pos_embed'][:, :1], flat['pos_embed'][:, 1:]
  return {
    **flat,
    'cls': flat['cls'] + class_pos,
    'pos_embed': np.concatenate([np.zeros_like(class_pos), grid], axis=1),
  }
