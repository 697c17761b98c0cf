"""Models of other code bases in tiny sizes, whose kernels were counted by hand.

Each function imports its code base, so that a missing one skips its own tests alone.
"""

import importlib.util
import os
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from hand_count import FunctionExample, Kernel, by_name, registry
from trees import normal, randomized

DEPTH, WIDTH, HIDDEN, HEADS, KV_HEADS, CHANNELS, VOCABULARY = 2, 8, 14, 2, 1, 6, 17

EXAMPLES, example = registry()


# tunix, whose package as a whole loads trainers and what these need; its models need less.


def tunix(name: str):
  if 'tunix' not in sys.modules:
    specification = importlib.util.find_spec('tunix')
    if specification is None:
      pytest.skip('needs google-tunix')
    package = types.ModuleType('tunix')
    package.__path__ = list(specification.submodule_search_locations)
    sys.modules['tunix'] = package
  return importlib.import_module(f'tunix.models.{name}.model')


SIZES = {
  'num_layers': DEPTH,
  'embed_dim': WIDTH,
  'hidden_dim': HIDDEN,
  'num_heads': HEADS,
  'head_dim': CHANNELS,
  'num_kv_heads': KV_HEADS,
}


def inputs_of(tokens):
  """What a model of tunix is called with."""
  batch, length = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
  return (
    tokens,
    positions,
    None,
    jnp.broadcast_to(jnp.tri(length, dtype=bool), (batch, length, length)),
  )


# The frequency is the one that tunix's Llama and Qwen compute with whatever their config has.
PLAIN = {'vocab_size': VOCABULARY, 'rope_theta': 1_000_000, 'norm_eps': 1e-6}


# Equinox: modules are trees, called on one example; kernels are [out, in].


@example
def equinox_transformer_block():
  import equinox as eqx

  class Block(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __call__(self, x):
      y = jax.vmap(self.norm)(x)
      x = x + self.attention(y, y, y)
      return x + jax.vmap(self.mlp)(x)

  keys = jax.random.split(jax.random.key(0))
  attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, use_output_bias=True, key=keys[0])
  mlp = eqx.nn.MLP(WIDTH, WIDTH, HIDDEN, 1, jax.nn.gelu, key=keys[1])
  params, static = eqx.partition(Block(attention, eqx.nn.LayerNorm(WIDTH), mlp), eqx.is_array)

  def apply(params, x):
    return jax.vmap(eqx.combine(params, static))(x)

  kernels = {
    **{f'attention/{name}_proj/weight': Kernel('oi') for name in ('query', 'key', 'value')},
    'attention/output_proj/weight': Kernel('oi', 'attention/output_proj/bias'),
    **{f'mlp/layers/{i}/weight': Kernel('oi', f'mlp/layers/{i}/bias') for i in range(2)},
  }
  return FunctionExample(apply, params, (normal(2, 3, WIDTH),), kernels, 6)


# Haiku: parameters by the modules' paths, which have slashes of their own.


@example
def haiku_transformer_block():
  import haiku as hk

  def block(images):
    x = hk.Conv2D(WIDTH, (2, 2), stride=2, padding='VALID')(images)
    x = x.reshape(len(x), -1, WIDTH)
    norm = hk.LayerNorm(-1, create_scale=True, create_offset=True)
    y = norm(x)
    initializer = hk.initializers.VarianceScaling(1.0)
    x = x + hk.MultiHeadAttention(HEADS, CHANNELS, w_init=initializer, model_size=WIDTH)(y, y, y)
    return x + hk.nets.MLP([HIDDEN, WIDTH], activation=jax.nn.gelu)(x)

  model, images = hk.transform(block), normal(2, 4, 4, 3)
  params = randomized(jax.eval_shape(model.init, jax.random.key(0), images))

  def apply(params, images):
    return model.apply(params, None, images)

  paths = ('query', 'key', 'value', 'linear')
  layers = (*(f'multi_head_attention/{name}' for name in paths), 'mlp/~/linear_0', 'mlp/~/linear_1')
  kernels = {
    'conv2_d/w': Kernel('iiio', 'conv2_d/b'),
    **{f'{layer}/w': Kernel('io', f'{layer}/b') for layer in layers},
  }
  assert kernels.keys() <= by_name(params).keys()
  return FunctionExample(
    apply,
    params,
    (images,),
    kernels,
    7,
    options={'convs': True},
    blind=r'attention/key',
  )


# Keras: parameters by the paths of its variables, which have slashes of their own.


@example
def keras_decoder():
  os.environ['KERAS_BACKEND'] = 'jax'
  import keras
  from keras import layers

  inputs = keras.Input([4], dtype='int32')
  embed = layers.ReversibleEmbedding(VOCABULARY, WIDTH, name='embed')  # a tied head
  x = layers.Conv1D(WIDTH, 3, padding='causal', name='conv')(embed(inputs))
  x += layers.MultiHeadAttention(HEADS, CHANNELS, name='attention')(x, x, use_causal_mask=True)
  y = layers.LayerNormalization(name='norm')(x)
  y = layers.EinsumDense('bti,igo->btgo', (4, 2, HIDDEN), bias_axes='go', name='up')(y)
  x += layers.Dense(WIDTH, name='down')(keras.ops.gelu(y[:, :, 0]) * y[:, :, 1])
  model = keras.Model(inputs, embed(x, reverse=True))
  paths = [variable.path for variable in model.trainable_variables]

  def apply(params, tokens):
    return model.stateless_call([params[path] for path in paths], [], tokens)[0]

  return FunctionExample(
    apply,
    randomized({variable.path: variable.value for variable in model.trainable_variables}),
    (jnp.array([[1, 5, 10, 16], [3, 0, 2, 3]]),),
    {
      'embed/embeddings': Kernel('io'),
      'conv/kernel': Kernel('iio', 'conv/bias'),
      **{
        f'attention/{name}/kernel': Kernel('ioo', f'attention/{name}/bias')
        for name in ('query', 'key', 'value')
      },
      'attention/attention_output/kernel': Kernel('iio', 'attention/attention_output/bias'),
      'up/kernel': Kernel('ioo', 'up/bias'),
      'down/kernel': Kernel('io', 'down/bias'),
    },
    8,
    options={'convs': True, 'embeddings': True},
    blind=r'attention/key',
  )
