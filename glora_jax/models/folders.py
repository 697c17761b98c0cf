"""What stands beside a checkpoint: `config.json` as Hugging Face, timm and this project write it, and the file in a folder."""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from glora_jax.data.augment import NORMALIZATIONS
from glora_jax.files import Path, read_json
from glora_jax.models.vit import ViT, describe

log = logging.getLogger(__name__)

EXTENSIONS = ('.safetensors', '.npz', '.pth', '.pt', '.bin')
_HF_ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh', 'quick_gelu': 'quick_gelu'}


def locate(path: Path) -> str:
  """The checkpoint file of a path: the path itself, or the one such file in a folder.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: several files, and none of them is named `model`.
  """
  path = os.fspath(path)
  if not os.path.isdir(path):
    return path
  files = sorted(name for name in os.listdir(path) if name.endswith(EXTENSIONS))
  named = [name for name in files if os.path.splitext(name)[0] in ('model', 'pytorch_model')]
  if any('-of-' in name for name in files):
    raise ValueError(f'{path} holds a checkpoint in several parts ({", ".join(files)}), which is not supported; save it as one file.')
  if not files:
    raise FileNotFoundError(f'There is no checkpoint in the folder {path}; a file ending in {", ".join(EXTENSIONS)} is expected.')
  if len(files) > 1 and not named:
    raise ValueError(f'The folder {path} holds several checkpoints ({", ".join(files)}); give the path of one.')
  return os.path.join(path, (named or files)[0])


def read_hints(file: str) -> dict[str, Any]:
  """What the `config.json` beside a checkpoint says that its tensors do not.

  Returns:
    Fields of the ViT, and 'image_size', 'normalization', 'classes' where they are said; empty without such a file.

  Raises:
    ValueError: it describes a model that the ViT cannot be.
  """
  folder = os.path.dirname(file)
  path = os.path.join(folder, 'config.json')
  config = read_json(path) if os.path.exists(path) else {}
  try:
    if 'glora_jax' in config:
      ours = config['glora_jax']
      return {**ours['model'], **{name: value for name, value in ours.items() if name != 'model'}}
    if 'model_type' in config:
      return _hf_hints(config, folder, path)
    if 'architecture' in config:
      return _timm_hints(config)
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is no config.json that transformers, timm or glora_jax wrote ({type(error).__name__}: {error}); '
                     'correct it, or take it away.') from error
  return {}


def _hf_hints(config, folder, path):
  if config.get('use_swiglu_ffn'):
    raise ValueError(f'{path}: use_swiglu_ffn=true, a ViT with SwiGLU instead of the plain MLP, is not supported; '
                     'DINOv2 giant is one, S, B and L are not.')
  if (activation := config.get('hidden_act', 'gelu')) not in _HF_ACTIVATIONS:
    raise ValueError(f"{path}: hidden_act='{activation}' is not supported; the ones that are: {', '.join(_HF_ACTIVATIONS)}.")
  hints = {'activation': _HF_ACTIVATIONS[activation]}
  for ours, theirs in (('num_heads', 'num_attention_heads'), ('norm_eps', 'layer_norm_eps'), ('image_size', 'image_size')):
    if theirs in config:
      hints[ours] = config[theirs]
  labels = config.get('id2label') or {}
  if labels and not all(name.startswith('LABEL_') for name in labels.values()):
    hints['classes'] = [labels[number] for number in sorted(labels, key=int)]
  preprocessor = os.path.join(folder, 'preprocessor_config.json')
  if os.path.exists(preprocessor):
    statistics = read_json(preprocessor)
    hints['normalization'] = _normalization(statistics.get('image_mean'), statistics.get('image_std'))
  return hints


def _timm_hints(config):
  pretrained, arguments = config.get('pretrained_cfg') or config, config.get('model_args') or {}
  hints = {}
  if 'quickgelu' in config['architecture']:
    hints['activation'] = 'quick_gelu'
  if 'num_heads' in arguments:
    hints['num_heads'] = arguments['num_heads']
  if config.get('global_pool') in ('avg', 'token'):
    hints['pool'] = {'avg': 'gap', 'token': 'token'}[config['global_pool']]
  if size := arguments.get('img_size') or (pretrained.get('input_size') or [])[1:]:
    height, width = size if isinstance(size, list) else (size, size)
    hints['image_size'] = height if height == width else [height, width]
  if 'mean' in pretrained:
    hints['normalization'] = _normalization(pretrained['mean'], pretrained.get('std'))
  if pretrained.get('label_names'):
    hints['classes'] = pretrained['label_names']
  return {name: value for name, value in hints.items() if value is not None}


