"""Files of the official PyTorch code: the adapter and the head of a timm ViT's supernet."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from glora_jax.files import Path
from glora_jax.method.adapted import Adapted
from glora_jax.method.adapter import COLLECTION
from glora_jax.tree import get
from glora_jax.vision.models.checkpoint import read_checkpoint, require_tensors
from glora_jax.vision.models.formats.timm import FORMAT as TIMM
from glora_jax.vision.models.vit import ViT

# Names in the official code, which has A and B transposed.
OFFICIAL_NAMES = {
  'A_down': 'Au',
  'A_up': 'Ad',
  'B_down': 'Bu',
  'B_up': 'Bd',
  'C_down': 'Cd',
  'C_up': 'Cu',
  'D': 'D',
  'E': 'E',
}


def load_official_supernet(path: Path, adapted: Adapted, params: Any) -> dict[str, Any]:
  """Reads a file of the official PyTorch code, for the base that it was trained on.

  The file has the support tensors of every linear layer of a timm ViT, and the head. The official
  base is `ViT-B_16.npz` as timm computes it: load that with `activation='gelu'`.

  Args:
    path: path of the `.pt` file (needs PyTorch, and is read with `weights_only=True`), or of its
      tensors as safetensors or npz.
    adapted: the ViT of `models/vit.py`, adapted with shared storage; its largest rank must be that
      of the file.
    params: parameters of the base, with a head of the file's number of classes, which is replaced.

  Returns:
    Variables for `adapted.apply`.

  Raises:
    ValueError: tensors are missing, unexpected or misshaped; the message names all.

  Example:
    The names and shapes in a file, at rank 2 of a ViT of width 4 with one block:

    >>> import os, tempfile
    >>> import glora_jax
    >>> model = ViT(num_classes=3, patch_size=4, width=4, depth=1, num_heads=1)
    >>> images = np.zeros((1, 4, 4, 3), np.float32)
    >>> tensors = {'head.weight': np.ones((3, 4)), 'head.bias': np.ones(3)}
    >>> for layer, fan_in, fan_out in [
    ...   ('attn.qkv', 4, 12), ('attn.proj', 4, 4), ('mlp.fc1', 4, 16), ('mlp.fc2', 16, 4)
    ... ]:
    ...   shapes = {
    ...     'Au': (2, fan_in), 'Ad': (fan_out, 2), 'Bu': (2, fan_in), 'Bd': (fan_out, 2),
    ...     'Cd': (fan_in, 2), 'Cu': (2, 1), 'D': (fan_out,), 'E': (fan_out,),
    ...   }
    ...   for name, shape in shapes.items():
    ...     tensors[f'blocks.0.{layer}.{name}'] = np.ones(shape)
    >>> adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace(ranks=(2,)))
    >>> params = jax.jit(model.init)(jax.random.key(0), images)['params']
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   np.savez(os.path.join(folder, 'supernet.npz'), **tensors)
    ...   variables = load_official_supernet(os.path.join(folder, 'supernet.npz'), adapted, params)
    >>> variables['glora']['blocks']['mlp']['fc2']['A_down'].shape
    (1, 16, 2)
  """
  is_classifier = isinstance(adapted.model, ViT) and adapted.model.num_classes
  if not is_classifier or not all(layer.space.shared for layer in adapted.spec):
    raise ValueError(
      'An official supernet needs the ViT of glora_jax.vision.models.vit, with a head (num_classes '
      'above 0), adapted with a shared SearchSpace.'
    )
  path, _, arrays, *_ = read_checkpoint(path)
  trainable, frozen = adapted.split(adapted.init(jax.random.key(0), params))
  adapter = jax.tree.map(
    lambda value: np.zeros(value.shape, value.dtype), nn.meta.unbox(trainable[COLLECTION])
  )
  places = _places(adapted, adapter)
  head = nn.meta.unbox(trainable['params']['head'])
  kernel, bias = head['kernel'], head['bias']
  require_tensors(path, arrays, {**places, 'head.weight': kernel.T, 'head.bias': bias})
  for name, place in places.items():
    place[...] = arrays[name]
  new_head = {
    'kernel': arrays['head.weight'].T.astype(kernel.dtype),
    'bias': arrays['head.bias'].astype(kernel.dtype),
  }
  return adapted.join({'params': {'head': new_head}, COLLECTION: adapter}, frozen)


def _places(adapted: Adapted, adapter: Any) -> dict[str, np.ndarray]:
  """The part of the adapter that each tensor of the file fills, by its name."""
  layer_names = TIMM.modules(adapted.model)
  places = {}
  for group in adapted.places.groups:
    module = get(adapter, group.path)
    (pattern,) = layer_names['/'.join(group.site.kernel_path[:-1])]
    for index, _ in group.slices():
      for ours, theirs in OFFICIAL_NAMES.items():
        if ours in module:
          place = module[ours][index]
          places[f'{pattern.format(*index)}.{theirs}'] = place.T if ours[0] in 'AB' else place
  return places
