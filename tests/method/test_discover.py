"""The linear layers that a linen model's modules tell are those that its trace shows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from model_zoo import EXAMPLES

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
