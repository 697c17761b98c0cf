"""Small models the way other people write them, none of which knows of GLoRA.

Families first, then single wrappers. All are tiny (width 8, one or two blocks), so that a test may
compile every one. To add a model, write it and a function decorated with `example`. Convolutions
are plain layers in these models: the ResNet's 1x1 convolutions and the patch embeddings are where
to extend.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hand_count import attend, registry
from trees import normal

WIDTH, HIDDEN, HEADS, CLASSES, VOCABULARY = 8, 16, 2, 3, 11
LENGTH = WIDTH  # of a scan: as long as wide, so that shapes do not say which axis is the stack


@dataclasses.dataclass(frozen=True)
class Example:
  """A model, what it is called with, and what must be found in it.

  Attributes:
    model: an unmodified Flax model.
    rows: names of its adapted layers in execution order, written down by hand.
    inputs: positional arguments of its call.
    kwargs: keyword arguments of its call.
    stack_axes: by the beginning of a path, where the stack axes of the whole kernel and bias are,
      outermost first; elsewhere they lead.
    sizes: (in, out) of layers where the kernel's shape alone does not tell.
    blind: paths (a regular expression) of layers whose bias cannot change the output.
    tolerance: largest difference of equal outputs, relative to max|y|.
  """

  model: nn.Module
  rows: tuple[str, ...]
  inputs: tuple[Any, ...] = (normal(2, WIDTH),)
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  stack_axes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = dataclasses.field(
    default_factory=dict
  )
  sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  blind: str = r'(?!)'
  tolerance: float = 1e-5

  def variables(self, seed: int = 0) -> Any:
    """Random values for all collections, in the model's own boxes; nothing is compiled."""
    keys = {'params': jax.random.key(seed), 'dropout': jax.random.key(seed)}
    shapes = jax.eval_shape(lambda: self.model.init(keys, *self.inputs, **self.kwargs))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
      value = rng.normal(
        0, 1 / np.sqrt(max(WIDTH, leaf.size // max(leaf.shape, default=1))), leaf.shape
      )
      name = next(part.key for part in reversed(path) if isinstance(part, jax.tree_util.DictKey))
      return jnp.asarray(1 + np.abs(value) if name in ('scale', 'var') else value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


EXAMPLES, example = registry()


def tokens() -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, 5)))


# Keys add to every logit of a query alike through their bias, which softmax does not see.
KEYS = r'(^|/)(key|k_proj)(\[|$)'
ATTENTION = ('query', 'key', 'value', 'out')
FLAX_BLOCK = (
  *(f'MultiHeadDotProductAttention_0/{name}' for name in ATTENTION),
  'MlpBlock_0/Dense_0',
  'MlpBlock_0/Dense_1',
)


def lifted(lift, *args, axis=0, **options):
  """`nn.scan` or `nn.vmap` with the layers along an axis."""
  return lift(*args, variable_axes={'params': axis}, split_rngs={'params': True}, **options)


# ViT in the manner of vision_transformer: compact modules, a train flag, dropout, class token,
# numbered blocks.


class MlpBlock(nn.Module):
  dropout_rate: float = 0.1

  @nn.compact
  def __call__(self, x, *, deterministic):
    width = x.shape[-1]
    x = nn.gelu(nn.Dense(HIDDEN)(x))
    x = nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)
    x = nn.Dense(width)(x)
    return nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)


class PreNormBlock(nn.Module):
  @nn.compact
  def __call__(self, x, *, deterministic):
    y = nn.LayerNorm()(x)
    y = nn.MultiHeadDotProductAttention(
      HEADS, dropout_rate=0.1, broadcast_dropout=False, deterministic=deterministic
    )(y, y)
    x = x + nn.Dropout(0.1)(y, deterministic=deterministic)
    return x + MlpBlock()(nn.LayerNorm()(x), deterministic=deterministic)


class Transformer(nn.Module):
  depth: int

  @nn.compact
  def __call__(self, x, *, train):
    x = x + self.param('posembed', nn.initializers.normal(0.02), (1, *x.shape[1:]))
    for index in range(self.depth):
      x = PreNormBlock(name=f'encoderblock_{index}')(x, deterministic=not train)
    return nn.LayerNorm(name='encoder_norm')(x)


