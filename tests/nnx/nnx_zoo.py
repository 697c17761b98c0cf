"""Small NNX models the way other code bases write them, none of which knows of GLoRA.

Each names where its pattern is from. All are tiny, and their sizes differ from axis to axis. To add
a model, write it and a function decorated with `example` that counts its kernels by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hand_count import Kernel, Kernels, NnxExample, attend, beside, registry
from trees import normal

VOCABULARY, WIDTH, HIDDEN, HEADS, CHANNELS, CLASSES, EXPERTS = 11, 8, 14, 2, 6, 3, 4
BATCH, TIME = 2, 5


EXAMPLES, example = registry()


def tokens() -> jax.Array:
  """So many that every expert has some."""
  return jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (4, TIME)))


def activations() -> jax.Array:
  return normal(BATCH, TIME, WIDTH)


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


def dense(*names: str, bias: bool = True) -> dict[str, Kernel]:
  """The kernels of `nnx.Linear` layers."""
  paths = [f'{name}/kernel' for name in names]
  return {path: beside('io', path) if bias else Kernel('io') for path in paths}


# Kernels [width, heads, channels] and back, of Flax's own attention.
FLAX_ATTENTION = {
  **{f'{name}/kernel': beside('ioo', f'{name}/kernel') for name in ('query', 'key', 'value')},
  'out/kernel': beside('iio', 'out/kernel'),
}
BLIND_KEYS = r'(^|/)key$'  # a bias of keys adds to every logit alike, which softmax does not see


# tunix: an Einsum of its own with `self.w`, an embedding read and transposed, layers in a list.


class Einsum(nnx.Module):
  def __init__(self, equation, shape, *, rngs):
    self.equation, self.shape = equation, shape
    self.w = nnx.Param(initial(rngs, *shape))

  @jax.named_scope('einsum')
  def __call__(self, x):
    return jnp.einsum(self.equation, x, self.w[...])


class Embedder(nnx.Module):
  def __init__(self, *, rngs):
    self.input_embedding = nnx.Param(initial(rngs, VOCABULARY, WIDTH))

  def encode(self, x):
    return self.input_embedding[...][(x,)] * np.sqrt(WIDTH)

  def decode(self, x):
    return jnp.dot(x, self.input_embedding[...].T)


class SeparateAttention(nnx.Module):
  def __init__(self, *, rngs):
    self.q_proj = Einsum('BTD,DNH->BTNH', (WIDTH, HEADS, CHANNELS), rngs=rngs)
    self.k_proj = Einsum('BSD,DKH->BSKH', (WIDTH, 1, CHANNELS), rngs=rngs)
    self.v_proj = Einsum('BSD,DKH->BSKH', (WIDTH, 1, CHANNELS), rngs=rngs)
    self.o_proj = Einsum('BTNH,NHD->BTD', (HEADS, CHANNELS, WIDTH), rngs=rngs)
    self.q_norm = nnx.RMSNorm(CHANNELS, rngs=rngs)

  def __call__(self, x):
    return self.o_proj(attend(self.q_norm(self.q_proj(x)), self.k_proj(x), self.v_proj(x)))


class GatedMLP(nnx.Module):
  def __init__(self, *, rngs):
    linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
    self.gate_proj, self.up_proj = linear(WIDTH, HIDDEN), linear(WIDTH, HIDDEN)
    self.down_proj = linear(HIDDEN, WIDTH)

  def __call__(self, x):
    return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
  def __init__(self, attention, mlp, *, rngs):
    self.input_layernorm = nnx.RMSNorm(WIDTH, rngs=rngs)
    self.attn = attention(rngs=rngs)
    self.post_attention_layernorm = nnx.RMSNorm(WIDTH, rngs=rngs)
    self.mlp = mlp(rngs=rngs)

  def __call__(self, x):
    x = x + self.attn(self.input_layernorm(x))
    return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nnx.Module):
  """A language model of one kind of layers, whose output layer is its embedding or its own."""

  def __init__(self, attention, mlp, tied, depth=1, *, rngs):
    self.embedder = Embedder(rngs=rngs)
    self.layers = nnx.List([DecoderLayer(attention, mlp, rngs=rngs) for _ in range(depth)])
    self.final_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
    if not tied:
      self.lm_head = Einsum('BTD,DV->BTV', (WIDTH, VOCABULARY), rngs=rngs)

  def __call__(self, tokens):
    x = self.embedder.encode(tokens)
    for layer in self.layers:
      x = layer(x)
    x = self.final_norm(x)
    return self.lm_head(x) if hasattr(self, 'lm_head') else self.embedder.decode(x)


SEPARATE = {
  'attn/q_proj/w': Kernel('ioo'),
  'attn/k_proj/w': Kernel('ioo'),
  'attn/v_proj/w': Kernel('ioo'),
  'attn/o_proj/w': Kernel('iio'),
}
GATED = dense('mlp/gate_proj', 'mlp/up_proj', 'mlp/down_proj', bias=False)


def decoder(attention, mlp, tied, kernels, rows, depth=1):
  every = {}
  for i in range(depth):
    every |= under(f'layers/{i}/', kernels)
  embedding = ('embedder/input_embedding',)
  return NnxExample(
    made(Decoder, attention, mlp, tied, depth),
    (tokens(),),
    every,
    rows,
    uncovered=embedding,
  )


@example
def own_einsum():
  """Qwen3 and Llama3 of tunix: 7 rows a layer."""
  return decoder(SeparateAttention, GatedMLP, False, SEPARATE | GATED, 14, depth=2)


class StackedAttention(nnx.Module):
  def __init__(self, *, rngs):
    self.q_einsum = Einsum('BTD,NDH->BTNH', (HEADS, WIDTH, CHANNELS), rngs=rngs)
    self.kv_einsum = Einsum('BSD,CKDH->CBSKH', (2, 1, WIDTH, CHANNELS), rngs=rngs)
    self.attn_vec_einsum = Einsum('BTNH,NHD->BTD', (HEADS, CHANNELS, WIDTH), rngs=rngs)

  def __call__(self, x):
    return self.attn_vec_einsum(attend(self.q_einsum(x), *self.kv_einsum(x)))


STACKED = {
  'attn/q_einsum/w': Kernel('oio'),
  'attn/kv_einsum/w': Kernel('ooio'),
  'attn/attn_vec_einsum/w': Kernel('iio'),
}


@example
def stacked_keys_and_values():
  """Gemma of tunix, tied: 6 rows a layer."""
  return decoder(StackedAttention, GatedMLP, True, STACKED | GATED, 6)


@example
def stacked_keys_and_values_split():
  """The same with a row for the keys and one for the values."""
  base = stacked_keys_and_values()
  kernels = {**base.kernels, 'layers/0/attn/kv_einsum/w': Kernel('soio')}
  return dataclasses.replace(base, kernels=kernels, rows=7, options={'split': {'kv_einsum': 0}})


# Experts as raw parameters [expert, in, out].


class Experts(nnx.Module):
  def __init__(self, *, rngs):
    self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
    self.gate_proj = nnx.Param(initial(rngs, EXPERTS, WIDTH, HIDDEN))
    self.up_proj = nnx.Param(initial(rngs, EXPERTS, WIDTH, HIDDEN))
    self.down_proj = nnx.Param(initial(rngs, EXPERTS, HIDDEN, WIDTH))


class ExpertsInALoop(Experts):
  """tunix on a CPU: one expert after the other, taken out of the stack by number."""

  def __call__(self, x):
    weight, index = jax.lax.top_k(jax.nn.softmax(self.router(x)), 2)
    gates = (jax.nn.one_hot(index, EXPERTS) * weight[..., None]).sum(-2)
    results = []
    for i in range(EXPERTS):
      gate = jnp.astype(self.gate_proj[...][i], x.dtype)
      hidden = nnx.silu(jnp.einsum('BTD,DF->BTF', x, gate))
      hidden = hidden * jnp.einsum('BTD,DF->BTF', x, self.up_proj[...][i])
      results.append(jnp.einsum('BTF,FD->BTD', hidden, self.down_proj[...][i]))
    return jnp.einsum('BTED,BTE->BTD', jnp.stack(results, axis=2), gates)


class ExpertsByEinsum(Experts):
  def __call__(self, x):
    gates = jax.nn.softmax(self.router(x))
    hidden = nnx.silu(jnp.einsum('btd,edf->btef', x, self.gate_proj[...]))
    hidden = hidden * jnp.einsum('btd,edf->btef', x, self.up_proj[...])
    results = jnp.einsum('btef,efd->bted', hidden, self.down_proj[...])
    return jnp.einsum('bted,bte->btd', results, gates)


class ExpertsByRaggedProducts(Experts):
  """tunix and MaxText on an accelerator: tokens sorted by expert, one grouped product."""

  def __call__(self, x):
    flat = x.reshape(-1, x.shape[-1])
    scores = jax.nn.softmax(self.router(flat))
    weight, index = jax.lax.top_k(scores, 2)
    expert = index.reshape(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=EXPERTS)
    grouped = functools.partial(jax.lax.ragged_dot, group_sizes=sizes)
    chosen = jnp.repeat(flat, 2, axis=0)[order]
    hidden = nnx.silu(grouped(chosen, self.gate_proj[...])) * grouped(chosen, self.up_proj[...])
    results = grouped(hidden, self.down_proj[...])[jnp.argsort(order)]
    results = results.reshape(*weight.shape, -1) * weight[..., None]
    return results.sum(1).reshape(x.shape)


EXPERTS_FOUND = {
  **dense('mlp/router', bias=False),
  **{f'mlp/{name}_proj': Kernel('sio') for name in ('gate', 'up', 'down')},
}


@example
def experts_in_a_loop():
  """Qwen3 with experts of tunix: 4 rows of attention, the router, 3 for each expert."""
  return decoder(SeparateAttention, ExpertsInALoop, True, SEPARATE | EXPERTS_FOUND, 17)


@example
def experts_by_ragged_products():
  return decoder(SeparateAttention, ExpertsByRaggedProducts, True, SEPARATE | EXPERTS_FOUND, 17)


@example
def experts_by_einsum():
  """Experts that all see the same tokens are outputs of one layer, but for the last product's."""
  experts = {
    **EXPERTS_FOUND,
    'mlp/gate_proj': Kernel('oio'),
    'mlp/up_proj': Kernel('oio'),
  }
  return decoder(SeparateAttention, ExpertsByEinsum, True, SEPARATE | experts, 11)


