"""`glora_jax.check`: what it says of models that are well, and of what can go wrong."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from trees import normal

import glora_jax
from glora_jax import SearchSpace
from glora_jax.method.adapted import Adapted

X = normal(5, 4)
ROWS = ['identity at start', 'fold against apply', 'gradients reach adapter']


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
  """A fixed structure is another model, whatever its supports."""

  def apply(self, *args, **kwargs):
    outputs = super().apply(*args, **kwargs)
    return outputs if self.genome is None else outputs * 1.001


def test_a_model_that_is_well_passes_with_the_tolerance_of_its_type():
  adapted, variables = ready(dtype=jnp.bfloat16)
  found = glora_jax.check(adapted, variables, X, train=True, mutable=['batch_stats'])
  assert found.ok
  assert [row.name for row in found.rows] == ROWS
  assert [row.tolerance for row in found.rows] == [0.03, 0.03, 0]


def test_each_row_fails_for_what_it_asks_and_names_it():
  adapted, variables = ready(blocked=True)
  fields = {field.name: getattr(adapted, field.name) for field in dataclasses.fields(adapted)}
  found = glora_jax.check(Broken(**fields), variables, X, train=False)
  assert not any(row.ok for row in found.rows)
  assert not found.ok
  assert 'fc A_down, fc A_up, ' in found.rows[-1].note
  assert str(found).count('  NO   ') == len(ROWS)


def test_a_fixed_structure_is_checked_alone():
  base = Mlp(blocked=True).init(jax.random.key(0), X, train=False)
  adapted = glora_jax.adapt(Mlp(blocked=True), X, train=False, structure='lora:2')
  variables = {**base, **adapted.init(jax.random.key(1), base['params'])}
  found = glora_jax.check(adapted, variables, X, train=False)
  assert [row.ok for row in found.rows] == [True, True, False]
  assert found.rows[-1].note == 'arrays without a gradient: fc B_down, fc B_up'


def test_a_function_may_have_parameters_that_are_no_arrays():
  params = {'activation': jnp.tanh, 'embedding': jnp.ones((6, 4)), 'w': jnp.ones((4, 3)) / 9}

  def apply(params, tokens):
    return params['activation'](params['embedding'][tokens] @ params['w'])

  tokens = jnp.array([0, 5])
  adapted = glora_jax.adapt_function(apply, params, tokens)
  found = glora_jax.check(adapted, adapted.init(jax.random.key(0), params), tokens)
  assert found.ok, str(found)
