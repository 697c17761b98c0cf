"""Checkpoints of ViT and DINOv2 in Hugging Face transformers.

Each has two sets of names: those in files, which `from_pretrained` and `save_pretrained` use, and
those of the modules in transformers 5, which a saved `state_dict()` and PEFT's adapters have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

from glora_jax.checks import listed, shown
from glora_jax.vision.data.image import CROP
from glora_jax.vision.data.normalization import statistics
from glora_jax.vision.models.checkpoint import Arrays, OtherArchitecture
from glora_jax.vision.models.formats.format import (
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
from glora_jax.vision.models.metadata import Metadata, normalization_of
from glora_jax.vision.models.vit import Pool, ViT, sides

# transformers' names of the activations, and ours; if two of theirs are one of ours, the first is
# written.
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
}
MODEL_TYPES = ('vit', 'vit_msn', 'vit_mae', 'dinov2')  # MSN's and MAE's are plain ViTs
PREPROCESSOR = 'preprocessor_config.json'
BICUBIC = 3  # as Pillow counts its filters
# Steps of some processors besides dividing pixels by 255 and normalizing them.
_UNKNOWN = {'do_rescale': False, 'do_flip_channel_order': True, 'include_top': True}
_SQUASHED = 384  # pixels; from this size on, ConvNeXt's processor does not crop
ENCODER = 'encoder.layer.{}'  # path of a block; '{}' stands for its number


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFace(TorchFormat):
  """ViT, whose classifiers read the class token, and DINOv2, whose also read the mean patch.

  Attributes:
    title: 'ViT' or 'Dinov2', the prefix of its classes' names.
    path: path of a block; '{}' stands for its number.
    layers: names of a block's modules: norm, queries, keys, values, projection, norm, MLP.
  """

  title: Literal['ViT', 'Dinov2']
  path: str
  layers: tuple[str, ...]

  patch_kernel = 'embeddings.patch_embeddings.projection.weight'
  unprefixed = r'classifier\.'
  unused = r'embeddings\.mask_token$|pooler\.'
  interpolation = 'bicubic'
  preprocessor = PREPROCESSOR

  @property
  def is_dinov2(self) -> bool:
    """Whether it has LayerScale, and classifiers that also read the mean patch."""
    return self.title == 'Dinov2'

  def _pool(self, num_classes: int) -> Pool:
    return 'token+gap' if self.is_dinov2 and num_classes else 'token'

  @property
  def block(self) -> list[str]:
    """Paths of the modules of a block."""
    return [f'{self.path}.{module}' for module in self.layers]

  def read_shape(self, shapes: Shapes) -> Reading:
    """As `Format.read_shape`; there is always a class token, and in DINOv2 a LayerScale."""
    reading = super().read_shape(shapes)
    fields = reading.fields
    fields.update(class_token=True, layer_scale=1.0 if self.is_dinov2 else None)
    fields['pool'] = self._pool(fields['num_classes'])
    if not self.is_dinov2:
      fields['norm_eps'] = 1e-12
    if fields['num_classes']:  # these read the class token, not the output of a pooler
      fields['pre_logits'] = None
    return reading

  def rules(self, model: ViT) -> list[Rule]:
    """As `Format.rules`; queries, keys and values are separate layers."""
    norm1, *qkv, proj, norm2, fc1, fc2 = self.block
    return [
      same('cls', 'embeddings.cls_token'),
      positions('embeddings.position_embeddings'),
      *torch_conv('embed', self.patch_kernel.removesuffix('.weight')),
      *torch_norm('blocks/norm1', norm1),
      *torch_linear('blocks/attn/qkv', *qkv),
      *torch_linear('blocks/attn/proj', proj),
      same('blocks/scale1/gamma', f'{ENCODER}.layer_scale1.lambda1'),
      *torch_norm('blocks/norm2', norm2),
      *torch_linear('blocks/mlp/fc1', fc1),
      *torch_linear('blocks/mlp/fc2', fc2),
      same('blocks/scale2/gamma', f'{ENCODER}.layer_scale2.lambda1'),
      *torch_norm('norm', 'layernorm'),
      *torch_linear('pre_logits', 'pooler.dense'),
      *torch_linear('head', 'classifier'),
    ]

  def represent(self, model: ViT, flat: Arrays) -> tuple[ViT, Arrays]:
    """As `Format.represent`; there is always a class token, and no LayerNorm after pooling."""
    if not model.class_token:
      raise self.refusal('a model without class token')
    if model.norm_after_pool:
      raise self.refusal('a last LayerNorm after pooling')
    model, flat = _as_dinov2(model, flat) if self.is_dinov2 else _fold_layer_scale(model, flat)
    if model.pool != self._pool(model.num_classes):
      raise self.refusal(f"pool='{model.pool}'")
    if model.num_classes and model.pre_logits is not None:
      raise self.refusal('pre-logits and a head together')
    return model, flat

  def own_head(self, model: ViT, kernel: np.ndarray) -> np.ndarray:
    """As `Format.own_head`; without the zeros of features that the model does not read."""
    if model.pool == 'token+gap' or kernel.shape[:1] != (2 * model.width,):
      return kernel
    token, mean = np.split(kernel, 2)
    own, other = (token, mean) if model.pool == 'token' else (mean, token)
    return kernel if other.any() else own

  def for_model(self, model: ViT) -> Self:
    """As `Format.for_model`; a classifier has its encoder below the name of the architecture."""
    prefix = f'{self.title.lower()}.' if model.num_classes else self.prefix
    return dataclasses.replace(self, prefix=prefix)

  def read_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
    """As `Format.read_config`; the normalization is in `preprocessor_config.json`."""
    if config.get('model_type') not in MODEL_TYPES:
      return {}
    if config.get('use_swiglu_ffn'):
      raise OtherArchitecture(
        'use_swiglu_ffn=true, a ViT with SwiGLU instead of a plain MLP (DINOv2 giant), is not '
        'supported; use S, B or L.'
      )
    activation = config.get('hidden_act', 'gelu')
    if activation not in ACTIVATIONS:
      raise OtherArchitecture(
        f'hidden_act={shown(activation)} is not supported; use one of {", ".join(ACTIVATIONS)}.'
      )
    hints = {
      'activation': ACTIVATIONS[activation],
      'num_heads': config.get('num_attention_heads'),
      'norm_eps': config.get('layer_norm_eps'),
      'image_size': config.get('image_size'),
    }
    return hints | {'classes': read_classes(config)}

  def read_preprocessor(self, preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """As `Format.read_preprocessor`: the normalization, and whether images are cropped."""
    return read_images(preprocessor)

  def side_files(self, model: ViT, metadata: Metadata) -> dict[str, dict[str, Any]]:
    """As `Format.side_files`; for `from_pretrained`."""
    mlp_dim = model.mlp_dim or 4 * model.width
    kind = 'ForImageClassification' if model.num_classes else 'Model'
    config = {
      'architectures': [f'{self.title}{kind}'],
      'model_type': self.title.lower(),
      'hidden_size': model.width,
      'num_hidden_layers': model.depth,
      'num_attention_heads': model.num_heads,
      'image_size': metadata['image_size'],
      'patch_size': model.patch_size,
      'num_channels': 3,
      'qkv_bias': True,
      'hidden_act': next(name for name, ours in ACTIVATIONS.items() if ours == model.activation),
      'layer_norm_eps': model.norm_eps,
    }
    if not self.is_dinov2:
      config['intermediate_size'] = mlp_dim
    elif mlp_dim % model.width:
      raise self.refusal(f'mlp_dim={mlp_dim}, which is not a multiple of the width')
    else:
      config |= {
        'mlp_ratio': mlp_dim // model.width,
        'layerscale_value': 1.0,
        'use_swiglu_ffn': False,
        'use_mask_token': any('mask_token' in name for name in self.kept),
      }
    config |= write_classes(model.num_classes, metadata)
    if metadata.get('normalization') is None:
      return {'config.json': config}
    return {'config.json': config, PREPROCESSOR: write_images(metadata)}


def read_classes(config: Mapping[str, Any]) -> list[str] | None:
  """Names of the classes in a `config.json`; None for transformers' default names.

  Raises:
    ValueError: they are not numbered from 0.
  """
  labels = config.get('id2label') or {}
  if not labels or all(label.startswith('LABEL_') for label in labels.values()):
    return None
  numbers = [str(number) for number in range(len(labels))]
  if labels.keys() != set(numbers):
    raise ValueError(
      f'id2label has the keys {listed(labels)}; they must be the numbers of all classes, from 0.'
    )
  return [labels[number] for number in numbers]


def write_classes(num_classes: int, metadata: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of `config.json` on the classes."""
  if not num_classes:
    return {}
  classes = metadata.get('classes') or [f'LABEL_{n}' for n in range(num_classes)]
  return {
    'id2label': {str(number): name for number, name in enumerate(classes)},
    'label2id': {name: number for number, name in enumerate(classes)},
  }


