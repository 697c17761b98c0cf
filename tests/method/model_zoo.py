"""Small models the way other people write them, none of which knows of GLoRA.

Families first, then single wrappers. All are tiny (width 8, one or two blocks), so that a test may
compile every one. To add a model, write it and add an `Example`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from hand_count import Counted, Kernel, Kernels
from trees import normal, randomized

WIDTH, HIDDEN, HEADS, CLASSES = 8, 16, 2, 3
LENGTH = WIDTH  # of a scan: as long as wide, so that shapes do not say which axis is the stack


@dataclasses.dataclass(frozen=True)
class Example(Counted):
  """A model, what it is called with, and what must be found in it.

  Attributes:
    model: an unmodified Flax model.
    rows: names of its adapted layers in execution order, written down by hand.
    inputs: positional arguments of its call.
    axes: by the beginning of a path, the axes of a kernel and its bias, counted by hand; elsewhere
      a kernel has its stack first, then one axis in and one out.
  """

  model: nn.Module
  rows: tuple[str, ...]
  inputs: tuple[Any, ...] = (normal(2, WIDTH),)
  axes: Kernels = dataclasses.field(default_factory=dict)

  def variables(self, seed: int = 0) -> Any:
    """Random values for all collections, in the model's own boxes; nothing is compiled."""
    keys = {'params': jax.random.key(seed), 'dropout': jax.random.key(seed)}
    shapes = jax.eval_shape(lambda: self.model.init(keys, *self.inputs, **self.kwargs))
    drawn = randomized(shapes, seed)
    return {'params': drawn.pop('params'), **jax.tree.map(jnp.abs, drawn)}  # as variances are


def lifted(lift, *args, axis=0, **options):
  """`nn.scan` or `nn.vmap` with the layers along an axis."""
  return lift(*args, variable_axes={'params': axis}, split_rngs={'params': True}, **options)


# ViT in the manner of big_vision: scanned and rematerialized blocks, intermediate values returned.


class AttentionBlock(nn.Module):
  @nn.compact
  def __call__(self, x, deterministic):
    attention = nn.MultiHeadDotProductAttention(HEADS, dropout_rate=0.1)
    x = x + attention(x, x, deterministic=deterministic)
    return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(HIDDEN)(x))), {'attended': x}


class ScannedViT(nn.Module):
  @nn.compact
  def __call__(self, x, *, train=False):
    x, out = nn.scan(
      nn.remat(AttentionBlock, prevent_cse=False, static_argnums=(2,)),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=nn.broadcast,
      length=2,
    )(name='encoderblock')(x, not train)
    return nn.Dense(CLASSES, name='head')(x.mean(1)), out


# ResNet: batch statistics, convolutions, a neck and a head.


class StandardizedConv(nn.Conv):
  """A class of one's own, as the convolutions of BiT are."""


class ResNet(nn.Module):
  @nn.compact
  def __call__(self, images, train=True):
    x = StandardizedConv(WIDTH, (3, 3), (2, 2), use_bias=False, name='stem')(images)
    x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
    features = nn.silu(nn.Dense(WIDTH, name='neck')(x.mean((1, 2))))
    return {'features': features, 'logits': nn.Dense(CLASSES, name='head')(features)}


# Wrappers: one way of writing or lifting each, around the same two-layer block.


class Block(nn.Module):
  """fc2 is written first, so that neither names nor code order give the order of execution away."""

  def setup(self):
    self.fc2, self.fc1 = nn.Dense(WIDTH), nn.Dense(HIDDEN)

  def __call__(self, x):
    return x + self.fc2(nn.silu(self.fc1(x)))


JitDense = nn.jit(nn.Dense)  # at class level, as people do: its traces outlive one model


class LiftedLayers(nn.Module):
  """The linear layers themselves lifted, with nothing around them."""

  @nn.compact
  def __call__(self, x):
    x = nn.silu(JitDense(WIDTH, name='jitted')(x))
    x = nn.silu(nn.remat(nn.Dense)(HIDDEN, name='rematerialized')(x))
    stack = lifted(nn.vmap, nn.DenseGeneral, axis=-1, in_axes=None, out_axes=1, axis_size=2)
    return stack((2, 4), name='stacked')(x)


class User(nn.Module):
  """Calls a layer that somebody else owns."""

  layer: nn.Module

  @nn.compact
  def __call__(self, x):
    return nn.silu(self.layer(nn.Dense(WIDTH, name='own')(x)))


