"""Layers whose A is no LoRA: the merged layer's numbers, with gradients that stay thin."""

import functools
import re

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_trees_close
from jax.test_util import check_grads
from numpy.testing import assert_allclose
from trees import normal

from glora_jax import SearchSpace, adapt
from glora_jax.method import adapter, equation

IN, OUT, RANKS = 8, 6, (1, 3)
MANY, FEW = 40, 4  # tokens that are more, and fewer, than it pays to merge for


def layer(tokens, without=(), dtype='float32'):
  """Inputs, kernel, bias and supports, all of them random."""
  shapes = adapter.adapter_shapes(IN, OUT, RANKS).items()
  stored = {
    name: 0.3 * normal(*shape, seed=seed)
    for seed, (name, shape) in enumerate(shapes)
    if adapter.ADAPTER[name].tensor not in without
  }
  arrays = normal(tokens, IN), normal(IN, OUT, seed=1), normal(OUT, seed=2)
  return jax.tree.map(lambda value: value.astype(dtype), (*arrays, stored))


def through_merged_kernel(inputs, kernel, bias, stored, forms):
  return inputs @ equation.effective_kernel(kernel, stored, forms, RANKS) + bias


def ours(inputs, kernel, bias, stored, forms):
  output = equation.layer_output(jnp.matmul, inputs, kernel, stored, forms, RANKS)
  return output if bias is None else output + jnp.broadcast_to(bias, output.shape)


def with_gradients(function, arguments, forms):
  """Outputs, and the gradients of all arguments."""

  def loss(*arguments):
    outputs = function(*arguments, forms)
    return jnp.sin(outputs).sum(), outputs

  (_, outputs), gradients = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(*arguments)
  return outputs, gradients


WAYS = {
  'cpu': (MANY, 0.5),
  'few tokens': (FEW, 0.5),
  'a vector that takes the kernel away': (MANY, -1.0),  # the output has nothing left of x W
  'other platforms': (MANY, 0.5),
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('without', ['CDE', 'ACDE', 'BCDE'])
def test_outputs_and_all_gradients_are_those_of_the_merged_kernel(way, without, monkeypatch):
  if way == 'other platforms':
    monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *args, default, **_: default(*args))
  tokens, scale = WAYS[way]
  *arrays, stored = layer(tokens, without)
  if 'A_up' in stored:
    stored['A_up'] = stored['A_up'].at[0, 2].set(scale)
  found, expected = (
    jax.jit(functools.partial(with_gradients, way)) for way in (ours, through_merged_kernel)
  )
  for a in range(1 if 'A' in without else 3):
    for b in range(1 if 'B' in without else 3 + len(RANKS)):
      arguments = (*arrays, stored), jnp.array([a, b, 0, 0, 0])
      assert_trees_close(found(*arguments), expected(*arguments), 1e-5)


@pytest.mark.parametrize('tokens', [MANY, FEW])
def test_derivatives_of_both_modes_and_orders_are_right(tokens):
  with jax.enable_x64(True):
    inputs, kernel, bias, stored = layer(tokens, 'CDE', 'float64')
    function = functools.partial(ours, forms=jnp.array([2, 4, 0, 0, 0]))
    outputs = jax.jit(lambda inputs, stored: jnp.sin(function(inputs, kernel, bias, stored)))
    check_grads(outputs, (inputs, stored), order=2)


def sums_over_tokens(function, tokens):
  """Whether a gradient has a product that sums over all tokens into the shape of the kernel."""
  inputs, kernel, bias, stored = layer(tokens, 'ACDE')

  def loss(inputs, stored):
    return jnp.sin(function(inputs, kernel, bias, stored, jnp.array([0, 4, 0, 0, 0]))).sum()

  program = jax.jit(jax.grad(loss, (0, 1))).lower(inputs, stored).as_text()
  operand = rf'tensor<{tokens}x(?:{IN}|{OUT})xf32>'
  return re.search(rf'dot_general.*\({operand}, {operand}\) -> tensor<(?!{tokens}x)', program)


@pytest.mark.parametrize('tokens', [MANY, FEW])
def test_no_gradient_of_the_kernel_is_computed_for_its_factors(tokens):
  assert sums_over_tokens(through_merged_kernel, tokens)
  assert not sums_over_tokens(ours, tokens)


@pytest.mark.parametrize('tokens', [MANY, FEW])
def test_every_product_has_the_precision_of_the_layer(tokens):
  inputs, kernel, _, stored = layer(tokens, 'CDE')
  model = nn.Dense(OUT, use_bias=False, precision='highest')
  adapted = adapt(model, inputs, space=SearchSpace(RANKS), heads=None)
  subnet = adapted.fix(np.array([[0, 4, 0, 0, 0]]))

  def loss(inputs, stored):
    return jnp.sin(subnet.apply({'params': {'kernel': kernel}, 'glora': stored}, inputs)).sum()

  program = jax.jit(jax.grad(loss, (0, 1))).lower(inputs, stored).as_text()
  products = [line for line in program.splitlines() if 'stablehlo.dot_general' in line]
  assert any(f'tensor<{tokens}x{RANKS[-1]}xf32>' in line for line in products)
  assert not [line for line in products if 'precision = [HIGHEST, HIGHEST]' not in line]


def test_small_changes_of_a_narrow_kernel_are_not_rounded_away():
  signs = (-1.0) ** jnp.arange(IN)  # with which the kernel itself gives 0
  inputs, kernel = jnp.tile(signs, (MANY, 1)), jnp.ones((IN, OUT))
  stored = {'B_down': 1e-2 * jnp.tile(signs, (3, 1)).T, 'B_up': jnp.full((3, OUT), 1e-2)}
  inputs, kernel = (value.astype(jnp.bfloat16) for value in (inputs, kernel))
  outputs = ours(inputs, kernel, None, stored, jnp.array([0, 4, 0, 0, 0]))
  assert outputs.dtype == jnp.bfloat16
  assert_allclose(outputs.astype(jnp.float32), IN * 3e-4, rtol=2e-2)


def test_a_program_is_that_of_the_platform_that_it_is_exported_for():
  """A CPU multiplies with a merged kernel; a TPU, which would round the sum, with the base's."""

  def changes_kernel(platform):
    function = jax.jit(functools.partial(ours, forms=jnp.array([2, 4, 0, 0, 0])))
    exported = jax.export.export(function, platforms=[platform])(*layer(MANY, 'CDE'))
    return re.search(rf'stablehlo.add.*tensor<{IN}x{OUT}xf32>', exported.mlir_module())

  assert changes_kernel('cpu')
  assert not changes_kernel('tpu')


def test_gradients_of_factors_transpose_no_tokens():
  def loss(factors, inputs, kernel, second):
    factors = dict(zip(('B_down', 'B_up'), factors, strict=True))
    forms = np.array([0, 3, 0, 0, 0])
    hidden = equation.layer_output(jnp.matmul, inputs, kernel, factors, forms, (2,))
    return ((jax.nn.gelu(hidden) @ second) ** 2).sum()

  images, tokens, width, hidden = 4, 97, 16, 64
  shapes = (width, 2), (2, hidden), (images, tokens, width), (width, hidden), (hidden, width)
  down, up, *others = (normal(*shape) for shape in shapes)
  program = jax.jit(jax.grad(loss)).lower((down, up), *others).compile().as_text()
  assert f'[{images * tokens},{hidden}]' in program
  assert f'[{hidden},{images * tokens}]' not in program
