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


class Mlp(nn.Module):
  """Zero at its start, as pretrained models with a new head are, and with state of its own."""

  blocked: bool = False
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(not train, dtype=self.dtype)(nn.Dense(3, dtype=self.dtype, name='fc')(x))
    x = jax.lax.stop_gradient(x) if self.blocked else x
    return nn.Dense(2, kernel_init=nn.initializers.zeros, name='head')(x)


def ready(structure=None, **fields):
  model = Mlp(**fields)
  options = {'structure': structure, 'space': SearchSpace((1, 2))}
  adapted = glora_jax.adapt(model, X, train=True, **options)
  base = model.init(jax.random.key(0), X, train=True)
  return adapted, {**base, **adapted.init(jax.random.key(1), base['params'])}


class Broken(Adapted):
  """Another model than its base and its folded one, whatever its adapter."""

  def apply(self, *args, **kwargs):
    return super().apply(*args, **kwargs) * 1.001


def test_a_model_that_is_well_passes_with_the_tolerance_of_its_type():
  adapted, variables = ready(dtype=jnp.bfloat16)
  found = glora_jax.check(adapted, variables, X, train=True, mutable=['batch_stats'])
  assert found.ok
  assert found.tolerance == 0.03


def test_each_number_says_what_is_wrong():
  adapted, variables = ready()
  fields = {field.name: getattr(adapted, field.name) for field in dataclasses.fields(adapted)}
  found = glora_jax.check(Broken(**fields), variables, X, train=False)
  assert (found.identity, found.folding) == pytest.approx((1e-3, 1e-3), rel=0.01)
  assert not found.ok
  assert found.missed == ()


@pytest.mark.parametrize('structure, missed', [(None, 8), ('lora:2', 2)])
def test_arrays_without_a_gradient_are_named(structure, missed):
  found = glora_jax.check(*ready(structure, blocked=True), X, train=False)
  assert len(found.missed) == missed
  assert {'fc B_down', 'fc B_up'} <= {*found.missed}
  assert max(found.identity, found.folding) <= found.tolerance
  assert not found.ok