# Flax's own example: nnx.Einsum for attention.


class FlaxGemmaAttention(StackedAttention):
  def __init__(self, *, rngs):
    self.q_einsum = nnx.Einsum('BTD,NDH->BTNH', (HEADS, WIDTH, CHANNELS), rngs=rngs)
    self.kv_einsum = nnx.Einsum('BSD,CKDH->CBSKH', (2, 1, WIDTH, CHANNELS), rngs=rngs)
    self.attn_vec_einsum = nnx.Einsum(
      'BTNH,NHD->BTD', (HEADS, CHANNELS, WIDTH), (WIDTH,), rngs=rngs
    )


@example
def flax_gemma():
  kernels = {
    'attn/q_einsum/kernel': Kernel('oio'),
    'attn/kv_einsum/kernel': Kernel('ooio'),
    'attn/attn_vec_einsum/kernel': beside('iio', 'attn/attn_vec_einsum/kernel'),
  }
  return decoder(FlaxGemmaAttention, GatedMLP, True, kernels | GATED, 6)


# A vision transformer with a convolution for patches: bonsai, jimm; Mamba's parts.


class EncoderBlock(nnx.Module):
  def __init__(self, *, rngs):
    self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      num_heads=HEADS, in_features=WIDTH, qkv_features=12, dropout_rate=0.1, decode=False, rngs=rngs
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
    self.blocks = nnx.List([EncoderBlock(rngs=rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
    self.classifier = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

  def __call__(self, images):
    patches = self.patches(images).reshape(len(images), -1, WIDTH)
    tokens = jnp.broadcast_to(self.cls_token[...], (len(images), 1, WIDTH))
    x = jnp.concatenate([tokens, patches], axis=1) + self.pos_embeddings[...]
    for block in self.blocks:
      x = block(x)
    return self.classifier(self.norm(x)[:, 0])


VIT = under('blocks/0/', ENCODER_BLOCK) | under('blocks/1/', ENCODER_BLOCK)


@example
def vit_with_its_convolution():
  """12 layers and the patches' convolution; the classifier is the head."""
  kernels = {'patches/kernel': beside('iiio', 'patches/kernel')} | VIT

  return NnxExample(
    made(ViT),
    (images(),),
    kernels,
    13,
    uncovered=('pos_embeddings',),
    options={'convs': True},
    blind=BLIND_KEYS,
  )


@example
def vit_without_its_convolution():
  base = vit_with_its_convolution()
  uncovered = (*base.uncovered, 'patches/kernel')
  return dataclasses.replace(base, kernels=VIT, rows=12, uncovered=uncovered, options={})


class GatedConvolution(nnx.Module):
  """Mamba2's layers: one projection for everything, a depthwise convolution, a gate."""

  def __init__(self, *, rngs):
    self.in_proj = nnx.Linear(WIDTH, 2 * HIDDEN, use_bias=False, rngs=rngs)
    self.conv = nnx.Conv(HIDDEN, HIDDEN, (3,), feature_group_count=HIDDEN, padding=1, rngs=rngs)
    self.out_proj = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)

  def __call__(self, x):
    z, x = jnp.split(self.in_proj(x), 2, axis=-1)
    return self.out_proj(nnx.silu(self.conv(x)) * nnx.silu(z))


@example
def depthwise_convolution():
  """It is a layer of its window alone: in = 3."""
  kernels = dense('in_proj', 'out_proj', bias=False)
  kernels |= {'conv/kernel': beside('iio', 'conv/kernel')}
  options = {'convs': True}
  return NnxExample(made(GatedConvolution), (activations(),), kernels, 3, options=options)


# Lifted layers: scanned, vmapped, rematerialized.


class Layer(nnx.Module):
  """A linear layer, batch statistics, dropout."""

  def __init__(self, *, rngs):
    self.linear = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return nnx.gelu(self.dropout(self.norm(self.linear(x)))) + x


class ScannedLayers(nnx.Module):
  """Layers made by `nnx.vmap` and run by `nnx.scan`."""

  def __init__(self, depth, *, rngs):
    @nnx.split_rngs(splits=depth)
    @nnx.vmap(axis_size=depth)
    def make_layer(rngs):
      return Layer(rngs=rngs)

    self.layers = make_layer(rngs)

  def __call__(self, x):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
      return layer(x)

    return run(x, self.layers)


@example
def scanned_layers():
  """Flax's toy of a scan over layers."""

  kernels = {'layers/linear/kernel': beside('sio', 'layers/linear/kernel')}
  return NnxExample(made(ScannedLayers, 2), (activations(),), kernels, 2)


class VmappedBranches(nnx.Module):
  def __init__(self, *, rngs):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(axis_size=3)
    def make_branch(rngs):
      return EncoderBlock(rngs=rngs)

    self.branches = make_branch(rngs)
    self.out = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

  def __call__(self, x):
    @nnx.vmap(in_axes=(0, None))
    def run(branch, x):
      return branch(x)

    return self.out(run(self.branches, x).mean(0))


@example
def vmapped_branches():
  stacked = {
    path: kernel._replace(axes='s' + kernel.axes)
    for path, kernel in under('branches/', ENCODER_BLOCK).items()
  }
  stacked |= {'branches/attention/out/kernel': beside('siio', 'branches/attention/out/kernel')}
  return NnxExample(
    made(VmappedBranches),
    (activations(),),
    stacked | dense('out'),
    19,
    # Stacked vectors look like matrices where no scan says which axis is the stack.
    uncovered=tuple(f'branches/norm{i}/{name}' for i in (1, 2) for name in ('bias', 'scale')),
    blind=r'/key\[',
  )


class Rematerialized(nnx.Module):
  def __init__(self, *, rngs):
    self.block = EncoderBlock(rngs=rngs)
    self.last = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.remat(EncoderBlock.__call__)(self.block, x))


@example
def rematerialized():
  kernels = under('block/', ENCODER_BLOCK) | dense('last')
  return NnxExample(made(Rematerialized), (activations(),), kernels, 7, blind=BLIND_KEYS)


# linen inside NNX: openpi's pattern.


class LinenMlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(WIDTH)(nn.gelu(nn.Dense(HIDDEN)(x)))


class LinenBlock(nn.Module):
  @nn.compact
  def __call__(self, x, deterministic=True):
    y = nn.LayerNorm()(x)
    x = x + nn.MultiHeadDotProductAttention(HEADS, deterministic=deterministic)(y, y)
    return x + LinenMlp(name='mlp')(nn.LayerNorm()(x)), None


class SigLIP(nn.Module):
  """An image encoder whose blocks are scanned, but for the last."""

  @nn.compact
  def __call__(self, images):
    x = nn.Conv(WIDTH, (2, 2), (2, 2), padding='VALID', name='embedding')(images)
    x = x.reshape(len(x), -1, WIDTH)
    x = x + self.param('pos_embedding', nn.initializers.normal(), (1, x.shape[1], WIDTH))
    scan = nn.scan(
      LinenBlock,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=nn.broadcast,
      length=2,
    )
    x, _ = scan(name='encoderblock')(x, True)
    return LinenBlock(name='last')(x)[0]


class VisionLanguage(nnx.Module):
  """An image encoder of linen inside of NNX, two projections beside it."""

  def __init__(self, *, rngs):
    self.img = nnx.bridge.ToNNX(SigLIP(), rngs=rngs)
    self.img.lazy_init(images())
    self.state_proj = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.action_out_proj = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

  def __call__(self, images, state):
    x = self.img(images).mean(1)
    return self.action_out_proj(nnx.silu(x + self.state_proj(state)))


def linen_block(prefix: str, stack: str = '') -> dict[str, Kernel]:
  attention = under('MultiHeadDotProductAttention_0/', FLAX_ATTENTION)
  block = attention | dense('mlp/Dense_0', 'mlp/Dense_1')
  return {
    path: kernel._replace(axes=stack + kernel.axes) for path, kernel in under(prefix, block).items()
  }


@example
def linen_blocks_inside():
  kernels = linen_block('img/encoderblock/', 's') | linen_block('img/last/')
  return NnxExample(
    made(VisionLanguage),
    (images(), normal(BATCH, WIDTH)),
    kernels | dense('state_proj', 'action_out_proj'),
    20,
    uncovered=('img/embedding/kernel', 'img/pos_embedding'),
    blind=r'/key(\[|$)',
  )


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
