"""NNX models whose parameters lie in stacks, linen models, lists, or each other's modules."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from trees import normal

X = normal(5, 4)


class Layer(nnx.Module):
  def __init__(self, rngs):
    self.linear = nnx.Linear(4, 4, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

  def __call__(self, x):
    return jnp.tanh(self.dropout(self.linear(x)))


class Scanned(nnx.Module):
  """Three layers in a scan, whose kernels are stacked along an axis."""

  def __init__(self, axes, rngs):
    self.axes = axes

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=axes, axis_size=3)
    def create(rngs):
      return Layer(rngs)

    self.layers = create(rngs)

  def __call__(self, x):
    @nnx.scan(in_axes=(self.axes, nnx.Carry), out_axes=nnx.Carry)
    def call(layer, x):
      return layer(x)

    return call(self.layers, x)


class Ensemble(nnx.Module):
  """Two scans beside each other."""

  def __init__(self, rngs):
    @nnx.split_rngs(splits=2)
    @nnx.vmap(in_axes=0, out_axes=0, axis_size=2)
    def create(rngs):
      return Scanned(0, rngs)

    self.members = create(rngs)

  def __call__(self, x):
    @nnx.vmap(in_axes=(0, None), out_axes=0)
    def call(member, x):
      return member(x)

    return call(self.members, x)


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Dense(6, name='hidden')(x)
    x = nn.BatchNorm(use_running_average=False, momentum=0.5, name='norm')(x)
    return nn.Dense(4, name='head')(nn.relu(x))


class Bridged(nnx.Module):
  """A linen model with a state and a head, in an NNX model."""

  def __init__(self, rngs):
    self.inner = nnx.bridge.ToNNX(Linen(), rngs=rngs).lazy_init(X, mutable=['batch_stats'])
    self.out = nnx.Linear(4, 2, rngs=rngs)

  def __call__(self, x):
    return self.out(self.inner(x, mutable=['batch_stats']))


class Matrix(nnx.Module):
  def __init__(self, rngs):
    self.w = nnx.Param(jax.random.normal(rngs.params(), (4, 6)))

  def __call__(self, x):
    return x @ self.w[...]


class Scattered(nnx.Module):
  """A bias beside another module's kernel, containers of parameters, a parameter in two places."""

  def __init__(self, rngs):
    self.matrix = Matrix(rngs)
    self.bias = nnx.Param(jnp.ones(6))
    self.nested = nnx.data({'up': [self._square(rngs)]})
    self.experts = nnx.List([self._square(rngs), self._square(rngs)])
    self.named = nnx.Dict(only=self._square(rngs))
    self.repeated = self.named.only

  def _square(self, rngs):
    return nnx.Param(jax.random.normal(rngs.params(), (6, 6)))

  def __call__(self, x):
    x = jnp.tanh(self.matrix(x) + self.bias)
    x = jnp.tanh(x @ self.nested['up'][0][...])
    for expert in self.experts:
      x = jnp.tanh(x @ expert.get_value())
    for name, matrix in self.named.items():
      assert name == 'only'
      x = jnp.tanh(x @ matrix)
    return x @ self.repeated


class OddNames(nnx.Module):
  """Names with slashes, as Haiku gives them, and a parameter called as supports are."""

  def __init__(self, rngs):
    up, head = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
    up.glora_kernel = nnx.Param(jnp.full(6, 2.0))
    self.mlp = nnx.Dict({'mlp/~/up': up, 'mlp/~/head': head})
    self.raw = nnx.Dict({'mix/w': nnx.Param(normal(6, 6))})

  def __call__(self, x):
    up = self.mlp['mlp/~/up']
    return self.mlp['mlp/~/head'](up(x) * up.glora_kernel[...] @ self.raw['mix/w'][...])


class General(nnx.Module):
  """A stack of its own, and layers that are tied."""

  def __init__(self, rngs):
    self.stack = nnx.LinearGeneral(4, 4, batch_axis={0: 5}, rngs=rngs)
    self.key = nnx.Linear(4, 3, rngs=rngs)
    self.value = nnx.Linear(4, 2, rngs=rngs)

  def __call__(self, x):
    x = jnp.tanh(self.stack(x))
    return jnp.concatenate([self.key(x), self.value(x)], axis=-1)


ALONG_ONE = nnx.StateAxes({nnx.Param: 1, ...: 0})
# By name: a function that makes the model, options of attach, and the names of its rows.
STACK = tuple(f'layers/linear[{row}]' for row in range(3))
MODELS = {
  'scanned along another axis': (lambda: Scanned(ALONG_ONE, nnx.Rngs(0)), {}, STACK),
  'vmapped': (
    lambda: Ensemble(nnx.Rngs(0)),
    {},
    tuple(f'members/layers/linear[{row},{member}]' for row in range(3) for member in range(2)),
  ),
  'bridged': (lambda: Bridged(nnx.Rngs(0)), {}, ('inner/hidden', 'out')),
  'scattered': (
    lambda: Scattered(nnx.Rngs(0)),
    {},
    ('experts/0', 'experts/1', 'matrix/w', 'named/only', 'nested/up/0'),
  ),
  'general': (
    lambda: General(nnx.Rngs(0)),
    {'ties': [('key', 'value')]},
    ('key+value', *(f'stack[{row}]' for row in range(5))),
  ),
  'odd names': (lambda: OddNames(nnx.Rngs(0)), {}, ('mlp/mlp/~/up', 'raw/mix/w')),
}
