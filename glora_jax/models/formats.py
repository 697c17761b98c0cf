"""How other code bases name and lay out the tensors of a Vision Transformer, and how ours are made of them and back.

A format is a table of rules, one for each of our parameters; the same table reads and writes. Formats know nothing of files.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from glora_jax.models.vit import ViT

Flat = dict[str, np.ndarray]
Variant = dict[str, Any]  # what a file's names leave open within a format, JSON types


class Rule(NamedTuple):
  """One parameter of ours and the tensors of a file that it is made of.

  Attributes:
    ours: its path; those under 'blocks/' are stacked over the blocks, and the rule speaks of one block.
    theirs: names in the file; '{}' is the number of the block.
    to_ours: the file's arrays -> ours.
    to_theirs: ours -> a tuple of the file's.
  """

  ours: str
  theirs: tuple[str, ...]
  to_ours: Callable[..., np.ndarray]
  to_theirs: Callable[[np.ndarray], tuple[np.ndarray, ...]]


def same(ours: str, theirs: str) -> Rule:
  return Rule(ours, (theirs,), lambda x: x, lambda x: (x,))


@dataclasses.dataclass(frozen=True)
class Format:
  """A code base's checkpoints.

  Attributes:
    name: as `--format` takes it.
    container: of the files that are written.
    patches: name of the patch embedding; what stands before it is the prefix of all names.
    telling: pattern of names that only this format has.
    read_shape: (shapes by name, prefix removed) -> (fields of the ViT, variant); raises KeyError for a tensor it needs.
    rules: (model, variant) -> the rules of all parameters the format has room for.
    variant: of the files that are written when a model comes from elsewhere.
    unused: pattern of tensors that the model has no use for, and that are kept for writing.
    interpolation: of position embeddings, see `resize.resize_pos_embed`.
    outside: pattern of names that do not take the prefix.
  """

  name: str
  container: str
  patches: str
  telling: str
  read_shape: Callable[[Mapping[str, tuple[int, ...]]], tuple[dict[str, Any], Variant]]
  rules: Callable[[ViT, Variant], list[Rule]]
  variant: Variant = dataclasses.field(default_factory=dict)
  unused: str = r'(?!)'
  interpolation: str = 'bicubic_antialias'
  outside: str = r'(?!)'


# ---------------------------------------------------------------------------------------------------------------- PyTorch


def _torch_linear(ours, theirs):
  return [
    Rule(f'{ours}/kernel', (f'{theirs}.weight',), lambda w: w.T, lambda k: (k.T,)),
    same(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _torch_norm(ours, theirs):
  return [same(f'{ours}/scale', f'{theirs}.weight'), same(f'{ours}/bias', f'{theirs}.bias')]


def _torch_conv(ours, theirs):  # (out, in, height, width) <-> (height, width, in, out)
  return [
    Rule(
      f'{ours}/kernel',
      (f'{theirs}.weight',),
      lambda w: w.transpose(2, 3, 1, 0),
      lambda k: (k.transpose(3, 2, 0, 1),),
    ),
    same(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _torch_qkv(ours, theirs):
  """Three linear layers side by side in one."""
  return [
    Rule(
      f'{ours}/kernel',
      tuple(f'{name}.weight' for name in theirs),
      lambda *weights: np.concatenate([w.T for w in weights], axis=1),
      lambda k: tuple(part.T for part in np.split(k, 3, axis=1)),
    ),
    Rule(
      f'{ours}/bias',
      tuple(f'{name}.bias' for name in theirs),
      lambda *biases: np.concatenate(biases),
      lambda b: tuple(np.split(b, 3)),
    ),
  ]


def _pos_embed(name, model, class_pos=True):
  """Where a file has no position for a class token, ours is zero there."""
  if class_pos or not model.class_token:
    return same('pos_embed', name)
  return Rule(
    'pos_embed',
    (name,),
    lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1),
    lambda x: (x[:, 1:],),
  )


def _depth(shapes, pattern):
  numbers = {int(found.group(1)) for name in shapes if (found := re.match(pattern, name))}
  return max(numbers, default=-1) + 1


HEADS = {
  192: 3,
  384: 6,
  512: 8,
  768: 12,
  1024: 16,
  1280: 16,
  1408: 16,
  1664: 16,
}  # of the published widths


def _timm_shape(shapes):
  embed = shapes['patch_embed.proj.weight']
  class_token, after = 'cls_token' in shapes, 'fc_norm.weight' in shapes
  if 2 * shapes['blocks.0.mlp.fc2.weight'][1] == shapes['blocks.0.mlp.fc1.weight'][0]:
    raise ValueError('its MLPs are SwiGLU ones; only plain MLPs are supported.')
  fields = {
    'width': embed[0],
    'patch_size': _square(embed[2:]),
    'depth': _depth(shapes, r'blocks\.(\d+)\.'),
    'mlp_dim': shapes['blocks.0.mlp.fc1.weight'][0],
    'num_heads': HEADS.get(embed[0]),
    'class_token': class_token,
    'norm_after_pool': after,
    'pool': 'token' if class_token and not after else 'gap',
    'pre_norm': 'norm_pre.weight' in shapes,
    'layer_scale': 1.0 if 'blocks.0.ls1.gamma' in shapes else None,
    'pre_logits': shapes['pre_logits.fc.weight'][0] if 'pre_logits.fc.weight' in shapes else None,
    'num_classes': shapes['head.weight'][0] if 'head.weight' in shapes else 0,
    'norm_eps': 1e-5 if 'norm_pre.weight' in shapes else 1e-6,
    'activation': 'gelu',
  }
  old = {'pre_logits': True} if fields['pre_logits'] else {}  # timm had such a layer until 2022
  return fields, {'tokens': shapes['pos_embed'][1], **old}


def _timm_rules(model, variant):
  block = 'blocks.{}'
  return [
    same('cls', 'cls_token'),
    _pos_embed('pos_embed', model, variant['class_pos']),
    *_torch_conv('embed', 'patch_embed.proj'),
    *_torch_norm('pre_norm', 'norm_pre'),
    *_torch_norm('blocks/norm1', f'{block}.norm1'),
    *_torch_linear('blocks/attn/qkv', f'{block}.attn.qkv'),
    *_torch_linear('blocks/attn/proj', f'{block}.attn.proj'),
    same('blocks/scale1/gamma', f'{block}.ls1.gamma'),
    *_torch_norm('blocks/norm2', f'{block}.norm2'),
    *_torch_linear('blocks/mlp/fc1', f'{block}.mlp.fc1'),
    *_torch_linear('blocks/mlp/fc2', f'{block}.mlp.fc2'),
    same('blocks/scale2/gamma', f'{block}.ls2.gamma'),
    *_torch_norm('norm', 'fc_norm' if model.norm_after_pool else 'norm'),
    *(_torch_linear('pre_logits', 'pre_logits.fc') if variant.get('pre_logits') else []),
    *_torch_linear('head', 'head'),
  ]


# Hugging Face: the names in files, which `from_pretrained` and `save_pretrained` use, and those of modules in transformers 5,
# which a saved `state_dict()` has.
_HF_VIT = {
  'norm1': 'encoder.layer.{}.layernorm_before',
  'norm2': 'encoder.layer.{}.layernorm_after',
  'qkv': [f'encoder.layer.{{}}.attention.attention.{name}' for name in ('query', 'key', 'value')],
  'proj': 'encoder.layer.{}.attention.output.dense',
  'fc1': 'encoder.layer.{}.intermediate.dense',
  'fc2': 'encoder.layer.{}.output.dense',
}
_HF_VIT_MODULES = {
  'norm1': 'layers.{}.layernorm_before',
  'norm2': 'layers.{}.layernorm_after',
  'qkv': [f'layers.{{}}.attention.{name}_proj' for name in 'qkv'],
  'proj': 'layers.{}.attention.o_proj',
  'fc1': 'layers.{}.mlp.fc1',
  'fc2': 'layers.{}.mlp.fc2',
}
_HF_DINOV2 = {
  'norm1': 'encoder.layer.{}.norm1',
  'norm2': 'encoder.layer.{}.norm2',
  'qkv': [f'encoder.layer.{{}}.attention.attention.{name}' for name in ('query', 'key', 'value')],
  'proj': 'encoder.layer.{}.attention.output.dense',
  'fc1': 'encoder.layer.{}.mlp.fc1',
  'fc2': 'encoder.layer.{}.mlp.fc2',
  'scale1': 'encoder.layer.{}.layer_scale1.lambda1',
  'scale2': 'encoder.layer.{}.layer_scale2.lambda1',
}
_HF_DINOV2_MODULES = {
  **_HF_DINOV2,
  'qkv': [f'encoder.layer.{{}}.attention.{name}_proj' for name in 'qkv'],
  'proj': 'encoder.layer.{}.attention.o_proj',
}
_HF_PATCHES = 'embeddings.patch_embeddings.projection.weight'


def _hf_shape(names, norm_eps):
  def read_shape(shapes):
    embed, classes = shapes[_HF_PATCHES], shapes.get('classifier.weight', (0, 0))
    fields = {
      'width': embed[0],
      'patch_size': _square(embed[2:]),
      'num_heads': HEADS.get(embed[0]),
      'depth': _depth(shapes, re.escape(names['norm1']).replace(r'\{\}', r'(\d+)')),
      'mlp_dim': shapes[names['fc1'].format(0) + '.weight'][0],
      'layer_scale': 1.0 if 'scale1' in names else None,
      'pool': 'token+gap' if 'scale1' in names and classes[0] else 'token',
      # A classifier reads the class token itself; only a model without one gives what its pooler makes of it.
      'pre_logits': shapes['pooler.dense.weight'][0]
      if 'pooler.dense.weight' in shapes and not classes[0]
      else None,
      'num_classes': classes[0],
      'norm_eps': norm_eps,
      'activation': 'gelu',
    }
    return fields, {'tokens': shapes['embeddings.position_embeddings'][1]}

  return read_shape


def _hf_rules(names):
  def rules(model, variant):
    scales = [
      same(f'blocks/{name}/gamma', names[name]) for name in ('scale1', 'scale2') if name in names
    ]
    return [
      same('cls', 'embeddings.cls_token'),
      _pos_embed('embeddings.position_embeddings', model),
      *_torch_conv('embed', _HF_PATCHES.removesuffix('.weight')),
      *scales,
      *_torch_norm('blocks/norm1', names['norm1']),
      *_torch_qkv('blocks/attn/qkv', names['qkv']),
      *_torch_linear('blocks/attn/proj', names['proj']),
      *_torch_norm('blocks/norm2', names['norm2']),
      *_torch_linear('blocks/mlp/fc1', names['fc1']),
      *_torch_linear('blocks/mlp/fc2', names['fc2']),
      *_torch_norm('norm', 'layernorm'),
      *_torch_linear('pre_logits', 'pooler.dense'),
      *_torch_linear('head', 'classifier'),
    ]

  return rules


# ------------------------------------------------------------------------------- vision_transformer and big_vision


def _npz_shape(shapes):
  embed = shapes['embedding/kernel']
  scanned = any(name.startswith('Transformer/encoderblock/') for name in shapes)
  block = 'Transformer/encoderblock' if scanned else 'Transformer/encoderblock_0'
  attention = next(
    (n for n in (0, 1) if f'{block}/MultiHeadDotProductAttention_{n}/query/kernel' in shapes), 0
  )
  mlp = 3 if f'{block}/MlpBlock_3/Dense_0/kernel' in shapes else 0
  query = shapes[f'{block}/MultiHeadDotProductAttention_{attention}/query/kernel'][int(scanned) :]
  position = next(
    (
      name
      for name in (
        'Transformer/posembed_input/pos_embedding',
        'Transformer/pos_embedding',
        'pos_embedding',
      )
      if name in shapes
    ),
    None,
  )
  class_token = 'cls' in shapes
  fields = {
    'width': embed[3],
    'patch_size': _square(embed[:2]),
    'num_heads': query[1],
    'depth': shapes[f'{block}/LayerNorm_0/scale'][0]
    if scanned
    else _depth(shapes, r'Transformer/encoderblock_(\d+)/'),
    'mlp_dim': shapes[f'{block}/MlpBlock_{mlp}/Dense_0/kernel'][-1],
    'class_token': class_token,
    'pool': 'token' if class_token else 'gap',
    'pre_logits': shapes['pre_logits/kernel'][1] if 'pre_logits/kernel' in shapes else None,
    'num_classes': shapes['head/kernel'][1] if 'head/kernel' in shapes else 0,
    'norm_eps': 1e-6,
    'activation': 'gelu_tanh',
  }
  return fields, {
    'scanned': scanned,
    'classic': bool(attention),
    'position': position,
    'tokens': position and shapes[position][1],
  }


def _npz_rules(model, variant):
  width, heads = model.width, model.num_heads
  split = (width, heads, width // heads)
  block = 'Transformer/encoderblock' if variant['scanned'] else 'Transformer/encoderblock_{}'
  norm2, mlp, attention = (
    ('LayerNorm_2', 'MlpBlock_3', 'MultiHeadDotProductAttention_1')
    if variant['classic']
    else ('LayerNorm_1', 'MlpBlock_0', 'MultiHeadDotProductAttention_0')
  )
  qkv = [f'{block}/{attention}/{name}' for name in ('query', 'key', 'value')]

  def flax(ours, theirs, *parts):
    return [same(f'{ours}/{part}', f'{theirs}/{part}') for part in parts]

  positions = (
    [_pos_embed(variant['position'], model, variant['class_pos'])]
    if variant['position']
    else [sincos_rule(model)]
  )
  return [
    same('cls', 'cls'),
    *positions,
    *flax('embed', 'embedding', 'kernel', 'bias'),
    *flax('blocks/norm1', f'{block}/LayerNorm_0', 'scale', 'bias'),
    Rule(
      'blocks/attn/qkv/kernel',
      tuple(f'{name}/kernel' for name in qkv),
      lambda *kernels: np.concatenate([k.reshape(width, width) for k in kernels], axis=1),
      lambda k: tuple(part.reshape(split) for part in np.split(k, 3, axis=1)),
    ),
    Rule(
      'blocks/attn/qkv/bias',
      tuple(f'{name}/bias' for name in qkv),
      lambda *biases: np.concatenate([b.reshape(width) for b in biases]),
      lambda b: tuple(part.reshape(split[1:]) for part in np.split(b, 3)),
    ),
    Rule(
      'blocks/attn/proj/kernel',
      (f'{block}/{attention}/out/kernel',),
      lambda k: k.reshape(width, width),
      lambda k: (k.reshape(*split[1:], width),),
    ),
    same('blocks/attn/proj/bias', f'{block}/{attention}/out/bias'),
    *flax('blocks/norm2', f'{block}/{norm2}', 'scale', 'bias'),
    *flax('blocks/mlp/fc1', f'{block}/{mlp}/Dense_0', 'kernel', 'bias'),
    *flax('blocks/mlp/fc2', f'{block}/{mlp}/Dense_1', 'kernel', 'bias'),
    *flax('norm', 'Transformer/encoder_norm', 'scale', 'bias'),
    *flax('pre_logits', 'pre_logits', 'kernel', 'bias'),
    *flax('head', 'head', 'kernel', 'bias'),
  ]


def sincos_rule(model: ViT) -> Rule:
  """big_vision's models with `posemb='sincos2d'` have no position embedding in the file: it is computed, and not written."""
  return Rule('pos_embed', (), lambda shape: sincos_2d(shape, model.class_token), lambda x: ())


