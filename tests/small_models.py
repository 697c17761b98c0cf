"""The smallest models that can be adapted."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Mlp(nn.Module):
  """Two linear layers, the last of which is the head; images become vectors."""

  hidden: int = 6
  classes: int = 3

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.hidden, name='fc')(x.reshape(len(x), -1))
    return nn.Dense(self.classes, name='head')(nn.gelu(x))


class Image(nn.Module):
  """A convolution and a linear layer, which is the head."""

  groups: int = 1

  @nn.compact
  def __call__(self, x):
    conv = nn.Conv(4, (2, 2), feature_group_count=self.groups, name='conv')
    return nn.Dense(2, name='fc')(conv(x))


class Block(nn.Module):
  """A block of a transformer, which drops its branches now and then."""

  drop_path: float

  @nn.compact
  def __call__(self, x, train):
    width = x.shape[-1]
    qkv = nn.Dense(3 * width, name='qkv')(nn.LayerNorm(name='norm1')(x))
    heads = (part.reshape(*x.shape[:2], 2, -1) for part in jnp.split(qkv, 3, axis=-1))
    attended = nn.dot_product_attention(*heads).reshape(x.shape)
    x += self._dropped(nn.Dense(width, name='proj')(attended), train)
    hidden = nn.gelu(nn.Dense(2 * width, name='fc1')(nn.LayerNorm(name='norm2')(x)))
    return x + self._dropped(nn.Dense(width, name='fc2')(hidden), train), None

  def _dropped(self, branch, train):
    if not (train and self.drop_path):
      return branch
    keep = jax.random.bernoulli(self.make_rng('drop_path'), 1 - self.drop_path, (len(branch), 1, 1))
    return branch * keep / (1 - self.drop_path)


class Transformer(nn.Module):
  """Scanned blocks on a class token and the numbers of an image, so many in a token; a head."""

  classes: int
  depth: int = 2
  width: int = 12
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x, train=False):
    cls = self.param('cls', nn.initializers.normal(), (1, 1, self.width))
    tokens = x.reshape(len(x), -1, self.width)
    x = jnp.concatenate([jnp.repeat(cls, len(x), 0), tokens], axis=1)
    blocks = nn.scan(
      Block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'drop_path': True},
      in_axes=nn.broadcast,
      length=self.depth,
    )
    x, _ = blocks(self.drop_path, name='blocks')(x, train)
    return nn.Dense(self.classes, name='head')(nn.LayerNorm(name='norm')(x)[:, 0])


class Decoder(nn.Module):
  """A decoder with a head of its own, or with its table as the head."""

  words: int
  tied: bool = True

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(self.words, 6, name='embed')
    x = jnp.tanh(nn.Dense(6, name='mlp')(embed(tokens)))
    return embed.attend(x) if self.tied else nn.Dense(self.words, name='head')(x)


class LiveDecoder(nnx.Module):
  """The same in NNX with its table as the head."""

  def __init__(self, words):
    rngs = nnx.Rngs(0)
    self.embed, self.mlp = nnx.Embed(words, 6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)

  def __call__(self, tokens):
    return self.embed.attend(jnp.tanh(self.mlp(self.embed(tokens))))


class LiveMlp(nnx.Module):
  """The first in NNX, with batch statistics and a random stream."""

  def __init__(self, inputs=6):
    rngs = nnx.Rngs(0)
    self.fc = nnx.Linear(inputs, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def features(self, x):
    return self.dropout(nnx.gelu(self.norm(self.fc(x))))

  def __call__(self, x):
    return self.head(self.features(x))