class Shared(nn.Module):
  """Layers of a list and a dictionary, called backwards, one of them also by another module."""

  def setup(self):
    self.layers = [nn.Dense(WIDTH), nn.Dense(WIDTH, use_bias=False)]
    self.table = {'b': nn.Sequential([nn.Dense(WIDTH), nn.silu]), 'a': nn.Dense(WIDTH)}
    self.user = User(self.layers[1])

  def __call__(self, x):
    x = nn.silu(self.layers[0](nn.silu(self.layers[1](x))))
    x = self.table['a'](self.table['b'](x))
    return self.user(nn.silu(x))


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


class Einsums(nn.Module):
  """As Gemma writes them, with the output first, with a stack and a bias in another order."""

  @nn.compact
  def __call__(self, x):
    einsum = functools.partial(nn.Einsum, kernel_init=nn.initializers.normal())
    x = einsum((2, WIDTH, 3), 'btd,ndh->btnh', name='heads')(x).reshape(2, 5, 6)
    x = nn.Einsum((7, 6), use_bias=False, name='at_call')(nn.silu(x), 'btd,fd->btf')
    return einsum((7, 5, 4), 'btd,dtf->bft', name='stack')(x)


class BoxedStep(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    kernel, bias = nn.initializers.lecun_normal(), nn.initializers.zeros
    up = nn.with_partitioning(kernel, ('embed', 'mlp'))
    down = nn.with_logical_partitioning(kernel, ('mlp', 'embed'))
    bias = nn.with_partitioning(bias, ('mlp',))
    y = nn.silu(nn.Dense(HIDDEN, kernel_init=up, bias_init=bias, name='up')(x))
    return x + nn.Dense(WIDTH, kernel_init=down, name='down')(y), None


class Boxed(nn.Module):
  """Parameters boxed with the names of mesh axes, or of logical ones, in a scan.

  The bias of `down` has no box.
  """

  @nn.compact
  def __call__(self, x):
    names = {nn.PARTITION_NAME: 'layers'}
    scan = lifted(nn.scan, BoxedStep, axis=1, length=LENGTH, metadata_params=names)
    return scan(name='steps')(x, None)[0]


class TwoTower(nn.Module):
  """Has no __call__: `score` is the whole model, `embed` a part of it."""

  def setup(self):
    self.right, self.left = nn.Dense(WIDTH), nn.Dense(WIDTH)

  def embed(self, x):
    return nn.silu(self.left(x))

  def score(self, x, y):
    return self.embed(x) @ self.right(y).T


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


# Models that do not go through `self.param` for their parameters, or are hardly a model.


class ReadingStep(nn.Module):
  """Decodes with the transposed kernel of the encoder, of which it asks the shape and the rows."""

  @nn.compact
  def __call__(self, x, _):
    encoder = nn.Dense(HIDDEN, name='encoder')
    hidden = nn.silu(encoder(x))
    kernel = encoder.variables['params']['kernel']
    return x + hidden @ jnp.stack([*kernel]).reshape(kernel.shape).T, None


class Reading(nn.Module):
  @nn.compact
  def __call__(self, x):
    return lifted(nn.scan, ReadingStep, length=2)(name='steps')(x, None)[0]


class Normalized(nn.Module):
  """A layer whose kernel a module of Flax's normalizes, by its path, and a plain one."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(WIDTH, name='second')(nn.silu(nn.WeightNorm(nn.Dense(4, name='first'))(x)))


class Mapped(nn.Module):
  """A layer whose parameters are changed before it is called."""

  @nn.compact
  def __call__(self, x):
    changed = functools.partial(jax.tree.map, jnp.tril)
    layer = nn.map_variables(nn.Dense, 'params', changed, init=self.is_initializing())
    return layer(WIDTH, use_bias=False, name='lower')(x)


class OwnDense(nn.Module):
  """A layer with a product of its own, as MaxText's are."""

  @nn.compact
  def __call__(self, x, _):
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (WIDTH, WIDTH))
    return nn.silu(x @ kernel.astype(x.dtype)), None


class Own(nn.Module):
  @nn.compact
  def __call__(self, x):
    return lifted(nn.scan, OwnDense, axis=1, length=LENGTH)(name='layers')(x, None)[0]


class GainDense(nn.Dense):
  """A Dense with a learned gain on its output."""

  @nn.compact
  def __call__(self, inputs):
    return super().__call__(inputs) * self.param('gain', nn.initializers.ones, (self.features,))


class Conditional(nn.Dense):
  """A linear layer with a name of its own for its inputs, and arguments besides."""

  @nn.compact
  def __call__(self, x, deterministic, mask=None):
    return super().__call__(x)