def read_images(preprocessor: Mapping[str, Any]) -> Metadata:
  """Metadata from `preprocessor_config.json`."""
  facts: Metadata = {}
  for name, value in _UNKNOWN.items():
    if preprocessor.get(name) is value:
      raise OtherArchitecture(f'{PREPROCESSOR} has {name}={value}, which is not supported')
  if preprocessor.get('do_normalize') is False:
    facts['normalization'] = 'unit'
  elif 'image_mean' in preprocessor:
    facts['normalization'] = normalization_of(preprocessor['image_mean'], preprocessor['image_std'])
  crop, size = preprocessor.get('crop_size'), preprocessor.get('size')
  side = crop.get('height') if isinstance(crop, Mapping) else crop  # a number in older files
  short_side = size.get('shortest_edge') if isinstance(size, Mapping) else None
  is_cropped, share = preprocessor.get('do_center_crop'), preprocessor.get('crop_pct')
  if share and short_side and (is_cropped or short_side < _SQUASHED):
    is_cropped, side, short_side = True, short_side, int(short_side / share)
  are_sizes = isinstance(side, int) and isinstance(short_side, int) and side <= short_side
  if is_cropped and are_sizes:
    facts |= {'resize': 'crop', 'crop': side / short_side}
  return facts


def size_of(preprocessor: Mapping[str, Any]) -> int | None:
  """Side of the images of a model; None if it is missing."""
  size = preprocessor.get('crop_size' if preprocessor.get('do_center_crop') else 'size')
  return size.get('height', size.get('shortest_edge')) if isinstance(size, Mapping) else size


