"""Small models as pure functions, the way people write them without Flax's modules.

Each is tiny, and its sizes differ from axis to axis, so that no axis can be taken for another. To
add a model, write a function decorated with `example` that counts its kernels by hand.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hand_count import FunctionExample, Kernel, attend, registry
from trees import normal

BATCH, TIME, WIDTH, HIDDEN, HEADS, CHANNELS, DEPTH, EXPERTS = 2, 3, 6, 10, 2, 4, 3, 4


EXAMPLES, example = registry()


def weights(*shape: int, seed: int = 1) -> jax.Array:
  """A kernel whose products are about as large as what goes in."""
  return normal(*shape, seed=seed) / np.sqrt(WIDTH)


def activations() -> jax.Array:
  return normal(BATCH, TIME, WIDTH)


def of_activations(apply, params, kernels, rows, **counted) -> FunctionExample:
  return FunctionExample(apply, params, (activations(),), kernels, rows, **counted)


# Dense layers: lists, tuples and dataclasses of parameters, kernels the other way round.


@example
def list_of_layers():
  """In a dictionary with a path of a module in the manner of Haiku; the first has low precision."""
  sizes = (WIDTH, HIDDEN, 7, WIDTH)
  layers = [
    {'w': weights(*shape, seed=i), 'b': normal(shape[1], seed=i)}
    for i, shape in enumerate(itertools.pairwise(sizes))
  ]
  layers[0]['w'] = layers[0]['w'].astype(jnp.bfloat16)

  def apply(params, x):
    *hidden, last = params['mlp/~/layers']
    for layer in hidden:
      y = x @ layer['w']
      x = jnp.tanh(y + jnp.broadcast_to(layer['b'], y.shape))
    return last['b'] + jnp.dot(x, last['w'])  # the bias first

  kernels = {f'mlp/~/layers/{i}/w': Kernel('io', f'mlp/~/layers/{i}/b') for i in range(3)}
  return of_activations(apply, {'mlp/~/layers': layers}, kernels, 3, tolerance=2e-2)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['weight', 'bias'], meta_fields=['name']
)
@dataclasses.dataclass
class Affine:
  """A layer that is a tree, called on one example, in the manner of Equinox."""

  weight: jax.Array
  bias: jax.Array | None
  name: str

  def __call__(self, x):
    y = self.weight @ x
    return y if self.bias is None else y + self.bias


@example
def dataclasses_called_one_example_at_a_time():
  params = (
    Affine(weights(HIDDEN, WIDTH), normal(HIDDEN), 'up'),
    Affine(weights(WIDTH, HIDDEN, seed=2), None, 'down'),
  )

  def apply(params, x):
    up, down = params
    return jax.vmap(jax.vmap(lambda token: token + down(jax.nn.relu(up(token)))))(x)

  kernels = {'0/weight': Kernel('oi', '0/bias'), '1/weight': Kernel('oi')}
  return of_activations(apply, params, kernels, 2)


# Attention with kernels of three and four axes, and its biases.


@example
def attention_kernels():
  """Separate queries, and keys and values stacked in one kernel, which is split by choice."""
  params = {
    'q': {'w': weights(HEADS, WIDTH, CHANNELS), 'b': normal(HEADS, CHANNELS)},
    'kv': {'w': weights(2, WIDTH, HEADS, CHANNELS), 'b': normal(2, HEADS, CHANNELS)},
    'out': {'w': weights(HEADS, CHANNELS, WIDTH), 'b': normal(WIDTH)},
  }

  def apply(params, x):
    q = jnp.einsum('btd,ndh->btnh', x, params['q']['w']) + params['q']['b']
    kv = jnp.einsum('bsd,cdkh->cbskh', x, params['kv']['w'])
    k, v = kv + params['kv']['b'][:, None, None]
    y = jnp.einsum('btnh,nhd->btd', attend(q, k, v, causal=False), params['out']['w'])
    return x + (y + params['out']['b'])

  kernels = {
    'q/w': Kernel('oio', 'q/b'),
    'kv/w': Kernel('sioo', 'kv/b', 'soo'),
    'out/w': Kernel('iio', 'out/b'),
  }
  counted = {'options': {'stacks': {'kv': 0}}, 'blind': r'kv/w\[0'}
  return of_activations(apply, params, kernels, 4, **counted)


# Stacks: scanned, vmapped, indexed, grouped.


def block_params(*stack: int):
  """Two layers of each block of a stack."""
  return {
    'up': {'w': weights(*stack, WIDTH, HIDDEN), 'b': weights(*stack, HIDDEN)},
    'down': {'w': weights(*stack, HIDDEN, WIDTH), 'b': weights(*stack, WIDTH)},
  }


def block(params, x):
  hidden = jax.nn.silu(x @ params['up']['w'] + params['up']['b'])
  return x + (hidden @ params['down']['w'] + params['down']['b'])


def block_kernels(axes: str, bias_axes: str):
  return {f'{layer}/w': Kernel(axes, f'{layer}/b', bias_axes) for layer in ('up', 'down')}


@example
def scan_of_a_vmap_from_the_last_to_the_first():
  def step(x, layers):
    return jax.vmap(block, (0, None))(layers, x).mean(0), None

  def apply(params, x):
    return jax.lax.scan(step, x, jax.tree.map(lambda stack: stack[::-1], params))[0]

  # Branches that all get the same input are outputs of one layer; below they are layers.
  kernels = {**block_kernels('ssio', 'sso'), 'up/w': Kernel('soio', 'up/b', 'soo')}
  return of_activations(apply, block_params(DEPTH, 2), kernels, 9)


@example
def unrolled_stack():
  """Blocks of a stack taken out one by one, by number."""

  def apply(params, x):
    for i in range(DEPTH):
      x = block(jax.tree.map(lambda leaf: leaf[i], params), x)  # noqa: B023
    return x

  return of_activations(apply, block_params(DEPTH), block_kernels('sio', 'so'), 6)


def router_and_experts():
  return {
    'router': weights(WIDTH, EXPERTS),
    'up': weights(EXPERTS, WIDTH, HIDDEN),
    'down': weights(EXPERTS, HIDDEN, WIDTH),
  }


EXPERT_KERNELS = {'router': Kernel('io'), 'up': Kernel('sio'), 'down': Kernel('sio')}


@example
def experts_by_einsum():
  def apply(params, x):
    gates = jax.nn.softmax(x @ params['router'])
    dispatched = jnp.einsum('btd,bte->betd', x, gates)
    hidden = jax.nn.silu(jnp.einsum('betd,edf->betf', dispatched, params['up']))
    return jnp.einsum('betf,efd->btd', hidden, params['down'])

  # Of the last product the experts are summed over as well: one layer [experts * hidden, width].
  kernels = {**EXPERT_KERNELS, 'down': Kernel('iio')}
  return of_activations(apply, router_and_experts(), kernels, 6)


@example
def experts_by_ragged_products():
  def apply(params, x):
    tokens = x.reshape(-1, WIDTH)
    scores = tokens @ params['router']
    expert = scores.argmax(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=EXPERTS)
    hidden = jax.nn.silu(jax.lax.ragged_dot(tokens[order], params['up'], sizes))
    results = jax.lax.ragged_dot(hidden, params['down'], sizes)
    return results[jnp.argsort(order)] * jax.nn.softmax(scores).max(-1, keepdims=True)

  inputs = (normal(8, TIME, WIDTH),)  # so many that every expert has some
  return FunctionExample(apply, router_and_experts(), inputs, EXPERT_KERNELS, 9)


# Control flow, and functions with derivatives of their own.


@jax.custom_vjp
def product(x, w):
  return x @ w


def _product_forward(x, w):
  return x @ w, (x, w)


def _product_backward(saved, g):
  x, w = saved
  return g @ w.T, jnp.einsum('...i,...o->io', x, g)


product.defvjp(_product_forward, _product_backward)


@example
def control_flow():
  """A layer used in each turn of a loop, one of two layers by a condition, own derivatives."""
  params = {
    name: {'w': weights(WIDTH, WIDTH + (name == 'own')), 'b': normal(WIDTH + (name == 'own'))}
    for name in ('loop', 'true', 'false', 'own')
  }

  def affine(layer, x):
    return x @ layer['w'] + layer['b']

  def apply(params, x, flag):
    turn = jax.jit(lambda _, x: x + jnp.tanh(affine(params['loop'], x)))
    x = jax.lax.fori_loop(0, 2, turn, x)
    for condition in (flag, ~flag):
      x = jnp.tanh(
        jax.lax.cond(
          condition,
          lambda x: affine(params['true'], x),
          lambda x: affine(params['false'], x),
          x,
        )
      )
    return product(x, params['own']['w']) + params['own']['b']

  kernels = {f'{name}/w': Kernel('io', f'{name}/b') for name in params}
  return FunctionExample(apply, params, (activations(), jnp.array(True)), kernels, 4)


# Convolutions, which count on request.


@example
def convolutions():
  """Kernels with their outputs first, and transposed ones: as it is, and back to front."""
  params = {
    'first': {'w': weights(WIDTH, 5, 1, 2), 'b': normal(WIDTH)},
    'plain': {'w': weights(2, 3, WIDTH, 5), 'b': normal(5)},
    'turned': {'w': weights(2, 3, WIDTH, 5), 'b': normal(WIDTH)},
  }
  convolve, transpose = jax.lax.conv_general_dilated, jax.lax.conv_transpose
  steps = {
    'first': functools.partial(convolve, dimension_numbers=('NHWC', 'OIHW', 'NHWC')),
    'plain': transpose,
    'turned': functools.partial(transpose, transpose_kernel=True),  # as other libraries do it
  }

  def apply(params, x):
    for name, step in steps.items():
      x = jax.nn.silu(step(x, params[name]['w'], (2, 2), 'VALID') + params[name]['b'])
    return x

  axes = {'first': 'oiii', 'plain': 'iiio', 'turned': 'iioi'}
  kernels = {f'{name}/w': Kernel(word, f'{name}/b') for name, word in axes.items()}
  inputs = (normal(BATCH, 6, 6, 5),)
  return FunctionExample(apply, params, inputs, kernels, 3, options={'convs': True})
