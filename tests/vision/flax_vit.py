"""vision_transformer's and big_vision's ViT, as far as names and computation go.

It is what their own code builds, and so what their files hold.
"""

import flax.linen as nn
import jax.numpy as jnp

from glora_jax.vision.models.formats.flax_npz import sincos_2d


class Block(nn.Module):
  classic: bool

  @nn.compact
  def __call__(self, x, _):
    # Their code counts all layers of a block, or those of a kind.
    attention, norm, mlp = (1, 2, 3) if self.classic else (0, 1, 0)
    y = nn.LayerNorm(name='LayerNorm_0')(x)
    name = f'MultiHeadDotProductAttention_{attention}'
    x = x + nn.MultiHeadDotProductAttention(num_heads=3, name=name)(y, y)
    y = nn.LayerNorm(name=f'LayerNorm_{norm}')(x)
    return x + Mlp(name=f'MlpBlock_{mlp}')(y), None


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.gelu(nn.Dense(20)(x))
    return nn.Dense(12)(x)


class Encoder(nn.Module):
  classic: bool
  scanned: bool

  @nn.compact
  def __call__(self, x):
    if self.classic:
      x = Positions(name='posembed_input')(x)
    if self.scanned:
      block = nn.scan(Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)
      x, _ = block(self.classic, name='encoderblock')(x, None)
    else:
      for i in range(2):
        x, _ = Block(self.classic, name=f'encoderblock_{i}')(x, None)
    return nn.LayerNorm(name='encoder_norm')(x)


class Positions(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + self.param('pos_embedding', nn.initializers.normal(), (1, x.shape[1], 12))


class FlaxViT(nn.Module):
  """vision_transformer's (`classic`) or big_vision's ViT of width 12, depth 2, 3 heads, patch 8."""

  classic: bool = False
  scanned: bool = False
  cls: bool = True
  sincos: bool = False
  pre_logits: bool = False
  head: bool = True

  @nn.compact
  def __call__(self, images):
    x = nn.Conv(12, (8, 8), strides=(8, 8), padding='VALID', name='embedding')(images)
    x = x.reshape(x.shape[0], -1, 12)
    if self.sincos:
      x = x + sincos_2d((1, x.shape[1], 12), False)
    elif not self.classic:
      x = x + self.param('pos_embedding', nn.initializers.normal(), (1, x.shape[1], 12))
    if self.cls:
      cls = self.param('cls', nn.initializers.normal(), (1, 1, 12))
      x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, 12)), x], axis=1)
    x = Encoder(self.classic, self.scanned, name='Transformer')(x)
    x = x[:, 0] if self.cls else x.mean(axis=1)
    if self.pre_logits:
      x = nn.tanh(nn.Dense(12, name='pre_logits')(x))
    return nn.Dense(4, name='head')(x) if self.head else x
