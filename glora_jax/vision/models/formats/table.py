"""All formats by name, those that are written, and the format of a file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from glora_jax.tree import grouped
from glora_jax.vision.models.checkpoint import OtherArchitecture
from glora_jax.vision.models.formats import flax_npz, hugging_face, timm
from glora_jax.vision.models.formats.format import Format, TorchFormat
from glora_jax.vision.models.metadata import OURS

TORCH_FORMATS: dict[str, TorchFormat] = {
  format.name: format for format in (timm.FORMAT, *hugging_face.FORMATS)
}
WRITTEN = {name: format for name, format in TORCH_FORMATS.items() if format.is_written}
FORMATS: dict[str, Format] = {**TORCH_FORMATS, flax_npz.FORMAT.name: flax_npz.FORMAT}

# Names of tensors that only other architectures have; the first pattern that fits explains why a
# file is not a plain ViT.
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

# The state of an optimizer has the names of parameters below the first prefix, but is not a model.
# Early Flax had the parameters below the second.
_OPTIMIZER = 'opt/'
_OLD_PARAMETERS = 'opt/target/'


def recognize(path: str, names: Sequence[str]) -> Format:
  """The format of the one model in a file, with the prefix of its tensors.

  Args:
    path: path of the file, for error messages.
    names: names of all tensors in it.

  Raises:
    OtherArchitecture: the file has another architecture, which the message explains, or an unknown
      one.
    ValueError: it has several models.
  """
  for pattern, architecture in OTHER_ARCHITECTURES.items():
    if foreign := [name for name in names if re.search(pattern, name)]:
      raise OtherArchitecture(
        f'{path} is not a plain ViT. It is {architecture} ({grouped(foreign)}).'
      )
  found: dict[str, Format] = {}
  for format in FORMATS.values():
    for kernel in (name for name in names if name.endswith(format.patch_kernel)):
      prefix = kernel.removesuffix(format.patch_kernel)
      is_path = prefix == '' or prefix.endswith(('.', '/'))
      is_moment = prefix.startswith(_OPTIMIZER) and not prefix.startswith(_OLD_PARAMETERS)
      below = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
      if is_path and not is_moment and any(re.match(format.signature, name) for name in below):
        found.setdefault(prefix, format)
  if not found:
    raise OtherArchitecture(
      f'{path} does not have a ViT of a known format; it has {grouped(names)}. The formats are '
      f'{OURS}, {", ".join(FORMATS)}.'
    )
  if len(found) > 1:
    prefixes = ', '.join(prefix or 'no prefix' for prefix in found)
    raise ValueError(
      f'{path} has several models, below {prefixes}; save one of them to a separate file.'
    )
  ((prefix, format),) = found.items()
  return dataclasses.replace(format, prefix=prefix)
