"""What stands beside a checkpoint: the file in a folder, and `config.json` as Hugging Face, timm and this project write it."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import numpy as np

from glora_jax.data.image import CROP, RULES
from glora_jax.data.normalization import NORMALIZATIONS, statistics
from glora_jax.files import Path
from glora_jax.models.vit import ACTIVATIONS, POOLS, ViT, describe

EXTENSIONS = ('.safetensors', '.npz', '.pth', '.pt', '.bin')
_HF_ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_new': 'gelu_tanh',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
}
# What timm's names of architectures say: of heads, where they are not those of the width, and of the activation.
_TIMM_HEADS = {r'so400m|giantopt|gopt|vit_base_patch16_gap': 16, r'^test_vit$': 2}
_TIMM_ACTIVATIONS = {r'quickgelu': 'quick_gelu', r'siglip.*v2|siglip2': 'gelu_tanh'}


def locate(path: Path) -> str:
  """The checkpoint file of a path: the path itself, or the one such file in a folder.

  Raises:
    FileNotFoundError: nothing there.
    ValueError: several files, or a checkpoint in parts.
  """
  path = os.fspath(path)
  if not os.path.isdir(path):
    return path
  files = sorted(name for name in os.listdir(path) if name.endswith(EXTENSIONS))
  parts = [name for name in files if '-of-' in name]
  files = [name for name in files if name not in parts]
  if (
    'model.safetensors' in files
  ):  # as in most folders of Hugging Face, beside a PyTorch file of the same weights
    files = [
      name for name in files if name not in ('pytorch_model.bin', 'open_clip_pytorch_model.bin')
    ]
  named = [name for name in files if os.path.splitext(name)[0] in ('model', 'pytorch_model')]
  if len(files) == 1 or len(named) == 1:
    return os.path.join(path, (named or files)[0])
  if files:
    raise ValueError(
      f'The folder {path} holds several checkpoints ({", ".join(files)}); give the path of one.'
    )
  if parts:
    raise ValueError(
      f'{path} holds a checkpoint in several parts ({", ".join(parts)}), which is not supported; save it as one file.'
    )
  raise FileNotFoundError(
    f'There is no checkpoint in the folder {path}; a file ending in {", ".join(EXTENSIONS)} is expected.'
  )


def read_hints(file: str, format_name: str) -> dict[str, Any]:
  """What the `config.json` beside a checkpoint says that its tensors do not; empty where there is none of that code base.

  Args:
    file: of the checkpoint.
    format_name: that it was detected as: only the code base's own config, or ours, is believed.

  Returns:
    Fields of the ViT, and 'image_size', 'normalization', 'resize', 'classes' where they are said.

  Raises:
    ValueError: it is damaged, has odd values, or describes a model that the ViT cannot be; the sentence names the path.
  """
  folder = os.path.dirname(file)
  path = os.path.join(folder, 'config.json')
  config = _read_json(path)
  if not isinstance(config, dict):
    return {}
  try:
    hints = {}
    if 'glora_jax' in config:
      ours = config['glora_jax']
      hints.update(ours['model'])
      hints.update({name: value for name, value in ours.items() if name != 'model'})
    if format_name.startswith('hf_') and config.get('model_type') in ('vit', 'dinov2'):
      hints.update(_hf_hints(config, folder))
    elif format_name == 'timm' and 'architecture' in config and 'glora_jax' not in config:
      hints.update(_timm_hints(config))
    return {name: _checked(name, value) for name, value in hints.items() if value is not None}
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f'{path} is no config.json that transformers, timm or glora_jax wrote ({type(error).__name__}: {error}); '
      'correct it, or take it away.'
    ) from error
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def _read_json(path):
  if not os.path.exists(path):
    return None
  try:
    with open(path) as file:
      return json.load(file)
  except (ValueError, RecursionError) as error:
    raise ValueError(f'{path} is damaged ({error}); get it again, or take it away.') from error


def _checked(name, value):
  """The value of a hint; ValueError where it cannot be one."""
  whole = lambda number: isinstance(number, int) and not isinstance(number, bool) and number > 0
  fine = {
    'num_heads': lambda: whole(value),
    'norm_eps': lambda: isinstance(value, float) and 0 < value < 1,
    'activation': lambda: value in ACTIVATIONS,
    'pool': lambda: value in POOLS,
    'image_size': lambda: (
      whole(value)
      or (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(whole, value)))
    ),
    'classes': lambda: (
      isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
    ),
    'normalization': lambda: statistics(value) is not None,
    'resize': lambda: value in RULES,
  }.get(name, lambda: True)
  if not fine():
    raise ValueError(f'{name}={value!r} cannot be.')
  return value


def _hf_hints(config, folder):
  if config.get('use_swiglu_ffn'):
    raise ValueError(
      'use_swiglu_ffn=true, a ViT with SwiGLU instead of the plain MLP, is not supported; DINOv2 giant is one, S, B and L '
      'are not.'
    )
  if (activation := config.get('hidden_act', 'gelu')) not in _HF_ACTIVATIONS:
    raise ValueError(
      f"hidden_act='{activation}' is not supported; the ones that are: {', '.join(_HF_ACTIVATIONS)}."
    )
  hints = {
    'activation': _HF_ACTIVATIONS[activation],
    'num_heads': config.get('num_attention_heads'),
    'norm_eps': config.get('layer_norm_eps'),
    'image_size': config.get('image_size'),
  }
  labels = config.get('id2label') or {}
  if labels and not all(name.startswith('LABEL_') for name in labels.values()):
    hints['classes'] = [labels[number] for number in sorted(labels, key=int)]
  preprocessor = _read_json(os.path.join(folder, 'preprocessor_config.json')) or {}
  if preprocessor.get('do_normalize') is False:
    hints['normalization'] = 'unit'
  elif 'image_mean' in preprocessor:
    hints['normalization'] = _named(preprocessor['image_mean'], preprocessor['image_std'])
  return hints


def _timm_hints(config):
  pretrained, arguments = config.get('pretrained_cfg') or config, config.get('model_args') or {}
  architecture = config['architecture']
  by_name = lambda table: next(
    (value for pattern, value in table.items() if re.search(pattern, architecture)), None
  )
  hints = {
    'activation': arguments.get('act_layer') or by_name(_TIMM_ACTIVATIONS),
    'num_heads': arguments.get('num_heads') or by_name(_TIMM_HEADS),
  }
  pool = arguments.get('global_pool') or config.get('global_pool')
  if pool not in (None, '', 'avg', 'token'):
    raise ValueError(f"global_pool='{pool}' is not supported; 'token' and 'avg' are.")
  hints['pool'] = {'avg': 'gap', 'token': 'token'}.get(pool)
  if size := arguments.get('img_size') or (pretrained.get('input_size') or [])[1:]:
    height, width = size if isinstance(size, list) else (size, size)
    hints['image_size'] = height if height == width else [height, width]
  if 'mean' in pretrained:
    hints['normalization'] = _named(pretrained['mean'], pretrained['std'])
  hints['classes'] = pretrained.get('label_names') or config.get('label_names')
  return hints


def _named(mean, deviation):
  """The name of a normalization, or the two lists where it has none."""
  given = (list(mean), list(deviation))
  return next(
    (name for name, known in NORMALIZATIONS.items() if np.allclose(known, given, atol=2e-3)), given
  )


def config_for(format_name: str, model: ViT, metadata: dict[str, Any]) -> dict[str, Any]:
  """The `config.json` for a checkpoint that is written in a format.

  It says everything in the terms of the code base that will read it, and under 'glora_jax' in ours.

  Args:
    format_name: of `formats.FORMATS`.
    model: that is written.
    metadata: 'image_size', 'normalization', 'resize', 'classes' where they are known; 'class_pos' and 'mask_token' for what the file has.

  Raises:
    ValueError: the code base cannot be told of the model.
  """
  known = {
    name: metadata[name]
    for name in ('image_size', 'normalization', 'resize', 'classes')
    if metadata.get(name) is not None
  }
  ours = {'glora_jax': {'model': describe(model), **known}}
  if format_name.startswith('hf_'):
    return {**_hf_config(format_name, model, metadata), **ours}
  if format_name == 'timm':
    return {**_timm_config(model, metadata), **ours}
  return ours


def preprocessor_for(metadata: dict[str, Any]) -> dict[str, Any] | None:
  """The `preprocessor_config.json` that Hugging Face reads, or None where the normalization is not known."""
  if metadata.get('normalization') is None:
    return None
  height, width = _sides(metadata['image_size'])
  mean, deviation = statistics(metadata['normalization'])
  return {
    'image_processor_type': 'ViTImageProcessor',
    'do_normalize': True,
    'do_rescale': True,
    'do_resize': True,
    'image_mean': list(mean),
    'image_std': list(deviation),
    'resample': 3,
    'rescale_factor': 1 / 255,
    'size': {'height': height, 'width': width},
  }


def _sides(image_size):
  return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def _hf_config(format_name, model, metadata):
  dinov2 = 'dinov2' in format_name
  name = 'Dinov2' if dinov2 else 'ViT'
  mlp_dim = model.mlp_dim or 4 * model.width
  config = {
    'architectures': [f'{name}ForImageClassification' if model.num_classes else f'{name}Model'],
    'model_type': name.lower(),
    'hidden_size': model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.num_heads,
    'image_size': metadata['image_size'],
    'patch_size': model.patch_size,
    'num_channels': 3,
    'qkv_bias': True,
    'hidden_act': {value: key for key, value in reversed(_HF_ACTIVATIONS.items())}[
      model.activation
    ],
    'layer_norm_eps': model.norm_eps,
  }
  if dinov2:
    if mlp_dim % model.width:
      raise ValueError(
        f'The format {format_name} cannot say mlp_dim={mlp_dim}, which is no multiple of the width; choose another format.'
      )
    config.update(
      mlp_ratio=mlp_dim // model.width,
      layerscale_value=1.0,
      use_swiglu_ffn=False,
      use_mask_token=metadata['mask_token'],
    )
  else:
    config.update(intermediate_size=mlp_dim)
  if model.num_classes:
    classes = metadata.get('classes') or [f'LABEL_{n}' for n in range(model.num_classes)]
    config.update(
      id2label={str(n): name for n, name in enumerate(classes)},
      label2id={name: n for n, name in enumerate(classes)},
    )
  return config


def _timm_config(model, metadata):
  height, width = _sides(metadata['image_size'])
  mlp_dim = model.mlp_dim or 4 * model.width
  ratio = mlp_dim / model.width
  statistic = (
    statistics(metadata['normalization']) if metadata.get('normalization') is not None else None
  )
  classes = {'label_names': list(metadata['classes'])} if metadata.get('classes') else {}
  return {
    # The arguments below say what differs from it; that LayerNorm adds 1e-5 and not 1e-6 is in the name of CLIP's alone.
    'architecture': 'vit_base_patch16_clip_224'
    if model.norm_eps == 1e-5
    else 'vit_base_patch16_224',
    'num_classes': model.num_classes,
    'num_features': model.width,
    'model_args': {
      'img_size': [height, width],
      'patch_size': model.patch_size,
      'embed_dim': model.width,
      'depth': model.depth,
      'num_heads': model.num_heads,
      'mlp_ratio': ratio if int(model.width * ratio) == mlp_dim else ratio + 1e-9,
      'class_token': model.class_token,
      'global_pool': 'token' if model.pool == 'token' else 'avg',
      'no_embed_class': not metadata.get('class_pos', True),
      'pre_norm': model.pre_norm,
      'fc_norm': model.norm_after_pool,
      'init_values': model.layer_scale and 1e-5,
      'act_layer': model.activation,
    },
    'pretrained_cfg': {
      'input_size': [3, height, width],
      'num_classes': model.num_classes,
      'interpolation': 'bicubic',
      'crop_pct': CROP if metadata.get('resize') == 'crop' else 1.0,
      'crop_mode': 'squash' if metadata.get('resize') == 'squash' else 'center',
      'first_conv': 'patch_embed.proj',
      'classifier': 'head',
      **({'mean': list(statistic[0]), 'std': list(statistic[1])} if statistic else {}),
      **classes,
    },
  }
