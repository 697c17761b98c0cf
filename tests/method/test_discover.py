"""The linear layers that a linen model's modules tell are those that its trace shows."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from comparing import assert_close, random_params, random_variables
from model_zoo import EXAMPLES

import glora_jax
from glora_jax.method.discover import discover
from glora_jax.method.trace.find import find

# What the trace sees otherwise than the modules, and on purpose: `nn.vmap` over layers with one
# input is one product with more outputs, and a kernel that is used transposed too is no row.
SPLIT = {
  'mixture_of_experts': {'moe/up': 0},
  'lifted_layers': {'stacked': 3},
  'vmap': {'branches/fc1': 0},
  'scan_of_vmap': {'branches/fc1': 0},
}
TRANSPOSED_TOO = {'kernel_read_from_variables': 'encoder/kernel'}


@pytest.mark.parametrize('name', EXAMPLES)
def test_the_trace_finds_what_the_modules_tell(name):
  example = EXAMPLES[name]()
  discovery = discover(example.model, example.inputs, example.kwargs)
  params = discovery.variables['params']
  others = {key: value for key, value in discovery.variables.items() if key != 'params'}

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
  hidden = {'/'.join(path) for path, _, _ in found.uncovered}
  expected = {site_key(site) for site in discovery.sites}
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
    assert len(discover(nn.Dense(3), (inputs,), {}).sites) == 1


class Pruned(nn.Module):
  """Outputs of a linear layer, without those whose weights are small, whatever their rest."""

  @nn.compact
  def __call__(self, inputs):
    outputs = nn.Dense(3, name='dense')(inputs)
    kernel = self.variables['params']['dense']['kernel']
    rest = [row // 2 for row in kernel % 2]
    return outputs * (abs(kernel) > 0.1).any(0) + sum(rest) + sum(2**row for row in kernel)


def test_a_model_may_do_to_a_parameter_that_it_reads_what_arrays_allow():
  inputs = jax.ShapeDtypeStruct((1, 4), jnp.float32)
  (site,) = discover(Pruned(), (inputs,), {}).sites
  assert site.shared


class Mapped(nn.Module):
  """A layer whose kernel, and all that lies beside it, is changed before it is called."""

  change: Callable

  @nn.compact
  def __call__(self, inputs):
    mapped = nn.map_variables(nn.Dense, 'params', self._changed, init=self.is_initializing())
    return mapped(4, use_bias=False, name='dense')(inputs)

  def _changed(self, variables):
    return jax.tree.map(self.change, variables)


def doubled(kernel):
  return 2 * kernel


def in_16_bits(kernel):
  return kernel.astype(jnp.bfloat16)


def in_32_bits(kernel):
  return kernel.astype(jnp.float32)


@pytest.mark.parametrize('change', [jnp.tril, jnp.transpose, doubled, in_16_bits, in_32_bits])
def test_what_changes_a_kernel_on_its_way_does_so_when_it_is_merged(change):
  model, inputs = Mapped(change), jnp.linspace(-1, 1, 8).reshape(2, 4)
  adapted = glora_jax.adapt(model, inputs)
  variables = random_variables(adapted, random_params(model, inputs))
  genome = glora_jax.preset(adapted.spec, 'lora')
  expected = model.apply({'params': adapted.fold(variables, genome)}, inputs)
  tolerance = 2**-6 if change is in_16_bits else 1e-5
  assert_close(adapted.apply(variables, inputs, genome=genome, merge='lazy'), expected, tolerance)
  assert_close(adapted.fix(genome).apply(variables, inputs), expected, tolerance)
