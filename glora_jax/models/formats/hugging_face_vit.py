"""Hugging Face's ViT."""

from __future__ import annotations

from typing import Any

from glora_jax.models.formats.common import fold_layer_scale
from glora_jax.models.formats.format import Flat
from glora_jax.models.formats.hugging_face import ENCODER, BlockNames, HuggingFace
from glora_jax.models.formats.rules import Rule
from glora_jax.models.vit import Pool, ViT

VIT_BLOCK = BlockNames(
  norm1=f'{ENCODER}.layernorm_before',
  norm2=f'{ENCODER}.layernorm_after',
  qkv=(
    f'{ENCODER}.attention.attention.query',
    f'{ENCODER}.attention.attention.key',
    f'{ENCODER}.attention.attention.value',
  ),
  proj=f'{ENCODER}.attention.output.dense',
  fc1=f'{ENCODER}.intermediate.dense',
  fc2=f'{ENCODER}.output.dense',
)
VIT_BLOCK_MODULES = BlockNames(
  norm1='layers.{}.layernorm_before',
  norm2='layers.{}.layernorm_after',
  qkv=(
    'layers.{}.attention.q_proj',
    'layers.{}.attention.k_proj',
    'layers.{}.attention.v_proj',
  ),
  proj='layers.{}.attention.o_proj',
  fc1='layers.{}.mlp.fc1',
  fc2='layers.{}.mlp.fc2',
)


class HuggingFaceViT(HuggingFace):
  """`ViTModel` and `ViTForImageClassification`, which read the class token."""

  title = 'ViT'
  norm_eps = 1e-12

  def scale_rules(self) -> list[Rule]:
    """There is no LayerScale."""
    return []

  def fit_layer_scale(self, model: ViT, flat: Flat) -> tuple[ViT, Flat]:
    """LayerScale is folded into the layers before it."""
    return fold_layer_scale(model, flat)

  def pool(self, num_classes: int) -> Pool:
    """The class token is read, whether there is a head or not."""
    return 'token'

  def own_config(self, model: ViT, tensors: Flat) -> dict[str, Any]:
    """The width of the MLPs."""
    return {'intermediate_size': model.mlp_dim or 4 * model.width}


FORMATS = (
  HuggingFaceViT('hf_vit', r'encoder\.layer\.\d+\.layernorm_before', VIT_BLOCK),
  HuggingFaceViT('hf_vit_modules', r'layers\.\d+\.layernorm_before', VIT_BLOCK_MODULES),
)
