"""Adapts and trains a model whose parameters are sharded over devices."""

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import glora_jax
from glora_jax.method import presets


class Mlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    up = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
    down = nn.with_partitioning(nn.initializers.lecun_normal(), ('model', None))
    return nn.Dense(8, kernel_init=down, name='down')(
      nn.gelu(nn.Dense(16, kernel_init=up, name='up')(x))
    )


mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
x = jax.random.normal(jax.random.key(0), (4, 8))
for merge in ('up_front', 'lazy'):
  adapted = glora_jax.adapt(Mlp(), x, merge=merge)
  make = lambda: adapted.init(jax.random.key(1), Mlp().init(jax.random.key(0), x)['params'])
  noise = lambda tree: jax.tree.map(
    lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape), tree
  )
  start = noise(make())
  genome = presets.preset(adapted.spec, 'full')
  expected = adapted.apply(start, x, genome=genome)
  with mesh:
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), nn.get_partition_spec(start))
    variables = jax.jit(lambda: noise(make()), out_shardings=shardings)()
    assert variables['glora']['up']['B_up'].value.sharding.spec == PartitionSpec(None, 'model')
    assert len(variables['glora']['up']['B_up'].value.addressable_shards[0].data[0]) == 4
    inputs = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
    found = jax.jit(lambda v, g, x: adapted.apply(v, x, genome=g))(variables, genome, inputs)
    folded = jax.jit(adapted.fold)(variables, genome)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(Mlp().apply({'params': folded}, x), expected, atol=1e-5)
print('equal on', jax.device_count())
