"""Weights that lie in parts are gathered a layer at a time, and nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from glora_jax.method import program
from glora_jax.method.program import gathering

MESH = jax.make_mesh((1, 1), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
WHOLE = jax.sharding.PartitionSpec()
X = jax.random.normal(jax.random.key(0), (4, 8))
STACK = jax.random.normal(jax.random.key(1), (3, 8, 8)) / 3
PARAMS = {'stack': STACK, 'scale': jnp.linspace(1, 2, 8), 'note': 'no array'}


def layer(x, kernel):
  return jnp.tanh(x @ kernel)


def scanned(params, x):
  x, _ = jax.lax.scan(lambda x, kernel: (layer(x, kernel), None), x, params['stack'])
  return x * params['scale']


def computed_again(params, x):
  block = jax.checkpoint(layer, policy=jax.checkpoint_policies.everything_saveable)
  x, _ = jax.lax.scan(lambda x, kernel: (block(x, kernel), None), x, params['stack'])
  return x


def unrolled(params, x):
  for number in range(3):
    x = jax.jit(layer)(x, params['stack'][number].T.astype(jnp.float32))
  return x


def indexed_in_a_loop(params, x):
  return jax.lax.fori_loop(0, 3, lambda i, x: layer(x, params['stack'][i]), x)


def of_unknown_length(params, x):
  """It uses a weight in the condition, too."""
  first = params['stack'][0]

  def goes_on(state):
    return (state[0] < 5) & (jnp.abs(state[1] @ first).max() > 1e-3)

  return jax.lax.while_loop(goes_on, lambda s: (s[0] + 1, layer(s[1], first)), (0, x))[1]


def chosen(params, x):
  branches = [lambda stack, x: layer(x, stack[0]), lambda stack, x: x - layer(x, stack[1])]
  return jax.lax.switch((x[0, 0] > 0).astype(int), branches, params['stack'], x)


def looked_up(params, x):
  return x + params['stack'][0][jnp.array([3, 1, 1, 7])]


MODELS = [scanned, computed_again, unrolled, indexed_in_a_loop, chosen, looked_up]


def gathered(model):
  return lambda params, x: program.call(model, params, x, MESH, lays_gradients=True)


@pytest.mark.parametrize('model', [*MODELS, of_unknown_length])
def test_a_model_that_gathers_its_weights_gives_what_it_gave(model):
  np.testing.assert_allclose(gathered(model)(PARAMS, X), model(PARAMS, X), rtol=1e-6)


@pytest.mark.parametrize('model', MODELS)
def test_and_has_the_gradients_that_it_had(model):
  def total(model, stack, x):
    return jnp.square(model({**PARAMS, 'stack': stack}, x)).sum()

  found, expected = (
    jax.jit(jax.grad(functools.partial(total, run), argnums=(0, 1)))(STACK, X)
    for run in (gathered(model), model)
  )
  for gradient, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(gradient, other, rtol=1e-5, atol=1e-6)


def gathers(jaxpr, inside=()):
  """The programs, from the outermost, in which something is gathered."""
  found = []
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == 'sharding_constraint' and equation.params['sharding'].spec == WHOLE:
      found.append((*inside, equation.outvars[0].aval.shape))
    for called in jaxprs_in_params(equation.params):
      found += gathers(called, (*inside, name) if name == 'scan' else inside)
  return found


@pytest.mark.parametrize('model', [scanned, computed_again])
def test_a_scanned_layer_is_gathered_in_the_scan_and_again_on_the_way_back(model):
  def total(params, x):
    return gathered(model)(params, x).sum()

  stack = {'stack': STACK, 'scale': PARAMS['scale']}
  forward = jax.make_jaxpr(total)(stack, X)
  assert gathers(forward.jaxpr) == [('scan', (8, 8))]
  with_gradient = jax.make_jaxpr(jax.grad(total))(stack, X)
  assert gathers(with_gradient.jaxpr) == [('scan', (8, 8)), ('scan', (8, 8))]


def test_what_is_made_of_a_weight_item_by_item_is_made_in_parts_and_then_gathered():
  def changed(stack):
    kernel = stack[0].astype(jnp.float16) * 2 + jnp.ones((8, 8))
    return X @ kernel.astype(jnp.float32)

  jaxpr = jax.make_jaxpr(lambda stack: gathering(changed, stack, MESH))(STACK).jaxpr
  assert gathers(jaxpr) == [((8, 8),)]
