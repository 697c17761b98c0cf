"""Small NNX models the way other code bases write them, none of which knows of GLoRA.

Each names where its pattern is from; `tests/peers/test_tunix_peers.py` has tunix itself. All are
tiny, and their sizes differ from axis to axis. To add a model, write it and a function decorated
with `example` that counts its kernels by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hand_count import Kernel, Kernels, NnxExample, beside, registry
from trees import normal

from glora_jax.nnx import Genome

WIDTH, HIDDEN, HEADS, CLASSES = 8, 14, 2, 3
BATCH, TIME, ROWS = 2, 5, 4


EXAMPLES, example = registry()


def activations() -> jax.Array:
  return normal(BATCH, TIME, WIDTH)


def vectors() -> jax.Array:
  return normal(ROWS, WIDTH)


def images() -> jax.Array:
  return normal(BATCH, 4, 4, 3)


def initial(rngs: nnx.Rngs, *shape: int) -> jax.Array:
  return jax.random.normal(rngs.params(), shape) / np.sqrt(WIDTH)


def made(kind: Callable[..., nnx.Module], *args) -> Callable[[], nnx.Module]:
  """What makes a model, in evaluation mode."""

  def make():
    model = kind(*args, rngs=nnx.Rngs(0))
    model.eval()
    return model

  return make


def under(prefix: str, kernels: Kernels) -> dict[str, Kernel]:
  """The kernels of a part of a model."""
  return {
    prefix + path: kernel._replace(bias=None if kernel.bias is None else prefix + kernel.bias)
    for path, kernel in kernels.items()
  }


def dense(*names: str) -> dict[str, Kernel]:
  """The kernels of `nnx.Linear` layers."""
  return {f'{name}/kernel': beside('io', f'{name}/kernel') for name in names}


# Kernels [width, heads, channels] and back, of Flax's own attention.
FLAX_ATTENTION = {
  **{f'{name}/kernel': beside('ioo', f'{name}/kernel') for name in ('query', 'key', 'value')},
  'out/kernel': beside('iio', 'out/kernel'),
}
BLIND_KEYS = r'(^|/)key$'  # a bias of keys adds to every logit alike, which softmax does not see


# A vision transformer with a convolution for patches: bonsai, jimm; a depthwise one: Mamba.


class EncoderBlock(nnx.Module):
  def __init__(self, *, rngs):
    self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      num_heads=HEADS,
      in_features=WIDTH,
      qkv_features=12,
      dropout_rate=0.1,
      deterministic=False,
      decode=False,
      rngs=rngs,
    )
    self.fc1 = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
    self.fc2 = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.norm1(x))
    return x + self.dropout(self.fc2(nnx.gelu(self.fc1(self.norm2(x)))))


ENCODER_BLOCK = {**under('attention/', FLAX_ATTENTION), **dense('fc1', 'fc2')}


class ViT(nnx.Module):
  def __init__(self, *, rngs):
    self.patches = nnx.Conv(3, WIDTH, (2, 2), (2, 2), padding='VALID', rngs=rngs)
    self.cls_token = nnx.Param(initial(rngs, 1, 1, WIDTH))
    self.pos_embeddings = nnx.Param(initial(rngs, 1, 5, WIDTH))
    self.local = nnx.Conv(WIDTH, WIDTH, (3,), feature_group_count=WIDTH, padding=1, rngs=rngs)
    self.blocks = nnx.List([EncoderBlock(rngs=rngs)])
    self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.classifier = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

  def __call__(self, images):
    patches = self.patches(images).reshape(len(images), -1, WIDTH)
    tokens = jnp.broadcast_to(self.cls_token[...], (len(images), 1, WIDTH))
    x = jnp.concatenate([tokens, patches], axis=1) + self.pos_embeddings[...]
    x = x + self.local(x)
    for block in self.blocks:
      x = nnx.remat(EncoderBlock.__call__)(block, x)
    return self.classifier(self.norm(x)[:, 0])


@example
def vit_with_its_convolutions():
  """6 layers and two convolutions, of which one has its window alone as its inputs: in = 3."""
  kernels = {
    'patches/kernel': beside('iiio', 'patches/kernel'),
    'local/kernel': beside('iio', 'local/kernel'),
    **under('blocks/0/', ENCODER_BLOCK),
  }
  return NnxExample(
    made(ViT),
    (images(),),
    kernels,
    8,
    uncovered=('pos_embeddings',),
    options={'convs': True},
    blind=BLIND_KEYS,
  )


# Lifted layers: scanned, vmapped.


class Layer(nnx.Module):
  """A linear layer, batch statistics, dropout."""

  def __init__(self, *, rngs):
    self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return nnx.gelu(self.dropout(self.norm(self.linear(x)))) + x


class ScannedLayers(nnx.Module):
  """Layers made by `nnx.vmap` and run by `nnx.scan`, stacked along an axis."""

  def __init__(self, axes, *, rngs):
    self.axes = axes

    @nnx.split_rngs(splits=3)
    @nnx.vmap(out_axes=axes, axis_size=3)
    def make_layer(rngs):
      return Layer(rngs=rngs)

    self.layers = make_layer(rngs)

  def __call__(self, x):
    @nnx.scan(in_axes=(nnx.Carry, self.axes), out_axes=nnx.Carry)
    def run(x, layer):
      return layer(x)

    return run(x, self.layers)


@example
def scanned_along_axis_1():
  axes = nnx.StateAxes({nnx.Param: 1, ...: 0})
  kernels = {'layers/linear/kernel': Kernel('iso', 'layers/linear/bias', 'os')}
  return NnxExample(made(ScannedLayers, axes), (activations(),), kernels, 3)


class Ensemble(nnx.Module):
  """Two scans beside each other."""

  def __init__(self, *, rngs):
    @nnx.split_rngs(splits=2)
    @nnx.vmap(axis_size=2)
    def make_member(rngs):
      return ScannedLayers(0, rngs=rngs)

    self.members = make_member(rngs)

  def __call__(self, x):
    return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x)


@example
def scans_in_a_vmap():
  kernels = {'members/layers/linear/kernel': Kernel('sSio', 'members/layers/linear/bias', 'sSo')}
  # Stacked vectors look like matrices where no scan says which axis is the stack.
  uncovered = ('members/layers/norm/bias', 'members/layers/norm/scale')
  return NnxExample(made(Ensemble), (activations(),), kernels, 6, uncovered=uncovered)


class OnOneInput(nnx.Module):
  """Layers that are stacked, and all run on the same input."""

  def __init__(self, *, rngs):
    make = nnx.vmap(lambda rngs: nnx.Linear(WIDTH, CLASSES, rngs=rngs))
    self.layers = nnx.split_rngs(splits=3)(make)(rngs)

  def __call__(self, x):
    return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, x)


@example
def mapped_over_one_input():
  kernels = {'layers/kernel': beside('sio', 'layers/kernel')}
  options = {'stacks': {'layers': 0}}
  return NnxExample(made(OnOneInput), (vectors(),), kernels, 3, options=options)


class Loops(nnx.Module):
  """Models side by side by `nnx.vmap`, each of which loops over the first axis of its kernel."""

  def __init__(self, size, *, rngs):
    shape = (size, size, size, size)  # layer, in, model, out
    self.loops = nnx.Dict(kernel=nnx.Param(initial(rngs, *shape)))

  def __call__(self, x):
    def run(self, x):
      for kernel in self.loops['kernel'][...]:
        x = jnp.tanh(x @ kernel)
      return x

    axes = nnx.StateAxes({(nnx.Param, Genome): 2, ...: None})
    return nnx.vmap(run, in_axes=(axes, 0))(self, x)


@example
def loops_in_a_vmap():
  """Either of two axes of the same size might be mapped over; a shape tells which."""
  kernels, options = {'loops/kernel': Kernel('Siso')}, {'heads': None}
  return NnxExample(made(Loops, 3), (normal(3, 2, 3),), kernels, 9, options=options)


# linen inside NNX: openpi's pattern.


class LinenLayer(nn.Module):
  @nn.compact
  def __call__(self, x):
    return x + nn.silu(nn.Dense(WIDTH, name='dense')(x)), None


class Linen(nn.Module):
  """Layers that are scanned, a state and a head."""

  @nn.compact
  def __call__(self, x):
    lift = {'variable_axes': {'params': 0}, 'split_rngs': {'params': True}}
    x, _ = nn.scan(LinenLayer, length=2, **lift)(name='layers')(x)
    x = nn.BatchNorm(use_running_average=False, momentum=0.5, name='norm')(x)
    return nn.Dense(WIDTH, name='head')(nn.silu(x))


class Bridged(nnx.Module):
  """A linen model in an NNX model."""

  def __init__(self, *, rngs):
    self.inner = nnx.bridge.ToNNX(Linen(), rngs=rngs)
    self.inner.lazy_init(vectors(), mutable=['batch_stats'])
    self.out = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

  def __call__(self, x):
    return self.out(self.inner(x, mutable=['batch_stats']))


@example
def linen_inside():
  kernels = {'inner/layers/dense/kernel': beside('sio', 'inner/layers/dense/kernel')}
  return NnxExample(made(Bridged), (vectors(),), kernels | dense('out'), 3)


# Ways of sharing and calling.


class Shared(nnx.Module):
  """A layer called twice, one that another module owns too, and one that decodes transposed."""

  def __init__(self, *, rngs):
    self.twice = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.layers = nnx.Sequential(self.twice, nnx.silu, nnx.Linear(WIDTH, HIDDEN, rngs=rngs))
    self.table = nnx.Dict(down=nnx.Linear(HIDDEN, WIDTH, rngs=rngs))
    self.tied = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)

  def __call__(self, x):
    x = self.table['down'](self.layers(nnx.silu(self.twice(x))))
    return nnx.silu(self.tied(x)) @ self.tied.kernel[...].T


@example
def shared_layers():
  # Of two paths of a shared module NNX keeps the first by name.
  kernels = dense('layers/layers/0', 'layers/layers/2', 'table/down')
  return NnxExample(made(Shared), (activations(),), kernels, 3, uncovered=('tied/kernel',))


class Streams(nnx.Module):
  """Takes its random streams as an argument, and has a method named `init`."""

  def __init__(self, *, rngs):
    self.fc = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
    self.out = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)
    self.dropout = nnx.Dropout(0.5)

  def init(self, x):
    return self.fc(x)

  def __call__(self, x, *, rngs, deterministic=True):
    hidden = self.dropout(nnx.silu(self.init(x)), deterministic=deterministic, rngs=rngs)
    return self.out(hidden)


@example
def streams_as_an_argument():
  kwargs = {'rngs': nnx.Rngs(dropout=1)}
  return NnxExample(made(Streams), (activations(),), dense('fc', 'out'), 2, kwargs=kwargs)


# Parameters in odd places, under odd names, and in a stack of their own.


class Matrix(nnx.Module):
  def __init__(self, *, rngs):
    self.w = nnx.Param(initial(rngs, WIDTH, HIDDEN))

  def __call__(self, x):
    return x @ self.w[...]


class Scattered(nnx.Module):
  """A bias beside another module's kernel, containers and a stack, a parameter in two places."""

  def __init__(self, *, rngs):
    self.matrix = Matrix(rngs=rngs)
    self.bias = nnx.Param(jnp.ones(HIDDEN))
    square = (HIDDEN, HIDDEN)
    self.nested = nnx.data({'up': [nnx.Param(initial(rngs, *square))]})
    self.experts = nnx.List([nnx.Param(initial(rngs, *square)) for _ in range(2)])
    self.stack = nnx.Param(initial(rngs, 2, *square))
    self.named = nnx.Dict(only=nnx.Param(initial(rngs, *square)))
    self.repeated = self.named.only

  def __call__(self, x):
    x = jnp.tanh(self.matrix(x) + self.bias)
    x = jnp.tanh(x @ self.nested['up'][0][...])
    for expert in self.experts:
      x = jnp.tanh(x @ expert.get_value())
    for number in range(2):
      x = jnp.tanh(x @ self.stack[...][number])
    for name, matrix in self.named.items():
      assert name == 'only'
      x = jnp.tanh(x @ matrix)
    return x @ self.repeated


