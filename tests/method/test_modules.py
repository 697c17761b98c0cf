"""The linear layers that a linen model's modules tell are those that its trace shows."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from comparing import assert_folds, assert_trees_close, random_params, random_variables
from model_zoo import EXAMPLES

import glora_jax
from glora_jax.method.modules import discover
from glora_jax.method.trace.find import find

# What the trace sees otherwise than the modules, and on purpose: `nn.vmap` over layers with one
# input is one product with more outputs, and a kernel that is used transposed too is no row.
SPLIT = {
  'lifted_layers': {'stacked': 3},
  'scan_of_vmap': {'branches/fc1': 0},
}
TRANSPOSED_TOO = {'kernel_read_from_variables': 'steps/encoder/kernel'}

INPUTS = jnp.linspace(-1, 1, 8).reshape(2, 4)


@pytest.mark.parametrize('name', EXAMPLES)
def test_the_trace_finds_what_the_modules_tell(name):
  example = EXAMPLES[name]()
  params, announced = discover(example.model, example.inputs, example.kwargs, convs=True)
  others = {key: value for key, value in example.variables().items() if key != 'params'}

  def function(params, others, *inputs, **kwargs):
    variables = {'params': params, **others}
    rngs = {'params': jax.random.key(0)}
    return example.model.apply(
      variables, *inputs, rngs=rngs, mutable=nn.DenyList('params'), **kwargs
    )

  found = find(
    function,
    params,
    (others, *example.inputs),
    example.kwargs,
    convs=True,
    split=SPLIT.get(name, {}),
  )
  hidden = set(map('/'.join, found.uncovered))
  expected = {site_key(site) for site in announced.sites}
  if name in TRANSPOSED_TOO:
    assert TRANSPOSED_TOO[name] in hidden
    expected = {key for key in expected if '/'.join(key[0]) != TRANSPOSED_TOO[name]}
  assert {site_key(site) for site in found.sites} == expected


def site_key(site):
  layout = site.layout
  axes = (frozenset(layout.stack), frozenset(layout.inputs), frozenset(layout.outputs))
  return site.kernel_path, site.bias_path, *axes, frozenset(layout.bias_stack)


def test_no_array_of_the_trace_outlives_it():
  inputs = jax.ShapeDtypeStruct((1, 4), jnp.float32)
  with jax.checking_leaks():
    assert len(discover(nn.Dense(3), (inputs,), {})[1].sites) == 1


def assert_folded(adapted, tolerance=1e-5):
  """A LoRA gives what the folded model does."""
  variables = random_variables(adapted, random_params(adapted.model, INPUTS))
  assert_folds(adapted, variables, INPUTS, structure='lora', tolerance=tolerance)


class Mapped(nn.Module):
  """A layer whose kernel, and all that lies beside it, is changed before it is called."""

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


def test_a_model_that_looks_at_the_tree_of_its_parameters_is_adapted_by_their_use():
  adapted = glora_jax.adapt(Normalized(), INPUTS)
  assert [layer.name for layer in adapted.spec] == ['second']
  assert [matrix.name for matrix in adapted.coverage().uncovered] == ['first/kernel']
  assert_folded(adapted)


@pytest.mark.parametrize('change', [jnp.tril, jnp.transpose, in_16_bits])
def test_what_else_is_made_of_a_kernel_is_made_of_the_merged_one(change):
  adapted = glora_jax.adapt(Mapped(change), INPUTS)
  assert_folded(adapted, 2**-6 if change is in_16_bits else 1e-5)


class Clipped(nn.Module):
  """A layer whose gradients a function of Flax's changes, whatever lies beside its kernel."""

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
def test_a_layer_whose_call_has_a_gradient_of_its_own_is_merged_before_the_call(preset):
  adapted = glora_jax.adapt(Clipped(), INPUTS)
  assert adapted.summary().endswith('merged before the call: first')
  assert_folded(adapted)
  variables = random_variables(adapted, random_params(adapted.model, INPUTS))
  genome = glora_jax.preset(adapted.spec, preset)

  def gradients(apply):
    return jax.jit(jax.grad(lambda g: apply({**variables, 'glora': g}).sum()))(variables['glora'])

  expected = gradients(lambda v: adapted.model.apply({'params': adapted.fold(v, genome)}, INPUTS))
  assert_trees_close(gradients(lambda v: adapted.apply(v, INPUTS, genome=genome)), expected)
  assert_trees_close(gradients(lambda v: adapted.fix(genome).apply(v, INPUTS)), expected)
