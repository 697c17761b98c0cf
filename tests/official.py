"""Values of the official PyTorch implementation, in our names and layout; float64."""

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from places import GOLDEN

# Modules of a block, by the part that they are in.
LAYERS = {'attn': ('qkv', 'proj'), 'mlp': ('fc1', 'fc2')}


def adapter_from_official(tensors):
  """One layer's supports.

  `Au` is `A_down` transposed and `Ad` is `A_up` transposed, likewise B; `Cd` and `Cu` are as they
  are.
  """
  return {
    'A_down': tensors['Au'].T,
    'A_up': tensors['Ad'].T,
    'B_down': tensors['Bu'].T,
    'B_up': tensors['Bd'].T,
    'C_down': tensors['Cd'],
    'C_up': tensors['Cu'],
    'D': tensors['D'],
    'E': tensors['E'],
  }


def load_layer():
  """One linear layer: kernel, bias, supports, x, genomes, y."""
  with np.load(GOLDEN / 'official_layer.npz') as file:
    values = dict(file)
  values['kernel'] = values.pop('weight').T
  values['supports'] = adapter_from_official(values)
  return values


def load_vit():
  """A ViT: params and supports of our scanned ViT, x, genomes, logits, param_count, its shape."""
  with np.load(GOLDEN / 'official_vit.npz') as file:
    values = dict(file)
  named = {name: value for name, value in values.items() if name.startswith('param/')}
  state = unflatten_dict({name.removeprefix('param/'): x for name, x in named.items()}, sep='.')
  blocks = [state['blocks'][str(number)] for number in range(len(state['blocks']))]
  patch = state['patch_embed']['proj']
  params = [_params(block) for block in blocks]
  adapter = [
    {
      part: {name: adapter_from_official(block[part][name]) for name in names}
      for part, names in LAYERS.items()
    }
    for block in blocks
  ]
  return {
    'params': {
      'embed': {'kernel': patch['weight'].transpose(2, 3, 1, 0), 'bias': patch['bias']},
      'cls': state['cls_token'],
      'pos_embed': state['pos_embed'],
      'blocks': _stack(params),
      'norm': _params(state['norm']),
      'head': _params(state['head']),
    },
    'glora': {'blocks': _stack(adapter)},
    'x': values['x_nchw'].transpose(0, 2, 3, 1),
    'genomes': values['genomes'],
    'logits': values['logits'],
    'param_count': values['param_count'],
    'shape': {
      'patch_size': patch['weight'].shape[-1],
      'width': patch['weight'].shape[0],
      'depth': len(blocks),
      'num_heads': int(values['heads']),
    },
  }


def _params(module):
  """The parameters of linear layers, norms, and modules of such."""
  if 'weight' not in module:
    return {name: _params(inner) for name, inner in module.items()}
  name = 'kernel' if module['weight'].ndim == 2 else 'scale'
  return {name: module['weight'].T, 'bias': module['bias']}


def _stack(trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