class CompactViT(nn.Module):
  @nn.compact
  def __call__(self, images, *, train):
    x = nn.Conv(WIDTH, (2, 2), strides=(2, 2), padding='VALID', name='embedding')(images)
    x = x.reshape(len(x), -1, WIDTH)
    cls = self.param('cls', nn.initializers.zeros, (1, 1, WIDTH))
    x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
    x = Transformer(1, name='Transformer')(x, train=train)[:, 0]
    x = nn.tanh(nn.Dense(WIDTH, name='pre_logits')(x))
    return nn.Dense(CLASSES, name='head', kernel_init=nn.initializers.zeros)(x)


@example
def vit_compact():
  rows = (*(f'Transformer/encoderblock_0/{layer}' for layer in FLAX_BLOCK), 'pre_logits')
  return Example(CompactViT(), rows, (normal(2, 4, 4, 3),), {'train': False}, blind=KEYS)


class SetupBlock(nn.Module):
  def setup(self):
    # The order of these lines is not the order of the calls.
    self.fc2, self.fc1 = nn.Dense(WIDTH), nn.Dense(HIDDEN)
    self.norm2, self.norm1 = nn.LayerNorm(), nn.LayerNorm()
    self.dropout = nn.Dropout(0.1)
    self.attention = nn.MultiHeadDotProductAttention(HEADS)

  def __call__(self, x, train=False):
    y = self.norm1(x)
    x = x + self.dropout(self.attention(y, y), deterministic=not train)
    return x + self.dropout(self.fc2(nn.gelu(self.fc1(self.norm2(x)))), deterministic=not train)


class SetupViT(nn.Module):
  def setup(self):
    self.head = nn.Dense(CLASSES)
    self.blocks = [SetupBlock()]
    self.embed = nn.Dense(WIDTH)
    self.cls = self.param('cls', nn.initializers.zeros, (1, 1, WIDTH))

  def __call__(self, patches, train=False):
    x = self.embed(patches)
    x = jnp.concatenate([jnp.broadcast_to(self.cls, (len(x), 1, WIDTH)), x], axis=1)
    for block in self.blocks:
      x = block(x, train)
    return self.head(x[:, 0])


@example
def vit_setup():
  layers = (*(f'attention/{name}' for name in ATTENTION), 'fc1', 'fc2')
  rows = ('embed', *(f'blocks_0/{layer}' for layer in layers))
  return Example(SetupViT(), rows, (normal(2, 4, WIDTH),), blind=KEYS)


# ViT in the manner of big_vision: scanned and rematerialized blocks, intermediate values returned,
# pooling by choice.


class ScannedBlock(nn.Module):
  @nn.compact
  def __call__(self, x, deterministic=True):
    out = {}
    y = nn.LayerNorm()(x)
    y = out['sa'] = nn.MultiHeadDotProductAttention(
      HEADS, kernel_init=nn.initializers.xavier_uniform()
    )(y, y)
    x = out['+sa'] = x + nn.Dropout(0.1)(y, deterministic)
    y = out['mlp'] = MlpBlock(0.0)(nn.LayerNorm()(x), deterministic=deterministic)
    x = out['+mlp'] = x + nn.Dropout(0.1)(y, deterministic)
    return x, out


class PoolingHead(nn.Module):
  """Attention pooling: one learned query asks all tokens."""

  @nn.compact
  def __call__(self, x):
    probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]))
    x = nn.MultiHeadDotProductAttention(HEADS)(jnp.tile(probe, (len(x), 1, 1)), x)
    return (x + MlpBlock(0.0)(nn.LayerNorm()(x), deterministic=True))[:, 0]


class ScannedViT(nn.Module):
  pool: str
  remat: bool
  depth: int = 2

  @nn.compact
  def __call__(self, images, *, train=False):
    x = nn.Conv(WIDTH, (2, 2), (2, 2), padding='VALID', name='embedding')(images)
    x = x.reshape(len(x), -1, WIDTH)
    x = x + self.param('pos_embedding', nn.initializers.normal(0.3), (1, x.shape[1], WIDTH))
    block = (
      nn.remat(ScannedBlock, prevent_cse=False, static_argnums=(2,)) if self.remat else ScannedBlock
    )
    x, out = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=nn.broadcast,
      length=self.depth,
    )(name='encoderblock')(x, not train)
    x = nn.LayerNorm(name='encoder_norm')(x)
    x = out['pooled'] = PoolingHead()(x) if self.pool == 'map' else x.mean(axis=1)
    return nn.Dense(CLASSES, name='head', kernel_init=nn.initializers.zeros)(x), out


