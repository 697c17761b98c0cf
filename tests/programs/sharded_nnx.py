"""Attaches to, trains and folds an NNX model whose parameters are sharded over devices."""

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import glora_jax
from glora_jax.nnx import Trained


class Mlp(nnx.Module):
  """Two layers whose kernels are cut along the hidden units."""

  def __init__(self, rngs):
    named = nnx.with_partitioning
    initializer = nnx.initializers.lecun_normal()
    self.up = nnx.Linear(8, 16, kernel_init=named(initializer, (None, 'model')), rngs=rngs)
    self.down = nnx.Linear(16, 8, kernel_init=named(initializer, ('model', None)), rngs=rngs)

  def __call__(self, x):
    return self.down(nnx.gelu(self.up(x)))


@nnx.jit
def step(model, optimizer, x):
  """One step on all alleles."""

  def loss(model):
    return ((model(x) - 1) ** 2).mean()

  value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, Trained))(model)
  optimizer.update(model, gradients)
  return value


def run(devices, x):
  """Losses of some steps, the model after them, and its outputs when it is folded."""
  mesh = jax.make_mesh(devices, ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    inputs = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    model = glora_jax.nnx.attach(Mlp(nnx.Rngs(0)), inputs, space=glora_jax.SearchSpace((2,)))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=Trained)
    losses = [step(model, optimizer, inputs) for _ in range(3)]
    folded = nnx.jit(glora_jax.nnx.fold)(model)
    return losses, model, folded, folded(inputs)


def main():
  x = jax.random.normal(jax.random.key(0), (4, 8))
  losses, model, folded, outputs = run((2, 4), x)
  cut = PartitionSpec(None, 'model')
  up = model.up.glora_kernel.B_up
  assert model.up.kernel.get_value().sharding.spec == up.get_value().sharding.spec == cut
  assert up.get_value().addressable_shards[0].data.shape == (2, 4)
  specs = nnx.get_partition_spec(nnx.state(model))
  assert specs['up']['glora_kernel']['B_up'].get_value() == cut
  assert model.down.glora_kernel.B_down.get_value().sharding.spec[0] == 'model'
  assert len(folded.up.kernel.get_value().addressable_shards) == jax.device_count()

  expected_losses, _, _, expected = run((1, 1), x)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  np.testing.assert_allclose(outputs, expected, atol=1e-5)
  print('equal on', jax.device_count())


if __name__ == '__main__':
  main()
