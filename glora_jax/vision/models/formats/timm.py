"""timm's checkpoints: DeiT, DINO, MAE, augreg, CLIP and others."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from glora_jax.checks import shown
from glora_jax.vision.data.image import CROP
from glora_jax.vision.data.normalization import statistics
from glora_jax.vision.models.checkpoint import Arrays, OtherArchitecture
from glora_jax.vision.models.formats.format import (
  Format,
  Reading,
  Rule,
  Shapes,
  TorchFormat,
  positions,
  same,
  torch_conv,
  torch_linear,
  torch_norm,
)
from glora_jax.vision.models.metadata import OURS, Metadata, normalization_of, shortest
from glora_jax.vision.models.vit import Activation, ViT, sides

log = logging.getLogger(__name__)

NORM_EPS = 1e-6
CLIP_NORM_EPS = 1e-5

# In these architectures, only CLIP's, timm's LayerNorms add `CLIP_NORM_EPS`.
CLIP_ARCHITECTURE = 'vit_base_patch16_clip_224'
ARCHITECTURE = 'vit_base_patch16_224'

# Properties of architectures by patterns of their names: the number of heads if it is not that of
# the width, and the activation. timm's SigLIPs have those of the first version, unless there is
# only a second one.
HEADS_BY_NAME = {
  r'so400m|giantopt|gopt|vit_base_patch16_gap': 16,
  r'^test_vit$': 2,
  # Of widths that only timm's models have.
  r'^vit_xsmall_': 4,
  r'^vit_betwixt_': 10,
  r'^vit_base_patch\d+_plus_': 14,
}
ACTIVATIONS_BY_NAME = {
  r'quickgelu': 'quick_gelu',
  r'(base_patch32|so400m_patch16|giantopt_patch16)_siglip': 'gelu_tanh',
  r'large_patch16_siglip_(gap_)?512': 'gelu_tanh',
}

POOLS = {'avg': 'gap', 'token': 'token'}  # timm's names, and ours


class Timm(TorchFormat):
  """The `VisionTransformer` of timm."""

  patch_kernel = 'patch_embed.proj.weight'
  unused = r'mask_token$'
  config_fields = Format.config_fields | {'pool'}

  def read_shape(self, shapes: Shapes) -> Reading:
    """As `Format.read_shape`; models with average pooling normalize after it."""
    if 2 * shapes['blocks.0.mlp.fc2.weight'][1] == shapes['blocks.0.mlp.fc1.weight'][0]:
      raise OtherArchitecture('its MLPs use SwiGLU; only plain MLPs are supported.')
    reading = super().read_shape(shapes)
    if 'fc_norm.weight' in shapes:
      reading.fields.update(norm_after_pool=True, pool='gap')
    if reading.fields['pre_norm']:
      reading.fields['norm_eps'] = CLIP_NORM_EPS
    return reading

  def rules(self, model: ViT) -> list[Rule]:
    """As `Format.rules`; queries, keys and values are one layer, as they are here."""
    return [
      same('cls', 'cls_token'),
      positions('pos_embed', model.class_token and not self.class_pos),
      *torch_conv('embed', 'patch_embed.proj'),
      *torch_norm('pre_norm', 'norm_pre'),
      *torch_norm('blocks/norm1', 'blocks.{}.norm1'),
      *torch_linear('blocks/attn/qkv', 'blocks.{}.attn.qkv'),
      *torch_linear('blocks/attn/proj', 'blocks.{}.attn.proj'),
      same('blocks/scale1/gamma', 'blocks.{}.ls1.gamma'),
      *torch_norm('blocks/norm2', 'blocks.{}.norm2'),
      *torch_linear('blocks/mlp/fc1', 'blocks.{}.mlp.fc1'),
      *torch_linear('blocks/mlp/fc2', 'blocks.{}.mlp.fc2'),
      same('blocks/scale2/gamma', 'blocks.{}.ls2.gamma'),
      *torch_norm('norm', 'fc_norm' if model.norm_after_pool else 'norm'),
      *torch_linear('pre_logits', 'pre_logits.fc'),  # timm's until 2022
      *torch_linear('head', 'head'),
    ]

  def represent(self, model: ViT, flat: Arrays) -> tuple[ViT, Arrays]:
    """As `Format.represent`; timm also has LayerScale and both positions of the last LayerNorm."""
    if model.pre_logits is not None:
      raise self.refusal('pre-logits')
    if model.pool not in POOLS.values():
      raise self.refusal(f"pool='{model.pool}'")
    if model.norm_eps not in (NORM_EPS, CLIP_NORM_EPS):
      log.warning(
        "timm's LayerNorms add 1e-6, or 1e-5 in CLIP's models, but this model's add %g: logits "
        'will differ slightly.',
        model.norm_eps,
      )
    if model.class_token and not self.class_pos:  # its position is added to the token itself
      first, grid = flat['pos_embed'][:, :1], flat['pos_embed'][:, 1:]
      flat['cls'] = flat['cls'] + first
      flat['pos_embed'] = np.concatenate([np.zeros_like(first), grid], axis=1)
    return model, flat

  def read_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
    """As `Format.read_config`; much depends only on the name of the architecture."""
    if 'architecture' not in config or 'model' in config.get(OURS, {}):
      return {}
    architecture = config['architecture']
    pretrained = config.get('pretrained_cfg') or config
    arguments = config.get('model_args') or {}
    pool = arguments.get('global_pool') or config.get('global_pool')
    if pool not in (None, '', *POOLS):
      raise OtherArchitecture(f"global_pool={shown(pool)} is not supported; 'token' and 'avg' are.")
    activation = arguments.get('act_layer') or _by_name(ACTIVATIONS_BY_NAME, architecture)
    if activation not in (None, *get_args(Activation)):
      raise OtherArchitecture(f'act_layer={shown(activation)} is not supported.')
    size = arguments.get('img_size')
    return {
      'activation': activation,
      'num_heads': arguments.get('num_heads') or _by_name(HEADS_BY_NAME, architecture),
      'pool': None if pool in (None, '') else POOLS[pool],
      **read_images(pretrained, size),
      'classes': pretrained.get('label_names') or config.get('label_names'),
    }

  def side_files(self, model: ViT, metadata: Metadata) -> dict[str, dict[str, Any]]:
    """As `Format.side_files`; for `timm.create_model('local-dir:...')`."""
    height, width = sides(metadata['image_size'])
    mlp_dim = model.mlp_dim or 4 * model.width
    ratio = mlp_dim / model.width
    pretrained = {
      **write_images(model.num_classes, metadata),
      'first_conv': 'patch_embed.proj',
      'classifier': 'head',
    }
    arguments = {  # differences from the architecture
      'img_size': [height, width],
      'patch_size': model.patch_size,
      'embed_dim': model.width,
      'depth': model.depth,
      'num_heads': model.num_heads,
      # timm truncates width times ratio.
      'mlp_ratio': ratio if int(model.width * ratio) == mlp_dim else ratio + 1e-9,
      'class_token': model.class_token,
      'global_pool': 'token' if model.pool == 'token' else 'avg',
      'no_embed_class': not self.class_pos,
      'pre_norm': model.pre_norm,
      'fc_norm': model.norm_after_pool,
      'init_values': model.layer_scale and 1e-5,
      'act_layer': model.activation,
    }
    return {
      'config.json': {
        'architecture': CLIP_ARCHITECTURE if model.norm_eps == CLIP_NORM_EPS else ARCHITECTURE,
        'num_classes': model.num_classes,
        'num_features': model.width,
        'model_args': arguments,
        'pretrained_cfg': pretrained,
      }
    }


def read_images(
  pretrained: Mapping[str, Any], image_size: int | list[int] | None = None
) -> Metadata:
  """Metadata from `pretrained_cfg`.

  Args:
    pretrained: the fields.
    image_size: size of the model's images, if not the one in the fields.
  """
  facts: Metadata = {}
  if size := image_size or (pretrained.get('input_size') or [])[1:]:
    height, width = size if isinstance(size, list | tuple) else (size, size)
    facts['image_size'] = shortest(height, width)
  if 'mean' in pretrained:
    facts['normalization'] = normalization_of(pretrained['mean'], pretrained['std'])
  share, size = pretrained.get('crop_pct'), facts.get('image_size')
  is_share = isinstance(share, int | float) and 0.01 < share <= 1
  if is_share and pretrained.get('crop_mode', 'center') == 'center':
    if isinstance(size, int):  # timm scales it to a whole number of pixels
      share = size / int(size / share)
    facts |= {'resize': 'crop', 'crop': share}
  return facts


def write_images(num_classes: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `pretrained_cfg` on images and classes."""
  resize, share = metadata.get('resize'), metadata.get('crop')
  crop_pct = CROP if share is None else share - 1e-9  # timm truncates size over share
  fields: dict[str, Any] = {
    'input_size': [3, *sides(metadata['image_size'])],
    'num_classes': num_classes,
    'interpolation': 'bicubic',
    'crop_pct': crop_pct if resize == 'crop' else 1.0,
    'crop_mode': 'squash' if resize == 'squash' else 'center',
  }
  if metadata.get('normalization') is not None:
    mean, deviation = statistics(metadata['normalization'])
    fields |= {'mean': list(mean), 'std': list(deviation)}
  if metadata.get('classes'):
    fields['label_names'] = list(metadata['classes'])
  return fields


def _by_name(table: Mapping[str, Any], architecture: str) -> Any:
  for pattern, value in table.items():
    if re.search(pattern, architecture):
      return value
  return None


FORMAT = Timm(name='timm', signature=r'blocks\.\d+\.')
