"""Attaches to, trains, scores and folds NNX models that are sharded over devices."""

import functools
import re

import jax
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

import glora_jax
from glora_jax.nnx import Trained, live


class Mlp(nnx.Module):
  """Two layers, whose kernels are cut along the hidden units where their axes are named."""

  def __init__(self, rngs, is_named=False):
    def initial(*names):
      initializer = nnx.initializers.lecun_normal()
      return nnx.with_partitioning(initializer, names) if is_named else initializer

    self.up = nnx.Linear(8, 16, kernel_init=initial(None, 'model'), rngs=rngs)
    self.down = nnx.Linear(16, 8, kernel_init=initial('model', None), rngs=rngs)

  def __call__(self, x):
    return self.down(nnx.gelu(self.up(x)))


@nnx.jit
def step(model, optimizer, x):
  """One step on all forms."""

  def loss(model):
    return ((model(x) - 1) ** 2).mean()

  value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, Trained))(model)
  optimizer.update(model, gradients)
  return value


def attach(x, **options):
  model = Mlp(nnx.Rngs(0), **options)
  return glora_jax.nnx.attach(model, x, space=glora_jax.SearchSpace((2,)))


def train(model, inputs):
  """Losses of some steps, the model when it is folded, and its outputs."""
  optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=Trained)
  losses = [step(model, optimizer, inputs) for _ in range(3)]
  folded = nnx.jit(glora_jax.nnx.fold)(model)
  return losses, folded, folded(inputs)


def mesh_of(devices, *names):
  return jax.make_mesh(devices, names, axis_types=(jax.sharding.AxisType.Auto,) * 2)


def run_named(devices, x):
  """A model whose axes have names, trained: it, and what `train` gives."""
  with jax.set_mesh(mesh := mesh_of(devices, 'data', 'model')):
    inputs = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    model = attach(inputs, is_named=True)
    return model, *train(model, inputs)


def run_plain(x, mesh=None):
  """Losses of some steps, and outputs folded and as a pure function."""
  model, inputs = attach(x), x
  if mesh is not None:
    glora_jax.nnx.shard(model, mesh, min_bytes=64)
    inputs = jax.device_put(x, NamedSharding(mesh, PartitionSpec(('data', 'fsdp'))))
    kernel = vars(model.up)['kernel'].get_value()
    assert kernel.sharding.spec == PartitionSpec(None, ('fsdp',)), kernel.sharding
    trained = jax.tree.leaves(nnx.state(model, Trained))
    assert all(leaf.sharding.is_fully_replicated for leaf in trained)
  losses, folded, outputs = train(model, inputs)
  if mesh is not None:
    assert folded.up.kernel.get_value().addressable_shards[0].data.shape == (8, 4)
    call = nnx.jit(lambda model, x: model(x)).lower(model, inputs).compile().as_text()
    assert re.search(r'f32\[8,16\]\S* all-gather', call)  # a kernel, and no activations
  adapted, variables = glora_jax.nnx.as_adapted(model)
  genome = glora_jax.preset(live.spec(model), 'full')
  return losses, outputs, adapted.apply(variables, inputs, genome=genome)


x = jax.random.normal(jax.random.key(0), (4, 8))
model, losses, folded, outputs = run_named((2, 4), x)
cut = PartitionSpec(None, 'model')
up = model.up.glora_kernel.B_up
assert model.up.kernel.get_value().sharding.spec == up.get_value().sharding.spec == cut
assert up.get_value().addressable_shards[0].data.shape == (2, 4)
specs = nnx.get_partition_spec(nnx.state(model))
assert specs['up']['glora_kernel']['B_up'].get_value() == cut
assert model.down.glora_kernel.B_down.get_value().sharding.spec[0] == 'model'
assert len(folded.up.kernel.get_value().addressable_shards) == jax.device_count()

_, expected_losses, _, expected = run_named((1, 1), x)
assert_allclose(losses, expected_losses, rtol=1e-5)
assert_allclose(outputs, expected, atol=1e-5)

x = jax.random.normal(jax.random.key(1), (8, 8))
mesh = mesh_of((2, 4), 'data', 'fsdp')
expected, found = run_plain(x), run_plain(x, mesh)
jax.tree.map(functools.partial(assert_allclose, rtol=1e-4, atol=1e-5), found, expected)
assert jax.device_count() == 8
