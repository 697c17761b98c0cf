"""Adapts, trains and serves a model whose parameters are sharded over devices."""

import functools
import pathlib
import tempfile

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose
from trees import randomized

import glora_jax
from glora_jax import Pool


class Mlp(nn.Module):
  """Two layers whose kernels are cut along the hidden units."""

  @nn.compact
  def __call__(self, x):
    up = nn.with_partitioning(nn.initializers.lecun_normal(), (None, 'model'))
    down = nn.with_partitioning(nn.initializers.lecun_normal(), ('model', None))
    hidden = nn.gelu(nn.Dense(16, kernel_init=up, name='up')(x))
    return nn.Dense(8, kernel_init=down, name='down')(hidden)


mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
x = jax.random.normal(jax.random.key(0), (4, 8))
adapted = glora_jax.adapt(Mlp(), x, space=glora_jax.SearchSpace())
genome = glora_jax.preset(adapted.spec, 'full')
start = adapted.init(jax.random.key(1), Mlp().init(jax.random.key(0), x)['params'])
start = randomized(start)
apply = jax.jit(functools.partial(adapted.apply, genome=genome))
expected = apply(start, x)
with mesh:
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), nn.get_partition_spec(start))
  variables = jax.device_put(start, shardings)
  up = variables['glora']['up']['B_up'].value
  assert up.sharding.spec == PartitionSpec(None, 'model')
  assert len(up.addressable_shards[0].data[0]) == 4
  inputs = jax.device_put(x, NamedSharding(mesh, PartitionSpec('data')))
  assert_allclose(apply(variables, inputs), expected, atol=1e-5)
  folded = jax.jit(adapted.fold)(variables, genome)
assert_allclose(jax.jit(Mlp().apply)({'params': folded}, x), expected, atol=1e-5)
in_parts, parts = glora_jax.shard(adapted, start, mesh, min_bytes=1)
with tempfile.NamedTemporaryFile() as file:
  glora_jax.save_adapter(file.name, adapted.fix(genome), start)
  alone = pathlib.Path(file.name).read_bytes()
  glora_jax.save_adapter(file.name, adapted.fix(genome), variables)
  assert pathlib.Path(file.name).read_bytes() == alone
  assert all(leaf._npy_value is None for leaf in jax.tree.leaves(variables))  # none on the host
  for model, params in ((adapted, variables['params']), (in_parts, parts['params'])):
    _, loaded = glora_jax.load_adapter(file.name, model, params)
    for leaf in jax.tree.leaves(loaded['glora']):
      assert leaf.sharding == NamedSharding(mesh, PartitionSpec())
    pool = Pool(model, params, merge=True)
    pool.load('a', file.name)
    answers = pool(inputs, ['a', None] * 2)
    assert_allclose(answers[::2], expected[::2], atol=1e-5)


def decoder(params, tokens):
  """Its table, cut along the vocabulary, is also the head."""
  return jax.numpy.tanh(params['table'][tokens] @ params['w']) @ params['table'].T


base = randomized({'table': jax.numpy.zeros((64, 8)), 'w': jax.numpy.zeros((8, 8))}, 1)
tokens = jax.numpy.arange(32).reshape(8, 4) * 2
chosen = glora_jax.adapt_function(decoder, base, tokens, structure='lora:2', embeddings=[0, 6, 63])
variables = randomized(chosen.init(jax.random.key(1), base))
in_parts, parts = glora_jax.shard(chosen, variables, mesh, min_bytes=1)
assert not parts['params']['table'].sharding.is_fully_replicated


def gradient(model, variables):
  trainable, frozen = model.split(variables)

  def loss(part):
    return jax.numpy.sin(model.apply(model.join(part, frozen), tokens)).sum()

  return jax.jit(jax.grad(loss))(trainable)


expected = gradient(chosen, variables)
jax.tree.map(functools.partial(assert_allclose, atol=1e-4), gradient(in_parts, parts), expected)
assert jax.device_count() == 8