class Customized(nn.Module):
  @nn.compact
  def __call__(self, x):
    def halved(*args, **kwargs):
      return 0.5 * jax.lax.dot_general(*args, **kwargs)

    x = nn.silu(nn.Dense(WIDTH, dot_general=halved, name='own_product')(x))
    x = nn.silu(GainDense(HIDDEN, name='subclass')(x))
    x = nn.silu(nn.DenseGeneral(WIDTH, name='by_keyword')(inputs=x))
    x = nn.silu(Conditional(WIDTH, name='own_arguments')(x=x, deterministic=True))
    return Conditional(WIDTH, name='by_position')(x, True, None)


MASK = jnp.array([[1, 1, 0], [1, 0, 1]])
CONTEXT = {'text': {'tokens': normal(2, 3, HIDDEN)}}
BRANCHES = [
  f'steps/branches/{fc}[{i},{j}]' for i in range(2) for j in range(4) for fc in ('fc1', 'fc2')
]
ATTENTION = [f'MultiHeadDotProductAttention_0/{name}' for name in ('query', 'key', 'value', 'out')]
GROUPS = [f'scanned/layer[{i},{j}]' for i in range(4) for j in range(2)]

EXAMPLES = {
  'scanned_vit': Example(
    ScannedViT(),
    tuple(
      f'encoderblock/{layer}[{i}]' for i in range(2) for layer in (*ATTENTION, 'Dense_1', 'Dense_0')
    ),
    (normal(2, 4, WIDTH),),
    # Keys add to every logit of a query alike through their bias, which softmax does not see.
    blind='/key',
    axes={
      f'encoderblock/{layer}': Kernel('Siio' if layer.endswith('out') else 'Sioo')
      for layer in ATTENTION
    },
  ),
  'resnet': Example(ResNet(), ('neck',), (normal(2, 6, 6, 3),), kwargs={'train': False}),
  'convolutions': Example(
    ResNet(),
    ('stem', 'neck'),
    (normal(2, 6, 6, 3),),
    axes={'stem': Kernel('iiio')},
    kwargs={'train': False},
    options={'convs': True},
  ),
  'lifted_layers': Example(
    LiftedLayers(),
    ('jitted', 'rematerialized', 'stacked[0]', 'stacked[1]'),
    axes={'stacked': Kernel('iooS', bias_axes='ooS')},
  ),
  'called_twice': Example(
    Shared(), ('layers_1', 'layers_0', 'table_b/layers_0', 'table_a', 'user/own')
  ),
  'scan_of_vmap': Example(
    Nested(),
    ('steps/mix[0]', *BRANCHES[:8], 'steps/mix[1]', *BRANCHES[8:]),
    axes={
      'steps/mix': Kernel('ioS', bias_axes='oS'),
      'steps/branches': Kernel('sioS', bias_axes='soS'),
    },
  ),
  'dense_general': Example(
    ManyAxes(),
    ('pairs', 'triple', 'grouped[0]', 'grouped[1]', *GROUPS),
    (normal(2, 2, 4),),
    axes={
      'pairs': Kernel('iioo'),
      'triple': Kernel('iiioo'),
      'grouped': Kernel('Sioo'),
      'scanned': Kernel('sSiioo', bias_axes='sSoo'),
    },
  ),
  'einsums': Example(
    Einsums(),
    ('heads', 'at_call', *(f'stack[{i}]' for i in range(5))),
    (normal(2, 5, WIDTH),),
    axes={
      'heads': Kernel('oio'),
      'at_call': Kernel('oi'),
      'stack': Kernel('iSo', bias_axes='oS'),
    },
  ),
  'with_partitioning': Example(
    Boxed(),
    tuple(f'steps/{layer}[{i}]' for i in range(LENGTH) for layer in ('up', 'down')),
    axes={'steps': Kernel('iSo', bias_axes='oS')},
  ),
  'other_method': Example(
    TwoTower(),
    ('left', 'right'),
    (normal(2, WIDTH), normal(4, WIDTH, seed=1)),
    kwargs={'method': 'score'},
  ),
  'keyword_inputs': Example(
    Conditioned(),
    ('project', 'condition', 'last'),
    (normal(2, 3, WIDTH),),
    kwargs={'mask': MASK, 'context': CONTEXT, 'strength': 0.5},
  ),
  'kernel_read_from_variables': Example(Reading(), ('steps/encoder[0]', 'steps/encoder[1]')),
  'normalized': Example(Normalized(), ('second',), uncovered=('first/kernel',)),
  'mapped': Example(Mapped(), ('lower',)),
  'own_product': Example(
    Own(), tuple(f'layers[{i}]' for i in range(LENGTH)), axes={'layers': Kernel('iSo')}
  ),
  'customized_layers': Example(
    Customized(), ('own_product', 'subclass', 'by_keyword', 'own_arguments', 'by_position')
  ),
}