def sincos_2d(shape: tuple[int, int, int], class_token: bool) -> np.ndarray:
  """Fixed position embedding of a square grid, [1, tokens, width], float32 (Chen et al. 2021, arXiv 2104.02057; no class position)."""
  _, tokens, width = shape
  side = math.isqrt(tokens - class_token)
  y, x = (axis.reshape(-1, 1) for axis in np.mgrid[:side, :side])
  omega = (1 / 10_000 ** (np.arange(width // 4) / (width // 4 - 1)))[None]
  grid = np.concatenate(
    [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega)], axis=1
  )
  return np.concatenate([np.zeros((int(class_token), width)), grid])[None].astype(np.float32)


# --------------------------------------------------------------------------------------------------------------------- all


def _square(sides):
  if sides[0] != sides[1]:
    raise ValueError(f'the patches are {sides[0]} x {sides[1]}; only square ones are supported.')
  return sides[0]


def _hf(name, names, norm_eps, anchor, unused=r'(?!)'):
  return Format(
    name,
    'safetensors',
    _HF_PATCHES,
    anchor,
    _hf_shape(names, norm_eps),
    _hf_rules(names),
    unused=unused,
    interpolation='bicubic',
    outside=r'classifier\.',
  )


def _npz(name, **variant):
  return Format(
    name,
    'npz',
    'embedding/kernel',
    r'Transformer/encoderblock',
    _npz_shape,
    _npz_rules,
    interpolation='linear_corners',
    variant={
      'scanned': False,
      'classic': False,
      'position': 'pos_embedding',
      'class_pos': False,
      **variant,
    },
  )


FORMATS = {
  format.name: format
  for format in (
    Format(
      'timm',
      'safetensors',
      'patch_embed.proj.weight',
      r'blocks\.\d+\.',
      _timm_shape,
      _timm_rules,
      variant={'class_pos': True},
      unused=r'mask_token$',
    ),
    _hf(
      'hf_vit',
      _HF_VIT,
      1e-12,
      r'encoder\.layer\.\d+\.layernorm_before',
      unused=r'embeddings\.mask_token$|pooler\.',
    ),
    _hf(
      'hf_vit_modules',
      _HF_VIT_MODULES,
      1e-12,
      r'layers\.\d+\.layernorm_before',
      unused=r'embeddings\.mask_token$|pooler\.',
    ),
    _hf(
      'hf_dinov2',
      _HF_DINOV2,
      1e-6,
      r'encoder\.layer\.\d+\.attention\.attention\.query',
      unused=r'embeddings\.mask_token$|pooler\.',
    ),
    _hf(
      'hf_dinov2_modules',
      _HF_DINOV2_MODULES,
      1e-6,
      r'encoder\.layer\.\d+\.attention\.q_proj',
      unused=r'embeddings\.mask_token$|pooler\.',
    ),
    _npz(
      'vit_jax', classic=True, position='Transformer/posembed_input/pos_embedding', class_pos=True
    ),
    _npz('big_vision'),
    _npz('big_vision_scan', scanned=True),
  )
}

# Names that tell of an architecture that this ViT is not; the first that fits explains a mismatch.
OTHERS = {
  r'dist_token|distillation_token|head_dist|distillation_classifier': 'a DeiT with a distillation token and head; take the plain DeiT',
  r'weights_in|mlp\.w12|fc1_g|gate_proj': 'a ViT with SwiGLU instead of the plain MLP; DINOv2 giant is one, S, B and L are not',
  r'register_tokens|reg_token': 'a ViT with register tokens; take the variant without',
  r'MAPHead_|attn_pool|(^|/)probe$': 'a ViT that pools by attention (SigLIP for instance); a class token or averaging is expected',
  r'[qk]_norm': 'a ViT that normalizes queries and keys',
  r'relative_position|rel_pos|rope': 'a ViT with relative or rotary positions',
  r'\.gamma_[12]$': 'a BEiT or CaiT',
}


def detect(names: Iterable[str]) -> list[tuple[Format, str]]:
  """All that a file's tensors can be read as, by their names: formats, with the prefix that the names share.

  A file holds several models where it has several towers. The state of an optimizer, which has the names of parameters below
  'opt/', is none of them, except for 'opt/target/', where Flax once kept the parameters themselves.
  """
  found = []
  for format in FORMATS.values():
    prefixes = [
      name.removesuffix(format.patches) for name in names if name.endswith(format.patches)
    ]
    for prefix in prefixes:
      if (prefix and prefix[-1] not in './') or (
        prefix.startswith('opt/') and not prefix.startswith('opt/target/')
      ):
        continue
      if any(
        re.match(format.telling, name.removeprefix(prefix))
        for name in names
        if name.startswith(prefix)
      ):
        if not any(other == prefix for _, other in found):
          found.append((format, prefix))
  return found


def explain(names: Iterable[str]) -> str:
  """A sentence on the other architecture that some of the tensors belong to, naming them; an empty text where none does."""
  for pattern, what in OTHERS.items():
    if telling := [name for name in names if re.search(pattern, name)]:
      return f'It is {what} ({grouped(telling)}).'
  return ''


def grouped(names: Iterable[str]) -> str:
  """Names joined, those that differ in one block number written once with all numbers: 'blocks.{0-11}.norm1.bias'."""
  groups = {}
  for name in names:
    number = re.search(r'(?<=[._/])(\d+)(?=[./])', name)
    pattern = f'{name[: number.start()]}{{}}{name[number.end() :]}' if number else name
    groups.setdefault(pattern, []).append(int(number.group()) if number else None)

  def written(pattern, numbers):
    if numbers[0] is None:
      return pattern
    numbers = sorted(numbers)
    whole = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return pattern.replace(
      '{}', f'{{{numbers[0]}-{numbers[-1]}}}' if whole else ','.join(map(str, numbers)), 1
    )

  return ', '.join(written(pattern, numbers) for pattern, numbers in sorted(groups.items()))