def _normalization(mean, deviation):
  for name, known in NORMALIZATIONS.items():
    if mean and deviation and np.allclose(known, (mean, deviation), atol=2e-3):
      return name
  log.warning('The checkpoint was trained on images normalized with mean %s and deviation %s, which is none of %s.',
              mean, deviation, ', '.join(NORMALIZATIONS))
  return None


def config_for(format_name: str, model: ViT, metadata: dict[str, Any]) -> dict[str, Any]:
  """The `config.json` for a checkpoint that is written in a format.

  It says everything in the terms of the code base that will read it, and under 'glora_jax' in ours.

  Args:
    format_name: of `formats.FORMATS`.
    model: that is written.
    metadata: 'image_size', 'normalization', 'classes' where they are known.
  """
  known = {name: metadata[name] for name in ('image_size', 'normalization', 'classes') if metadata.get(name) is not None}
  ours = {'glora_jax': {'model': describe(model), **known}}
  classes = metadata.get('classes') or [f'LABEL_{n}' for n in range(model.num_classes)]
  if format_name.startswith('hf_'):
    return {**_hf_config(format_name, model, metadata, classes), **ours}
  if format_name == 'timm':
    return {**_timm_config(model, metadata), **ours}
  return ours


def preprocessor_for(metadata: dict[str, Any]) -> dict[str, Any] | None:
  """The `preprocessor_config.json` that Hugging Face reads, or None where the normalization is not known."""
  if metadata.get('normalization') is None:
    return None
  height, width = _sides(metadata['image_size'])
  mean, deviation = NORMALIZATIONS[metadata['normalization']]
  return {'image_processor_type': 'ViTImageProcessor', 'do_normalize': True, 'do_rescale': True, 'do_resize': True,
          'image_mean': list(mean), 'image_std': list(deviation), 'resample': 3, 'rescale_factor': 1 / 255,
          'size': {'height': height, 'width': width}}


def _sides(image_size):
  return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def _hf_config(format_name, model, metadata, classes):
  dinov2 = 'dinov2' in format_name
  name = 'Dinov2' if dinov2 else 'ViT'
  mlp_dim = model.mlp_dim or 4 * model.width
  config = {
      'architectures': [f'{name}ForImageClassification' if model.num_classes else f'{name}Model'], 'model_type': name.lower(),
      'hidden_size': model.width, 'num_hidden_layers': model.depth, 'num_attention_heads': model.num_heads,
      'image_size': metadata['image_size'], 'patch_size': model.patch_size, 'num_channels': 3, 'qkv_bias': True,
      'hidden_act': {value: key for key, value in reversed(_HF_ACTIVATIONS.items())}[model.activation],
      'layer_norm_eps': model.norm_eps}
  if dinov2:
    config.update(mlp_ratio=mlp_dim // model.width, layerscale_value=1.0, use_swiglu_ffn=False)
  else:
    config.update(intermediate_size=mlp_dim)
  if model.num_classes:
    config.update(id2label={str(n): name for n, name in enumerate(classes)}, label2id={name: n for n, name in enumerate(classes)})
  return config


def _timm_config(model, metadata):
  sizes = {192: 'tiny', 384: 'small', 768: 'base', 1024: 'large'}
  height, width = _sides(metadata['image_size'])
  known = metadata.get('normalization')
  mean, deviation = NORMALIZATIONS[known] if known else (None, None)
  return {
      'architecture': f'vit_{sizes.get(model.width, "base")}_patch16_224',  # the arguments below say what differs
      'num_classes': model.num_classes, 'num_features': model.width, 'global_pool': 'token' if model.pool == 'token' else 'avg',
      'model_args': {
          'img_size': [height, width], 'patch_size': model.patch_size, 'embed_dim': model.width, 'depth': model.depth,
          'num_heads': model.num_heads, 'mlp_ratio': (model.mlp_dim or 4 * model.width) / model.width, 'class_token': model.class_token,
          'no_embed_class': not metadata.get('class_pos', True), 'pre_norm': model.pre_norm, 'fc_norm': model.norm_after_pool,
          'init_values': model.layer_scale and 1e-5,
      },
      'pretrained_cfg': {
          'input_size': [3, height, width], 'num_classes': model.num_classes, 'interpolation': 'bicubic', 'crop_pct': 1.0,
          'first_conv': 'patch_embed.proj', 'classifier': 'head',
          **({'mean': list(mean), 'std': list(deviation)} if known else {}),
          **({'label_names': list(metadata['classes'])} if metadata.get('classes') else {}),
      },
  }
