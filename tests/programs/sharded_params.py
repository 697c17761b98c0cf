"""Adapts and trains a model whose parameters are sharded over devices."""

import functools

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

import glora_jax
from glora_jax.method import presets


class Mlp(nn.Module):
  """Two layers whose kernels are cut along the hidden units."""

  @nn.compact
  def __call__(self, x):
    up = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
    down = nn.with_partitioning(nn.initializers.lecun_normal(), ('model', None))
    hidden = nn.gelu(nn.Dense(16, kernel_init=up, name='up')(x))
    return nn.Dense(8, kernel_init=down, name='down')(hidden)


def random_variables(adapted, x):
  """Parameters, and supports that are not at their initial values."""
  params = Mlp().init(jax.random.key(0), x)['params']
  return jax.tree.map(
    lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape),
    adapted.init(jax.random.key(1), params),
  )


def main():
  mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  x = jax.random.normal(jax.random.key(0), (4, 8))
  adapted = glora_jax.adapt(Mlp(), x)
  genome = presets.preset(adapted.spec, 'full')
  start = random_variables(adapted, x)
  with mesh:
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), nn.get_partition_spec(start))
    variables = jax.device_put(start, shardings)
    up = variables['glora']['up']['B_up'].value
    assert up.sharding.spec == PartitionSpec(None, 'model')
    assert len(up.addressable_shards[0].data[0]) == 4
    inputs = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    folded = jax.jit(adapted.fold)(variables, genome)
  apply = jax.jit(functools.partial(adapted.apply, genome=genome))
  expected = apply(start, x)
  with mesh:
    sharded = apply(variables, inputs)
  assert_allclose(sharded, expected, atol=1e-5)
  plain = jax.jit(Mlp().apply)({'params': folded}, x)
  assert_allclose(plain, expected, atol=1e-5)
  assert jax.device_count() == 8


if __name__ == '__main__':
  main()