@example
def scattered_parameters():
  kernels = {'matrix/w': Kernel('io', 'bias'), 'stack': Kernel('sio')}
  kernels |= dict.fromkeys(('nested/up/0', 'experts/0', 'experts/1', 'named/only'), Kernel('io'))
  return NnxExample(made(Scattered), (vectors(),), kernels, 7)


class OddNames(nnx.Module):
  """Names with slashes, as Haiku gives them, a parameter named like an adapter, a stack."""

  def __init__(self, *, rngs):
    up, head = nnx.Linear(WIDTH, HIDDEN, rngs=rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)
    up.glora_kernel = nnx.Param(jnp.full(HIDDEN, 2.0))
    self.mlp = nnx.Dict({'mlp/~/up': up, 'mlp/~/head': head})
    self.raw = nnx.Dict({'mix/w': nnx.Param(normal(HIDDEN, WIDTH))})
    self.stack = nnx.LinearGeneral(WIDTH, WIDTH, batch_axis={0: ROWS}, rngs=rngs)

  def __call__(self, x):
    up = self.mlp['mlp/~/up']
    x = up(self.stack(x)) * up.glora_kernel[...]
    return self.mlp['mlp/~/head'](x @ self.raw['mix/w'][...])


@example
def odd_names():
  kernels = dense('mlp/mlp/~/up') | {
    'raw/mix/w': Kernel('io'),
    'stack/kernel': beside('sio', 'stack/kernel'),
  }
  return NnxExample(made(OddNames), (vectors(),), kernels, 2 + ROWS)
