"""All formats by name, which of them are written, and which of them a file is in."""

from __future__ import annotations

import re
from collections.abc import Iterable

from glora_jax.tree import grouped
from glora_jax.vision.models.formats import flax_npz, hugging_face, timm
from glora_jax.vision.models.formats.format import Format, TorchFormat

TORCH_FORMATS: dict[str, TorchFormat] = {
  format.name: format for format in (timm.FORMAT, *hugging_face.FORMATS)
}
WRITTEN = {name: format for name, format in TORCH_FORMATS.items() if format.is_written}
FORMATS: dict[str, Format] = {**TORCH_FORMATS, flax_npz.FORMAT.name: flax_npz.FORMAT}

# Names of tensors that only other architectures have; the first pattern that fits explains why a
# file is no plain ViT.
OTHER_ARCHITECTURES = {
  r'dist_token|distillation_token|head_dist|distillation_classifier': (
    'a DeiT with a distillation token and head; use the plain DeiT'
  ),
  r'weights_in|mlp\.w12|fc1_g|gate_proj': (
    'a ViT with SwiGLU instead of a plain MLP (DINOv2 giant); use S, B or L'
  ),
  r'register_tokens|reg_token': 'a ViT with register tokens; use the variant without',
  r'MAPHead_|attn_pool|(^|/)probe$': (
    'a ViT that pools by attention (SigLIP for instance); expected a class token or averaging'
  ),
  r'[qk]_norm': 'a ViT that normalizes queries and keys',
  r'relative_position|rel_pos|rope': 'a ViT with relative or rotary positions',
  r'\.gamma_[12]$': 'a BEiT or CaiT',
}

# The state of an optimizer has the names of parameters below the first, and is no model; Flax once
# kept the parameters themselves below the second.
_OPTIMIZER = 'opt/'
_OLD_PARAMETERS = 'opt/target/'


def detect(names: Iterable[str]) -> list[tuple[Format, str]]:
  """The format and prefix of every model in a file, by the names of its tensors."""
  names = list(names)
  found: dict[str, Format] = {}
  for format in FORMATS.values():
    for kernel in (name for name in names if name.endswith(format.patch_kernel)):
      prefix = kernel.removesuffix(format.patch_kernel)
      is_path = prefix == '' or prefix.endswith(('.', '/'))
      is_moment = prefix.startswith(_OPTIMIZER) and not prefix.startswith(_OLD_PARAMETERS)
      below = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
      if is_path and not is_moment and any(re.match(format.signature, name) for name in below):
        found.setdefault(prefix, format)
  return [(format, prefix) for prefix, format in found.items()]


def explain(names: Iterable[str]) -> str:
  """A sentence on the other architecture that tensors belong to, naming them; '' for a plain ViT.

  >>> explain(['cls_token', 'dist_token'])
  'It is a DeiT with a distillation token and head; use the plain DeiT (dist_token).'
  """
  names = list(names)
  for pattern, architecture in OTHER_ARCHITECTURES.items():
    if foreign := [name for name in names if re.search(pattern, name)]:
      return f'It is {architecture} ({grouped(foreign)}).'
  return ''
