"""Hugging Face's DINOv2."""

from __future__ import annotations

from typing import Any

import numpy as np

from glora_jax.models.formats.format import Flat
from glora_jax.models.formats.hugging_face import ENCODER, BlockNames, HuggingFace
from glora_jax.models.formats.hugging_face_vit import VIT_BLOCK
from glora_jax.models.formats.rules import Rule, same
from glora_jax.models.vit import Pool, ViT

DINOV2_BLOCK = BlockNames(
  norm1=f'{ENCODER}.norm1',
  norm2=f'{ENCODER}.norm2',
  qkv=VIT_BLOCK.qkv,
  proj=VIT_BLOCK.proj,
  fc1=f'{ENCODER}.mlp.fc1',
  fc2=f'{ENCODER}.mlp.fc2',
)
DINOV2_BLOCK_MODULES = DINOV2_BLOCK._replace(
  qkv=(
    f'{ENCODER}.attention.q_proj',
    f'{ENCODER}.attention.k_proj',
    f'{ENCODER}.attention.v_proj',
  ),
  proj=f'{ENCODER}.attention.o_proj',
)


class HuggingFaceDinov2(HuggingFace):
  """`Dinov2Model`, and `Dinov2ForImageClassification`, which reads class token and mean patch."""

  title = 'Dinov2'
  norm_eps = 1e-6

  def scale_rules(self) -> list[Rule]:
    """LayerScale is called lambda1, which is nested in each of two modules."""
    return [
      same('blocks/scale1/gamma', f'{ENCODER}.layer_scale1.lambda1'),
      same('blocks/scale2/gamma', f'{ENCODER}.layer_scale2.lambda1'),
    ]

  def fit_layer_scale(self, model: ViT, flat: Flat) -> tuple[ViT, Flat]:
    """A model without LayerScale gets one that scales by 1."""
    if model.layer_scale is not None:
      return model, flat
    ones = np.ones((model.depth, model.width), flat['cls'].dtype)
    scales = {'blocks/scale1/gamma': ones, 'blocks/scale2/gamma': ones}
    return model.clone(layer_scale=1.0), {**flat, **scales}

  def pool(self, num_classes: int) -> Pool:
    """A classifier reads class token and mean patch side by side."""
    return 'token+gap' if num_classes else 'token'

  def fit_head(self, model: ViT, flat: Flat) -> tuple[ViT, Flat]:
    """A head that reads one half of what DINOv2's read is zero for the other."""
    if not model.num_classes or model.pool == 'token+gap':
      return model, flat
    head = flat['head/kernel']
    halves = [head, np.zeros_like(head)]
    kernel = np.concatenate(halves if model.pool == 'token' else halves[::-1])
    return model.clone(pool='token+gap'), {**flat, 'head/kernel': kernel}

  def own_head(self, model: ViT, kernel: np.ndarray) -> np.ndarray:
    """As `Format.own_head`; of a head that is zero for what the model does not read, the rest."""
    if model.pool == 'token+gap' or len(kernel) != 2 * model.width:
      return kernel
    token, mean = np.split(kernel, 2)
    own, other = (token, mean) if model.pool == 'token' else (mean, token)
    return kernel if other.any() else own

  def placeholders(self, width: int, dtype: np.dtype) -> Flat:
    """A token for masked patches, which only DINOv2's pretraining uses."""
    return {'embeddings.mask_token': np.zeros((1, width), dtype)}

  def own_config(self, model: ViT, tensors: Flat) -> dict[str, Any]:
    """The width of the MLPs, as a multiple of the model's; LayerScale; the mask token."""
    mlp_dim = model.mlp_dim or 4 * model.width
    if mlp_dim % model.width:
      raise self.refusal(f'mlp_dim={mlp_dim}, which is no multiple of the width')
    return {
      'mlp_ratio': mlp_dim // model.width,
      'layerscale_value': 1.0,
      'use_swiglu_ffn': False,
      'use_mask_token': any('mask_token' in name for name in tensors),
    }


FORMATS = (
  HuggingFaceDinov2('hf_dinov2', r'encoder\.layer\.\d+\.attention\.attention\.query', DINOV2_BLOCK),
  HuggingFaceDinov2(
    'hf_dinov2_modules', r'encoder\.layer\.\d+\.attention\.q_proj', DINOV2_BLOCK_MODULES
  ),
)
