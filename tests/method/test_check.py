"""`glora_jax.check`: what it says of models that are well, and of what can go wrong."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from trees import normal

import glora_jax
from glora_jax import SearchSpace
from glora_jax.method.adapted import Adapted

X = normal(5, 4)
ROWS = [
  'identity at start',
  'fold against apply',
  'fix against apply',
  'fold leaves the rest',
  'gradients reach supports',
  'frozen stays frozen',
  'trained moves',
  'not covered',
]


class Mlp(nn.Module):
  """Zero at its start, as pretrained models with a new head are, and with state of its own."""

  blocked: bool = False
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(not train, dtype=self.dtype)(nn.Dense(3, dtype=self.dtype, name='fc')(x))
    x = jax.lax.stop_gradient(x) if self.blocked else x
    return nn.Dense(2, kernel_init=nn.initializers.zeros, name='head')(x)


def ready(**fields):
  model = Mlp(**fields)
  adapted = glora_jax.adapt(model, X, train=True, space=SearchSpace((1, 2)))
  base = model.init(jax.random.key(0), X, train=True)
  return adapted, {**base, **adapted.init(jax.random.key(1), base['params'])}


class Broken(Adapted):
  """Everything that a check asks for, done wrong."""

  def apply(self, *args, **kwargs):
    outputs, updates = super().apply(*args, **kwargs)
    if self.genome is not None:
      return outputs, updates
    return outputs * 1.001 + 0.001, updates

  def fold(self, variables, genome):
    params = super().fold(variables, genome)
    norm = params['BatchNorm_0']
    return {**params, 'BatchNorm_0': {**norm, 'scale': norm['scale'] + 1}}

  def join(self, trainable, frozen):
    joined = super().join(trainable, frozen)
    params = joined['params']
    bias = {**params['head'], 'bias': jnp.ones(2)}
    kernel = {**params['fc'], 'kernel': params['fc']['kernel'] + 1}
    return {**joined, 'params': {**params, 'head': bias, 'fc': kernel}}


def test_a_model_that_is_well_passes_with_the_tolerance_of_its_type():
  adapted, variables = ready(dtype=jnp.bfloat16)
  found = glora_jax.check(adapted, variables, X, train=True, mutable=['batch_stats'])
  assert found.ok
  assert [row.name for row in found.rows] == ROWS
  assert {row.tolerance for row in found.rows[:-1]} == {4 * 2.0**-7, 0}
  assert found.rows[-1].measured == 0


def test_each_row_fails_for_what_it_asks_and_names_it():
  adapted, variables = ready(blocked=True)
  fields = {field.name: getattr(adapted, field.name) for field in dataclasses.fields(adapted)}
  broken = Broken(**fields)
  found = glora_jax.check(broken, variables, X, train=True, mutable=['batch_stats'])
  assert [row.name for row in found.rows if row.ok] == ['not covered']
  assert not found.ok
  notes = [row.note for row in found.rows[3:7]]
  names = ('BatchNorm_0/scale', 'fc A_down, fc A_up, ', 'params/fc/kernel', 'params/head/bias')
  assert all(name in note for name, note in zip(names, notes, strict=True))
  assert str(found).count('  NO  ') == len(ROWS) - 1


def test_a_function_passes_and_what_it_does_not_cover_is_reported():
  params = {'activation': jnp.tanh, 'embedding': jnp.ones((6, 4)), 'w': jnp.ones((4, 3)) / 9}

  def apply(params, tokens):
    return params['activation'](params['embedding'][tokens] @ params['w'])

  tokens = jnp.array([0, 5])
  adapted = glora_jax.adapt_function(apply, params, tokens)
  found = glora_jax.check(adapted, adapted.init(jax.random.key(0), params), tokens)
  assert found.ok, str(found)
  assert found.rows[-1].measured == pytest.approx(24 / 36)
  assert 'share of matrices not adapted (1: ' in found.rows[-1].note
