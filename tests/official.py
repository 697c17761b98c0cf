"""Values of the official PyTorch implementation, in our names and layout; float64."""

import jax
import numpy as np
from places import GOLDEN

# Modules of a block, by the part that they are in.
LAYERS = {'attn': ('qkv', 'proj'), 'mlp': ('fc1', 'fc2')}


def supports_from_official(tensors):
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
  values['supports'] = supports_from_official(values)
  return values


def load_vit():
  """A ViT: params and supports of our scanned ViT, x, genomes, logits, param_count, its shape.

  `unstacked` holds (params, supports) of its blocks one by one.
  """
  with np.load(GOLDEN / 'official_vit.npz') as file:
    values = dict(file)
  state = _below(values, 'param/')
  depth = 1 + max(int(name.split('.')[1]) for name in state if name.startswith('blocks.'))
  blocks = [_block(_below(state, f'blocks.{number}.')) for number in range(depth)]
  supports = [_block_supports(_below(state, f'blocks.{number}.')) for number in range(depth)]
  patch = state['patch_embed.proj.weight']
  return {
    'params': {
      'embed': {'kernel': patch.transpose(2, 3, 1, 0), 'bias': state['patch_embed.proj.bias']},
      'cls': state['cls_token'],
      'pos_embed': state['pos_embed'],
      'blocks': _stack(blocks),
      'norm': _norm(_below(state, 'norm.')),
      'head': _linear(_below(state, 'head.')),
    },
    'glora': {'blocks': _stack(supports)},
    'unstacked': (blocks, supports),
    'x': values['x_nchw'].transpose(0, 2, 3, 1),
    'genomes': values['genomes'],
    'logits': values['logits'],
    'param_count': values['param_count'],
    'shape': {
      'patch_size': patch.shape[-1],
      'width': patch.shape[0],
      'depth': depth,
      'num_heads': int(values['heads']),
    },
  }


def _below(tensors, prefix):
  """The tensors whose names begin with the prefix, without it."""
  return {
    name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
  }


def _linear(tensors):
  return {'kernel': tensors['weight'].T, 'bias': tensors['bias']}


def _norm(tensors):
  return {'scale': tensors['weight'], 'bias': tensors['bias']}


def _block(tensors):
  linears = {
    part: {name: _linear(_below(tensors, f'{part}.{name}.')) for name in names}
    for part, names in LAYERS.items()
  }
  return linears | {name: _norm(_below(tensors, f'{name}.')) for name in ('norm1', 'norm2')}


def _block_supports(tensors):
  return {
    part: {name: supports_from_official(_below(tensors, f'{part}.{name}.')) for name in names}
    for part, names in LAYERS.items()
  }


def _stack(trees):
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