def _scanned_vit(pool, remat, last=()):
  rows = [f'encoderblock/{layer}[{i}]' for i in range(2) for layer in FLAX_BLOCK]
  return Example(ScannedViT(pool, remat), (*rows, *last), (normal(2, 4, 4, 3),), blind=KEYS)


@example
def scanned_vit_global_average():
  return _scanned_vit('gap', True)


@example
def scanned_vit_attention_pooling():
  return _scanned_vit('map', False, [f'PoolingHead_0/{layer}' for layer in FLAX_BLOCK])


# Decoder-only language model: RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied
# embeddings, no biases.


def rotary(x):
  """Rotates pairs of channels of [batch, time, heads, channels] by angles that grow with time."""
  half = x.shape[-1] // 2
  angles = jnp.arange(x.shape[1])[:, None] / 100.0 ** (jnp.arange(half) / half)
  cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
  left, right = x[..., :half], x[..., half:]
  return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class GroupedQueryAttention(nn.Module):
  num_heads: int
  num_kv_heads: int

  @nn.compact
  def __call__(self, x):
    channels = x.shape[-1] // self.num_heads
    project = functools.partial(nn.DenseGeneral, use_bias=False)
    q = rotary(project((self.num_heads, channels), name='q_proj')(x))
    k = rotary(project((self.num_kv_heads, channels), name='k_proj')(x))
    v = project((self.num_kv_heads, channels), name='v_proj')(x)
    return project(x.shape[-1], axis=(-2, -1), name='o_proj')(attend(q, k, v))


class SwiGLU(nn.Module):
  @nn.compact
  def __call__(self, x):
    project = functools.partial(nn.Dense, use_bias=False)
    gate = nn.silu(project(HIDDEN, name='gate_proj')(x))
    return project(x.shape[-1], name='down_proj')(gate * project(HIDDEN, name='up_proj')(x))


class LanguageModel(nn.Module):
  depth: int = 1

  @nn.compact
  def __call__(self, tokens):
    embed = nn.Embed(VOCABULARY, WIDTH, name='embed')
    x = embed(tokens)
    for i in range(self.depth):
      x = x + GroupedQueryAttention(4, 2, name=f'layers_{i}_attention')(nn.RMSNorm()(x))
      x = x + SwiGLU(name=f'layers_{i}_mlp')(nn.RMSNorm()(x))
    return embed.attend(nn.RMSNorm()(x))


@example
def language_model():
  sizes = {
    'layers_0_attention/q_proj': (8, 8),
    'layers_0_attention/k_proj': (8, 4),
    'layers_0_attention/v_proj': (8, 4),
    'layers_0_attention/o_proj': (8, 8),
  }
  rows = (*sizes, *(f'layers_0_mlp/{name}_proj' for name in ('gate', 'up', 'down')))
  return Example(LanguageModel(), rows, (tokens(),), sizes=sizes)


# ResNet: batch statistics, convolutions, a squeeze-and-excitation gate, a neck and a head.


