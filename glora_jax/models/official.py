"""What the official PyTorch code saves: a whole supernet of a timm ViT."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from glora_jax.files import Path
from glora_jax.method.adapted import COLLECTION, Adapted
from glora_jax.models.containers import open_tensors
from glora_jax.models.formats import FORMATS, grouped
from glora_jax.models.translate import finite, require
from glora_jax.models.vit import ViT
from glora_jax.tree import get


def load_official_supernet(path: Path, adapted: Adapted, params: Any) -> dict[str, Any]:
  """Reads what the official PyTorch code saves, supports and head of a timm ViT, onto the base that it was trained on.

  The official base is `ViT-B_16.npz` as timm computes it: load that with `activation='gelu'`.

  Args:
    path: of the `.pt` file (PyTorch must be there; it is read with `weights_only=True`), or its tensors as safetensors or npz.
    adapted: the ViT of `models/vit.py`, adapted with tied storage; its largest rank is that of the file.
    params: the base's parameters, with a head of the file's number of classes; the head is replaced.

  Returns:
    Variables for `adapted.apply`.

  Raises:
    ValueError: every tensor that is missing, unexpected or misshaped is named.
  """
  if (
    not isinstance(adapted.model, ViT)
    or not adapted.model.num_classes
    or not all(layer.space.tied for layer in adapted.spec)
  ):
    raise ValueError(
      'An official supernet goes onto the ViT of glora_jax.models.vit, with a head (num_classes above 0), adapted with a '
      'tied SearchSpace.'
    )
  tensors = open_tensors(path)
  timm = FORMATS['timm']
  names = {
    rule.ours: rule.theirs[0].removesuffix('.weight')
    for rule in timm.rules(adapted.model, timm.variant)
  }
  variables = adapted.init(jax.random.key(0), params)
  trainable, frozen = adapted.split(variables)
  supports = jax.tree.map(
    lambda value: np.zeros(value.shape, value.dtype), nn.meta.unbox(trainable[COLLECTION])
  )
  places, expected = {}, {}
  for group in adapted.groups:
    for index, _ in group.slices():
      layer = names['/'.join((*group.path, 'kernel'))].format(*index)
      for ours, theirs, transposed in _OFFICIAL:
        module = get(supports, group.path)
        if ours in module:
          shape = module[ours].shape[len(index) :]
          places[f'{layer}.{theirs}'] = module, ours, index, transposed
          expected[f'{layer}.{theirs}'] = shape[::-1] if transposed else shape
  heads = trainable['params']['head']
  expected.update({'head.weight': heads['kernel'].shape[::-1], 'head.bias': heads['bias'].shape})
  require(tensors, {name: spec.shape for name, spec in tensors.specs.items()}, expected)
  if odd := [name for name in expected if tensors.specs[name].dtype is None]:
    raise ValueError(f'{tensors.path}: {grouped(odd)} hold no floating-point numbers.')
  read = lambda name: finite(tensors.path, name, tensors.read(name))
  for name, (module, ours, index, transposed) in places.items():
    value = read(name)
    module[ours][index] = value.T if transposed else value
  dtype = nn.meta.unbox(heads['kernel']).dtype
  head = {'kernel': read('head.weight').T.astype(dtype), 'bias': read('head.bias').astype(dtype)}
  return adapted.join({'params': {'head': head}, COLLECTION: supports}, frozen)


# The supports' names here and there, and whether they are transposed.
_OFFICIAL = (
  ('A_down', 'Au', True),
  ('A_up', 'Ad', True),
  ('B_down', 'Bu', True),
  ('B_up', 'Bd', True),
  ('C_down', 'Cd', False),
  ('C_up', 'Cu', False),
  ('D', 'D', False),
  ('E', 'E', False),
)
