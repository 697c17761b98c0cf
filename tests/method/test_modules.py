"""Linen models whose parameters are not only used by their layers, or by none."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from comparing import assert_folds, assert_trees_close, random_params, random_variables

import glora_jax
from glora_jax.method.modules import discover

INPUTS = jnp.linspace(-1, 1, 8).reshape(2, 4)


def test_no_array_of_the_trace_outlives_it():
  inputs = jax.ShapeDtypeStruct((1, 4), jnp.float32)
  with jax.checking_leaks():
    assert len(discover(nn.Dense(3), (inputs,), {})[1].sites) == 1


def assert_folded(adapted, tolerance=1e-5):
  """A LoRA gives what the folded model does."""
  variables = random_variables(adapted, random_params(adapted.model, INPUTS))
  assert_folds(adapted, variables, INPUTS, structure='lora', tolerance=tolerance)


class Mapped(nn.Module):
  """A layer whose parameters are changed before it is called."""

  change: Callable

  @nn.compact
  def __call__(self, inputs):
    mapped = nn.map_variables(nn.Dense, 'params', self._changed, init=self.is_initializing())
    return mapped(4, use_bias=False, name='dense')(inputs)

  def _changed(self, variables):
    return jax.tree.map(self.change, variables)


def in_16_bits(kernel):
  return kernel.astype(jnp.bfloat16)


class Normalized(nn.Module):
  """A layer whose kernel a module of Flax's normalizes, by its path, and a plain one."""

  @nn.compact
  def __call__(self, inputs):
    hidden = nn.WeightNorm(nn.Dense(4, name='first'))(inputs)
    return nn.Dense(3, name='second')(nn.tanh(hidden))


class Unpacked(nn.Module):
  """A layer whose rows the model goes through, as Python does."""

  @nn.compact
  def __call__(self, inputs):
    layer = nn.Dense(3, name='layer')
    outputs = layer(inputs)
    first, *_ = layer.variables['params']['kernel']
    return outputs + first


class OwnDense(nn.Module):
  """A layer with a product of its own, as MaxText's are, of which a scan has two."""

  @nn.compact
  def __call__(self, inputs, _):
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (4, 4))
    return nn.tanh(inputs @ kernel.astype(inputs.dtype)), None


class Own(nn.Module):
  @nn.compact
  def __call__(self, inputs):
    scan = nn.scan(OwnDense, variable_axes={'params': 1}, split_rngs={'params': True}, length=2)
    return scan(name='layers')(inputs, None)[0]


@pytest.mark.parametrize(
  'model, rows, uncovered',
  [
    (Normalized(), ['second'], ['first/kernel']),
    (Own(), ['layers[0]', 'layers[1]'], []),
    (Unpacked(), ['layer'], []),
  ],
)
def test_a_model_without_layers_or_that_looks_at_its_parameters_is_adapted_by_their_use(
  model, rows, uncovered
):
  adapted = glora_jax.adapt(model, INPUTS, heads=None)
  assert [layer.name for layer in adapted.spec] == rows
  assert [matrix.name for matrix in adapted.coverage().uncovered] == uncovered
  assert_folded(adapted)


@pytest.mark.parametrize('change', [jnp.tril, jnp.transpose, in_16_bits])
def test_what_else_is_made_of_a_kernel_is_made_of_the_merged_one(change):
  adapted = glora_jax.adapt(Mapped(change), INPUTS)
  assert_folded(adapted, 2**-6 if change is in_16_bits else 1e-5)


class Clipped(nn.Module):
  """A layer whose gradients a function of Flax's changes."""

  @nn.compact
  def __call__(self, inputs):
    def forward(layer, inputs):
      return nn.vjp(lambda layer, inputs: layer(inputs), layer, inputs)

    def backward(pullback, cotangent):
      of_params, *rest = pullback(cotangent)
      return (jax.tree.map(lambda leaf: jnp.clip(leaf, -1, 1), of_params), *rest)

    call = nn.custom_vjp(
      lambda layer, inputs: layer(inputs), forward_fn=forward, backward_fn=backward
    )
    hidden = call(nn.Dense(4, name='first'), inputs)
    return nn.Dense(3, name='second')(nn.tanh(hidden))


@pytest.mark.parametrize('preset', ['lora', 'full'])
def test_a_layer_whose_call_has_a_gradient_of_its_own_keeps_it(preset):
  adapted = glora_jax.adapt(Clipped(), INPUTS)
  assert_folded(adapted)
  variables = random_variables(adapted, random_params(adapted.model, INPUTS))
  genome = glora_jax.preset(adapted.spec, preset)

  def gradients(apply):
    return jax.jit(jax.grad(lambda g: apply({**variables, 'glora': g}).sum()))(variables['glora'])

  expected = gradients(lambda v: adapted.model.apply({'params': adapted.fold(v, genome)}, INPUTS))
  assert_trees_close(gradients(lambda v: adapted.apply(v, INPUTS, genome=genome)), expected)
  assert_trees_close(gradients(lambda v: adapted.fix(genome).apply(v, INPUTS)), expected)