def write_images(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """The content of `preprocessor_config.json`, for `AutoImageProcessor`."""
  height, width = sides(metadata['image_size'])
  mean, deviation = statistics(metadata['normalization'])
  preprocessor = {
    'image_processor_type': 'ViTImageProcessor',
    'do_normalize': True,
    'do_rescale': True,
    'do_resize': True,
    'image_mean': list(mean),
    'image_std': list(deviation),
    'resample': BICUBIC,
    'rescale_factor': 1 / 255,
    'size': {'height': height, 'width': width},
  }
  if metadata.get('resize') == 'crop' and height == width:
    preprocessor.update(
      image_processor_type='BitImageProcessor',  # DINOv2's; ViT's cannot crop
      size={'shortest_edge': round(height / (metadata.get('crop') or CROP))},
      do_center_crop=True,
      crop_size={'height': height, 'width': width},
    )
  return preprocessor


def _fold_layer_scale(model: ViT, flat: Arrays) -> tuple[ViT, Arrays]:
  """Multiplies LayerScale into the layers before it; the outputs of the model are the same."""
  if model.layer_scale is None:
    return model, flat
  for scale, layer in (('scale1', 'attn/proj'), ('scale2', 'mlp/fc2')):
    gamma = flat.pop(f'blocks/{scale}/gamma')
    flat[f'blocks/{layer}/kernel'] = flat[f'blocks/{layer}/kernel'] * gamma[:, None, :]
    flat[f'blocks/{layer}/bias'] = flat[f'blocks/{layer}/bias'] * gamma
  return model.clone(layer_scale=None), flat


def _as_dinov2(model: ViT, flat: Arrays) -> tuple[ViT, Arrays]:
  """An equal model with LayerScale, and a head that reads class token and mean patch."""
  if model.layer_scale is None:  # one that scales by 1
    ones = np.ones((model.depth, model.width), flat['cls'].dtype)
    flat |= {'blocks/scale1/gamma': ones, 'blocks/scale2/gamma': ones}
    model = model.clone(layer_scale=1.0)
  if model.num_classes and model.pool != 'token+gap':  # zero for features that the head ignores
    head = flat['head/kernel']
    halves = [head, np.zeros_like(head)]
    flat['head/kernel'] = np.concatenate(halves if model.pool == 'token' else halves[::-1])
    model = model.clone(pool='token+gap')
  return model, flat


_ATTENTION = (
  *(f'attention.attention.{name}' for name in ('query', 'key', 'value')),
  'attention.output.dense',
)
_ATTENTION_MODULES = tuple(f'attention.{name}_proj' for name in 'qkvo')
_MLP = ('mlp.fc1', 'mlp.fc2')

FORMATS = (
  HuggingFace(
    name='hf_vit',
    title='ViT',
    signature=r'encoder\.layer\.\d+\.layernorm_before',
    path=ENCODER,
    layers=(
      'layernorm_before',
      *_ATTENTION,
      'layernorm_after',
      'intermediate.dense',
      'output.dense',
    ),
  ),
  HuggingFace(
    name='hf_dinov2',
    title='Dinov2',
    signature=r'encoder\.layer\.\d+\.attention\.attention\.query',
    path=ENCODER,
    layers=('norm1', *_ATTENTION, 'norm2', *_MLP),
  ),
  HuggingFace(
    name='hf_vit_modules',
    title='ViT',
    signature=r'layers\.\d+\.layernorm_before',
    path='layers.{}',
    layers=('layernorm_before', *_ATTENTION_MODULES, 'layernorm_after', *_MLP),
    is_written=False,
  ),
  HuggingFace(
    name='hf_dinov2_modules',
    title='Dinov2',
    signature=r'encoder\.layer\.\d+\.attention\.q_proj',
    path=ENCODER,
    layers=('norm1', *_ATTENTION_MODULES, 'norm2', *_MLP),
    is_written=False,
  ),
)
