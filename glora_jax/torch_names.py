"""Names of a torch model's modules, by paths in the JAX model with the same weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from glora_jax.checks import listed, shown, validate

NameMap = Mapping[str, str | Sequence[str]]
"""Names of torch modules by regular expressions of paths here; see `glora_jax.peft.save`."""

LEAVES = {
  'kernel': 'weight',
  'w': 'weight',
  'weight': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'b': 'bias',
}
"""Names of a module's parameters here, and torch's for them."""

_DECODER = {  # names that google-tunix's decoders have in common
  'embedder/input_embedding': 'model.embed_tokens',
  'final_norm': 'model.norm',
  r'layers/(\d+)/mlp/(gate|up|down)_proj': r'model.layers.\1.mlp.\2_proj',
}
_LLAMA = {
  **_DECODER,
  r'layers/(\d+)/attn/([qkvo]_proj)/w': r'model.layers.\1.self_attn.\2',
  r'layers/(\d+)/((input|post_attention)_layernorm)': r'model.layers.\1.\2',
  '(lm_head)(/w)?': r'\1',  # with /w if it is adapted, not trained in full
}
NAMES: Mapping[str, NameMap] = {
  'tunix_gemma3': {
    **_DECODER,
    r'layers/(\d+)/attn/qkv_einsum/w': [rf'model.layers.\1.self_attn.{x}_proj' for x in 'qkv'],
    r'layers/(\d+)/attn/q_einsum/w': r'model.layers.\1.self_attn.q_proj',
    r'layers/(\d+)/attn/kv_einsum/w': [rf'model.layers.\1.self_attn.{x}_proj' for x in 'kv'],
    r'layers/(\d+)/attn/attn_vec_einsum/w': r'model.layers.\1.self_attn.o_proj',
    r'layers/(\d+)/attn/_query_norm': r'model.layers.\1.self_attn.q_norm',
    r'layers/(\d+)/attn/_key_norm': r'model.layers.\1.self_attn.k_norm',
    r'layers/(\d+)/pre_attention_norm': r'model.layers.\1.input_layernorm',
    r'layers/(\d+)/post_attention_norm': r'model.layers.\1.post_attention_layernorm',
    r'layers/(\d+)/(pre|post)_ffw_norm': r'model.layers.\1.\2_feedforward_layernorm',
  },
  'tunix_llama3': _LLAMA,
  'tunix_qwen3': {
    **_LLAMA,
    r'layers/(\d+)/attn/([qk]_norm)': r'model.layers.\1.self_attn.\2',
    r'layers/(\d+)/mlp/router': r'model.layers.\1.mlp.gate',
    r'layers/(\d+)/mlp/((gate|up|down)_proj)': r'model.layers.\1.mlp.experts.{}.\2',
  },
}
"""Maps that can be passed by name."""


def name_map(names: str | NameMap) -> NameMap:
  """The map itself, or the one that is called so.

  Args:
    names: a map, or a key of `NAMES`.

  Raises:
    TypeError: it is neither.
    ValueError: no map has this name.

  Example:
    >>> modules_for(name_map('tunix_gemma3'), 'layers/3/attn/kv_einsum/w')
    ['model.layers.3.self_attn.k_proj', 'model.layers.3.self_attn.v_proj']
  """
  validate(names, str | Mapping, 'names')
  if isinstance(names, Mapping):
    return names
  if names not in NAMES:
    raise ValueError(f'names={shown(names)} is not a map; use one of {listed(NAMES)}, or your own.')
  return NAMES[names]


def modules_for(names: NameMap, path: str, index: tuple[int, ...] | None = ()) -> list[str]:
  """Names of the torch modules for a path, by the first expression that fits its stack, too.

  Args:
    names: a map.
    path: '/'-joined path of a layer, or of a module that has no layer.
    index: index in a stack of layers, which replaces '{}' in a name, once for each axis; None
      leaves '{}'.

  Raises:
    TypeError: a name is not a string.
    ValueError: no expression matches the path, or one is invalid.
  """
  wrong = None
  for pattern, found in names.items():
    validate(found, str | list[str], f'names[{shown(pattern)}]')
    templates = [found] if isinstance(found, str) else found
    try:
      match = re.fullmatch(pattern, path)
      expanded = [match.expand(name) for name in templates] if match else []
      if index is not None:
        expanded = [name.format(*index) for name in expanded]
    except (re.error, LookupError, ValueError) as error:
      raise ValueError(
        f'names[{shown(pattern)}]={shown(found)} is not a pattern of paths and its torch modules '
        f'({error}).'
      ) from error
    if not match:
      continue
    is_filled = index is None or all(name.count('{}') == len(index) for name in templates)
    if all(templates) and expanded and is_filled:
      return expanded
    wrong = found
  if wrong is not None:
    raise ValueError(
      f"names: {shown(wrong)} should have '{{}}' {len(index or ())} times, once for each stack "
      f'axis of {path}.'
    )
  raise ValueError(
    f"names: no pattern matches '{path}'; add the name of its torch module "
    f'({", ".join(map(str, names)) or "there are none"}).'
  )