class Bottleneck(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    y = nn.relu(norm()(nn.Conv(WIDTH // 2, (1, 1), use_bias=False)(x)))
    y = nn.relu(norm()(nn.Conv(WIDTH // 2, (3, 3), use_bias=False)(y)))
    y = norm()(nn.Conv(WIDTH, (1, 1), use_bias=False)(y))
    gate = nn.silu(nn.Dense(WIDTH // 2, name='squeeze')(y.mean((1, 2))))
    y = y * nn.sigmoid(nn.Dense(WIDTH, name='excite')(gate))[:, None, None]
    return nn.silu(x + y)


class ResNet(nn.Module):
  @nn.compact
  def __call__(self, images, train=True):
    x = nn.Conv(WIDTH, (3, 3), (2, 2), use_bias=False, name='stem')(images)
    x = nn.relu(nn.BatchNorm(not train)(x))
    x = Bottleneck()(x, train)
    features = nn.silu(nn.Dense(WIDTH, name='neck')(x.mean((1, 2))))
    return {'features': features, 'logits': nn.Dense(CLASSES, name='head')(features)}


@example
def resnet():
  rows = ('Bottleneck_0/squeeze', 'Bottleneck_0/excite', 'neck')
  return Example(ResNet(), rows, (normal(2, 6, 6, 3),), {'train': False})


# Mixture of experts: a stack of layers by nn.vmap, weighted by a router.


class MixtureOfExperts(nn.Module):
  num_experts: int = 2

  @nn.compact
  def __call__(self, x):
    gates = nn.softmax(nn.Dense(self.num_experts, name='router')(x))
    experts = functools.partial(lifted, nn.vmap, out_axes=-2, axis_size=self.num_experts)
    hidden = nn.silu(experts(nn.Dense, in_axes=None)(HIDDEN, name='up')(x))
    return jnp.einsum(
      'btec,bte->btc', experts(nn.Dense, in_axes=-2)(WIDTH, name='down')(hidden), gates
    )


class SparseModel(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x + MixtureOfExperts(name='moe')(nn.LayerNorm()(x))
    return nn.Dense(CLASSES, name='head')(x)


@example
def mixture_of_experts():
  layers = ('router', 'up[0]', 'up[1]', 'down[0]', 'down[1]')
  rows = tuple(f'moe/{layer}' for layer in layers)
  return Example(SparseModel(), rows, (normal(2, 5, WIDTH),))


# BERT, CLIP and Wav2Vec2 in the manner of transformers' Flax models: modules made in `setup` under
# numbered names, heads split by hand, norms before or after, a pooler, two towers, sound.


class SplitAttention(nn.Module):
  def setup(self):
    self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Dense(WIDTH) for _ in range(4))

  def __call__(self, x, mask=None):
    split = (*x.shape[:2], HEADS, WIDTH // HEADS)
    q, k, v = (each(x).reshape(split) for each in (self.q_proj, self.k_proj, self.v_proj))
    weights = nn.dot_product_attention_weights(q, k, mask=mask)
    return self.out_proj(jnp.einsum('bhqk,bkhd->bqhd', weights, v).reshape(x.shape))


class NumberedLayer(nn.Module):
  norm_first: bool

  def setup(self):
    self.attention = SplitAttention()
    self.intermediate, self.output = nn.Dense(HIDDEN), nn.Dense(WIDTH)
    self.before, self.after = nn.LayerNorm(), nn.LayerNorm()

  def __call__(self, x, mask=None):
    if self.norm_first:
      x = x + self.attention(self.before(x), mask)
      return x + self.output(nn.gelu(self.intermediate(self.after(x))))
    x = self.before(x + self.attention(x, mask))
    return self.after(x + self.output(nn.gelu(self.intermediate(x))))


NUMBERED = (
  *(f'attention/{name}' for name in ('q_proj', 'k_proj', 'v_proj', 'out_proj')),
  'intermediate',
  'output',
)


class Bert(nn.Module):
  def setup(self):
    self.words, self.types = nn.Embed(VOCABULARY, WIDTH), nn.Embed(2, WIDTH)
    self.layer = [NumberedLayer(norm_first=False)]
    self.pooler = nn.Dense(WIDTH)
    self.classifier = nn.Dense(CLASSES)

  def __call__(self, tokens, types, mask):
    x = self.words(tokens) + self.types(types)
    x = self.layer[0](x, mask[:, None, None])
    return self.classifier(jnp.tanh(self.pooler(x[:, 0])))


@example
def bert():
  mask = jnp.arange(5) < jnp.array([[5], [3]])
  rows = (*(f'layer_0/{name}' for name in NUMBERED), 'pooler')
  return Example(Bert(), rows, (tokens(), tokens() % 2, mask), blind=KEYS)


class Clip(nn.Module):
  def setup(self):
    self.patches = nn.Conv(WIDTH, (4, 4), strides=(4, 4), use_bias=False)
    self.words = nn.Embed(VOCABULARY, WIDTH)
    self.vision, self.text = NumberedLayer(norm_first=True), NumberedLayer(norm_first=True)
    self.visual_projection, self.text_projection = (
      nn.Dense(HIDDEN, use_bias=False) for _ in range(2)
    )
    self.logit_scale = self.param('logit_scale', nn.initializers.ones, ())

  def __call__(self, images, tokens):
    x = self.patches(images).reshape(len(images), -1, WIDTH)
    image = self.visual_projection(self.vision(x).mean(1))
    text = self.text_projection(self.text(self.words(tokens), nn.make_causal_mask(tokens))[:, -1])
    image, text = (each / jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (image, text))
    return self.logit_scale * image @ text.T


@example
def clip():
  vision, text = ([f'{tower}/{name}' for name in NUMBERED] for tower in ('vision', 'text'))
  rows = (*vision, 'visual_projection', *text, 'text_projection')
  return Example(Clip(), rows, (normal(2, 8, 8, 3), tokens()), blind=KEYS)


class Wav2Vec2(nn.Module):
  def setup(self):
    self.conv_layers = [nn.Conv(WIDTH, (4,), strides=(2,)), nn.Conv(WIDTH, (2,), strides=(2,))]
    self.feature_projection = nn.Dense(WIDTH)
    self.pos_conv = nn.Conv(WIDTH, (3,), feature_group_count=2)
    self.layers = [NumberedLayer(norm_first=False)]
    self.lm_head = nn.Dense(VOCABULARY)

  def __call__(self, sound):
    x = sound[..., None]
    for conv in self.conv_layers:
      x = nn.gelu(conv(x))
    x = self.feature_projection(x)
    return self.lm_head(self.layers[0](x + nn.gelu(self.pos_conv(x))))


@example
def wav2vec2():
  rows = ('feature_projection', *(f'layers_0/{name}' for name in NUMBERED))
  return Example(Wav2Vec2(), rows, (normal(2, 24),), blind=KEYS)


# Wrappers: one way of writing or lifting each, around the same two-layer block.


class Block(nn.Module):
  """fc2 is written first, so that neither names nor code order give the order of execution away."""

  def setup(self):
    self.fc2, self.fc1 = nn.Dense(WIDTH), nn.Dense(HIDDEN)

  def __call__(self, x):
    return x + self.fc2(nn.silu(self.fc1(x)))


class Step(Block):
  """The block as `nn.scan` wants it."""

  def __call__(self, x, _):
    return super().__call__(x), None


def block_rows(*paths: str, stack: tuple[int, ...] = ()) -> tuple[str, ...]:
  """The layers of blocks, or of stacks of them."""
  ends = [str([*index]).replace(' ', '') if index else '' for index in np.ndindex(stack)]
  return tuple(f'{path}/{fc}{end}' for path in paths for end in ends for fc in ('fc1', 'fc2'))


class Chain(nn.Module):
  """Blocks of a kind one after the other, and a head."""

  kind: type[nn.Module]
  depth: int = 2

  @nn.compact
  def __call__(self, x):
    for i in range(self.depth):
      x = self.kind(name=f'block_{i}')(x)
    return nn.Dense(CLASSES, name='head')(x)


JitBlock = nn.jit(Block)  # at class level, as people do: its traces outlive one model


@example
def class_level_jit():
  return Example(Chain(JitBlock), block_rows('block_0', 'block_1'))


@example
def remat():
  return Example(Chain(nn.remat(Block), depth=1), block_rows('block_0'))


JitDense = nn.jit(nn.Dense)


class LiftedLayers(nn.Module):
  """The linear layers themselves lifted, with nothing around them."""

  @nn.compact
  def __call__(self, x):
    x = nn.silu(JitDense(WIDTH, name='jitted')(x))
    x = nn.silu(nn.remat(nn.Dense)(HIDDEN, name='rematerialized')(x))
    stack = lifted(nn.vmap, nn.DenseGeneral, axis=-1, in_axes=None, out_axes=1, axis_size=2)
    return stack((2, 4), name='stacked')(x)


@example
def lifted_layers():
  rows = ('jitted', 'rematerialized', 'stacked[0]', 'stacked[1]')
  axes, sizes = {'stacked': ((3,), (2,))}, {'stacked[1]': (HIDDEN, 8)}
  return Example(LiftedLayers(), rows, stack_axes=axes, sizes=sizes)


class Listed(nn.Module):
  """Modules made in setup, in a list and a dictionary, called backwards."""

  def setup(self):
    self.layers = [nn.Dense(WIDTH), nn.Dense(HIDDEN, use_bias=False)]
    self.table = {'b': nn.Sequential([nn.Dense(WIDTH), nn.silu]), 'a': nn.Dense(WIDTH)}

  def __call__(self, x):
    x = nn.silu(self.layers[0](nn.silu(self.layers[1](x))))
    return self.table['a'](self.table['b'](x))


@example
def made_in_setup():
  return Example(Listed(), ('layers_1', 'layers_0', 'table_b/layers_0', 'table_a'))


class User(nn.Module):
  """Calls a layer that somebody else owns."""

  layer: nn.Module

  @nn.compact
  def __call__(self, x):
    return nn.silu(self.layer(nn.Dense(WIDTH, name='own')(x)))


class Shared(nn.Module):
  @nn.compact
  def __call__(self, x):
    shared = nn.Dense(WIDTH, name='shared')
    x = nn.Dense(WIDTH, name='between')(nn.silu(shared(x)))
    x = nn.silu(shared(x))
    return User(shared, name='user')(x)


@example
def called_twice():
  return Example(Shared(), ('shared', 'between', 'user/own'))


class Scanned(nn.Module):
  """Third-party style: the scan lists params and nothing else."""

  axis: int = 0
  length: int = LENGTH

  @nn.compact
  def __call__(self, x):
    scan = lifted(nn.scan, Step, axis=self.axis, length=self.length)
    x, _ = scan(name='blocks')(x, None)
    return nn.Dense(CLASSES, name='head')(x)


def _scanned(axis, kernel_axis, bias_axis):
  rows, axes = block_rows('blocks', stack=(LENGTH,)), ((kernel_axis,), (bias_axis,))
  return Example(Scanned(axis), rows, stack_axes={'blocks': axes})


@example
def scan_axis_0():
  return _scanned(0, 0, 0)


@example
def scan_axis_1():
  return _scanned(1, 1, 1)


@example
def scan_axis_last():
  return _scanned(-1, 2, 1)


class Broadcast(nn.Module):
  """One block applied three times by a scan."""

  @nn.compact
  def __call__(self, x):
    scan = nn.scan(Step, variable_broadcast='params', split_rngs={'params': False}, length=3)
    return scan(name='block')(x, None)[0]


@example
def scan_broadcast():
  return Example(Broadcast(), block_rows('block'))


class TwoScans(nn.Module):
  @nn.compact
  def __call__(self, x):
    scan = lifted(nn.scan, Step, length=2)
    x, _ = scan(name='second_by_name')(x, None)
    x, _ = scan(name='first_by_name')(x, None)
    return x


@example
def two_scans():
  return Example(TwoScans(), block_rows('second_by_name', 'first_by_name', stack=(2,)))


class Vmapped(nn.Module):
  @nn.compact
  def __call__(self, x):
    branches = lifted(nn.vmap, Block, in_axes=None, axis_size=2)
    return branches(name='branches')(x)


@example
def vmap():
  return Example(Vmapped(), block_rows('branches', stack=(2,)))


class Branches(nn.Module):
  """The step of a scan, in which a stack of blocks is mixed."""

  @nn.compact
  def __call__(self, x, _):
    branches = lifted(nn.vmap, Block, in_axes=None, axis_size=4)
    x = branches(name='branches')(nn.Dense(WIDTH, name='mix')(x)).mean(0)
    return x, None


class Nested(nn.Module):
  @nn.compact
  def __call__(self, x):
    scan = lifted(nn.scan, Branches, axis=-1, length=2)
    return scan(name='steps')(x, None)[0]


@example
def scan_of_vmap():
  branches = block_rows('steps/branches', stack=(2, 4))
  rows = ('steps/mix[0]', *branches[:8], 'steps/mix[1]', *branches[8:])
  axes = {'steps/mix': ((2,), (1,)), 'steps/branches': ((3, 0), (2, 0))}
  return Example(Nested(), rows, stack_axes=axes)


class RematScanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.remat_scan(Block, lengths=(2, 4))(name='blocks')(x)


@example
def remat_scan():
  return Example(RematScanned(), block_rows('blocks', stack=(2, 4)))


class FunctionScan(nn.Module):
  """Lifts functions, not classes."""

  @nn.compact
  def __call__(self, x):
    def step(module, carry):
      return (module(carry), None)

    body = Block(name='block')
    x, _ = lifted(nn.scan, step, length=2)(body, x)
    return nn.remat(lambda module, y: module(y))(nn.Dense(WIDTH, name='last'), x)


@example
def function_scan():
  return Example(FunctionScan(), (*block_rows('block', stack=(2,)), 'last'))


class Recurrent(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.RNN(nn.SimpleCell(WIDTH), name='rnn')(x)


@example
def recurrent():
  return Example(Recurrent(), ('SimpleCell_0/i', 'SimpleCell_0/h'), (normal(2, 4, WIDTH),))


class Branching(nn.Module):
  """One of two layers by `nn.cond`, then the other."""

  def setup(self):
    self.right, self.left = nn.Dense(WIDTH), nn.Dense(WIDTH)

  def __call__(self, x, first):
    if self.is_initializing():
      return self.right(self.left(x))

    def choose(first, x):
      return nn.cond(
        first, lambda model, x: model.left(x), lambda model, x: model.right(x), self, x
      )

    return choose(~first, choose(first, x))


@example
def cond():
  return Example(Branching(), ('left', 'right'), (normal(2, WIDTH), jnp.array(False)))


class ManyAxes(nn.Module):
  """Several axes in and out, a leading batch axis of layers, and both inside a scan."""

  @nn.compact
  def __call__(self, x):
    x = nn.silu(nn.DenseGeneral((2, 2), axis=(-2, -1), name='pairs')(x))
    x = x[:, None] + jnp.arange(2.0)[:, None, None]
    x = nn.DenseGeneral((2, 8), axis=(-3, -1, -2), use_bias=False, name='triple')(x)
    groups = jnp.moveaxis(x, -2, 0)  # [group, batch, channel]
    groups = nn.silu(nn.DenseGeneral((2, 4), axis=-1, batch_dims=0, name='grouped')(groups))
    scan = lifted(nn.scan, GroupStep, axis=1, length=4)
    return scan(name='scanned')(groups, None)[0]


class GroupStep(nn.Module):
  @nn.compact
  def __call__(self, groups, _):
    y = nn.DenseGeneral((2, 4), axis=(-2, -1), batch_dims=(0,), name='layer')(groups)
    return groups + nn.silu(y), None


@example
def dense_general():
  scanned = [f'scanned/layer[{i},{j}]' for i in range(4) for j in range(2)]
  rows = ('pairs', 'triple', 'grouped[0]', 'grouped[1]', *scanned)
  sizes = {'pairs': (8, 4), 'triple': (8, 16), 'grouped[1]': (8, 8), 'scanned/layer[2,1]': (8, 8)}
  axes = {'scanned': ((1, 0), (1, 0))}
  return Example(ManyAxes(), rows, (normal(2, 2, 4),), stack_axes=axes, sizes=sizes)


class LowPrecision(nn.Module):
  @nn.compact
  def __call__(self, x):
    dense = functools.partial(nn.Dense, param_dtype=jnp.bfloat16)
    x = nn.silu(dense(HIDDEN, dtype=jnp.float32, name='fc1')(x))
    return dense(WIDTH, dtype=jnp.float32, use_bias=False, name='fc2')(x)


@example
def bfloat16_params():
  return Example(LowPrecision(), ('fc1', 'fc2'))


class BoxedStep(nn.Module):
  box: Callable[..., Any]

  @nn.compact
  def __call__(self, x, _):
    kernel, bias = nn.initializers.lecun_normal(), nn.initializers.zeros
    y = nn.Dense(
      HIDDEN,
      kernel_init=self.box(kernel, ('embed', 'mlp')),
      bias_init=self.box(bias, ('mlp',)),
      name='up',
    )(x)
    return x + nn.Dense(WIDTH, kernel_init=self.box(kernel, ('mlp', 'embed')), name='down')(
      nn.silu(y)
    ), None


class Boxed(nn.Module):
  """Parameters boxed with the names of mesh axes (or logical ones), in a scan.

  The bias of `down` has no box.
  """

  box: Callable[..., Any]

  @nn.compact
  def __call__(self, x):
    names = {nn.PARTITION_NAME: 'layers'}
    scan = lifted(nn.scan, BoxedStep, axis=1, length=2, metadata_params=names)
    return scan(self.box, name='steps')(x, None)[0]


def _boxed(box):
  rows = tuple(f'steps/{layer}[{i}]' for i in range(2) for layer in ('up', 'down'))
  return Example(Boxed(box), rows, stack_axes={'steps': ((1,), (1,))})


@example
def with_partitioning():
  return _boxed(nn.with_partitioning)


@example
def with_logical_partitioning():
  return _boxed(nn.with_logical_partitioning)


class TwoTower(nn.Module):
  """Has no __call__: `score` is the whole model, `embed` a part of it."""

  def setup(self):
    self.right, self.left = nn.Dense(WIDTH), nn.Dense(WIDTH)

  def embed(self, x):
    return nn.silu(self.left(x))

  def score(self, x, y):
    return self.embed(x) @ self.right(y).T


@example
def other_method():
  return Example(
    TwoTower(), ('left', 'right'), (normal(2, WIDTH), normal(4, WIDTH, seed=1)), {'method': 'score'}
  )


class Conditioned(nn.Module):
  """Extra keyword inputs: arrays, a nested dictionary of them, a number and flags."""

  @nn.compact
  def __call__(self, x, *, mask, context=None, strength=1.0, train=False, activation='silu'):
    x = nn.Dense(WIDTH, name='project')(x) * mask[..., None]
    if context is not None:
      x = x + strength * nn.Dense(WIDTH, name='condition')(context['text']['tokens'])
    return nn.Dropout(0.5, deterministic=not train)(
      getattr(nn, activation)(nn.Dense(WIDTH, name='last')(x))
    )


@example
def keyword_inputs():
  mask, context = jnp.array([[1, 1, 0], [1, 0, 1]]), {'text': {'tokens': normal(2, 3, HIDDEN)}}
  kwargs = {'mask': mask, 'context': context, 'strength': 0.5}
  return Example(Conditioned(), ('project', 'condition', 'last'), (normal(2, 3, WIDTH),), kwargs)


class Regularized(nn.Module):
  """Dropout and batch statistics."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.silu(nn.BatchNorm(not train)(nn.Dense(HIDDEN, name='fc1')(x)))
    x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(WIDTH, name='fc2')(x)


@example
def dropout_and_batch_norm():
  return Example(Regularized(), ('fc1', 'fc2'), (normal(4, WIDTH),))


# Models that do not go through `self.param` for their parameters, or are hardly a model.


class TiedByReading(nn.Module):
  """A language model that applies its output layer to the embedding table, out of the variables."""

  def setup(self):
    self.block, self.wte, self.lm_head = (
      Block(),
      nn.Embed(VOCABULARY, WIDTH),
      nn.Dense(VOCABULARY, use_bias=False),
    )

  def __call__(self, tokens):
    x = self.block(self.wte(tokens))
    table = self.wte.variables['params']['embedding']
    return self.lm_head.apply({'params': {'kernel': table.T}}, x)


@example
def embedding_read_from_variables():
  return Example(TiedByReading(), block_rows('block'), (jnp.array([[1, 2, 3]]),))


class TiedAutoencoder(nn.Module):
  """Decodes with the transposed kernel of the encoder."""

  @nn.compact
  def __call__(self, x):
    encoder = nn.Dense(HIDDEN, name='encoder')
    return nn.silu(encoder(x)) @ encoder.variables['params']['kernel'].T


@example
def kernel_read_from_variables():
  return Example(TiedAutoencoder(), ('encoder',))


class CalledByKeyword(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.DenseGeneral(WIDTH, name='second')(
      inputs=nn.silu(nn.Dense(WIDTH, name='first')(inputs=x))
    )


@example
def called_by_keyword():
  return Example(CalledByKeyword(), ('first', 'second'))


class GainDense(nn.Dense):
  """A Dense with a learned gain on its output."""

  @nn.compact
  def __call__(self, inputs):
    return super().__call__(inputs) * self.param('gain', nn.initializers.ones, (self.features,))


class Customized(nn.Module):
  @nn.compact
  def __call__(self, x):
    def halved(*args, **kwargs):
      return 0.5 * jax.lax.dot_general(*args, **kwargs)

    x = nn.silu(nn.Dense(WIDTH, dot_general=halved, name='own_product')(x))
    return GainDense(WIDTH, name='subclass')(x)


@example
def customized_layers():
  return Example(Customized(), ('own_product', 'subclass'))
