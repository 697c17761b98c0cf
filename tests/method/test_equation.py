"""The equation: parity with the official layer, nested ranks, identity at the start."""

import functools
import itertools

import hand_count
import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
from comparing import assert_close
from numpy.testing import assert_allclose
from trees import normal

from glora_jax.method import adapter, equation

pytestmark = pytest.mark.accelerator


def effective(kernel, bias, layer_adapter, forms, ranks=(4,)):
  """The kernel and bias of a layer with its supports merged in (eq. 10)."""
  rest = layer_adapter, forms, ranks
  return (
    equation.effective_kernel(kernel, *rest),
    equation.effective_bias(kernel, bias, *rest),
  )


@functools.cache
def merged(ranks=(4,)):
  """A compiled `effective` over a population: kernel, bias, supports, forms [genome, 5]."""
  function = functools.partial(effective, ranks=ranks)
  return jax.jit(jax.vmap(function, (None, None, None, 0)))


def all_forms(ranks):
  """Every combination of forms, [genome, 5]."""
  codes = (3 + len(ranks), 3 + len(ranks), 2 + len(ranks), 3, 3)
  return np.array(list(itertools.product(*map(range, codes))))


@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-12), ('float32', 1e-5)])
def test_all_432_forms_equal_the_official_layer(dtype, tolerance):
  golden = official.load_layer()
  values = [golden[name] for name in ('kernel', 'bias', 'supports', 'x')]
  with jax.enable_x64(dtype == 'float64'):
    *layer, x = jax.tree.map(lambda value: jnp.asarray(value, dtype), values)
    kernels, biases = merged()(*layer, golden['genomes'])
    ours = x @ kernels + biases[:, None]
  assert ours.dtype == dtype
  assert len(golden['genomes']) == 432
  assert_close(ours, golden['y'], tolerance)


def test_a_gradient_keeps_no_wide_copy_of_a_narrow_kernel():
  bias = jnp.zeros(5, jnp.bfloat16)
  kernel, forms = jnp.ones((6, 5), jnp.bfloat16), jnp.array([3, 3, 2, 2, 2])

  def backward(layer_adapter):
    function = functools.partial(effective, kernel, bias, forms=forms)
    return jax.vjp(function, layer_adapter)[1]

  start = {name: jnp.zeros(shape) for name, shape in adapter.adapter_shapes(6, 5, (4,)).items()}
  kept = [leaf for leaf in jax.tree.leaves(jax.eval_shape(backward, start)) if leaf.size == 30]
  assert all(leaf.dtype == jnp.bfloat16 for leaf in kept)


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('fan_in, fan_out, ranks', [(1, 5, (1,)), (6, 1, (4,)), (6, 5, (2, 4, 8))])
def test_nested_ranks_and_untied_storage_equal_a_plain_reading(fan_in, fan_out, ranks, shared):
  rng = np.random.default_rng(0)
  shapes = adapter.adapter_shapes(fan_in, fan_out, ranks, shared=shared)
  layer_adapter = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  kernel, bias = rng.normal(size=(fan_in, fan_out)), rng.normal(size=fan_out)
  genomes = all_forms(ranks)
  with jax.enable_x64(True):
    kernels, biases = map(np.asarray, merged(ranks)(kernel, bias, layer_adapter, genomes))
  assert kernels.dtype == np.float64
  for index, forms in enumerate(genomes):
    expected = hand_count.equation(kernel, bias, layer_adapter, forms, ranks)
    assert_allclose(kernels[index], expected[0], rtol=1e-12, atol=1e-12)
    assert_allclose(biases[index], expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('rank', [1, equation.LOW_RANK, equation.LOW_RANK + 1])
def test_a_product_of_factors_is_a_matrix_product_s(rank):
  down, up = normal(9, rank), normal(rank, 7)
  assert_close(equation.low_rank_product(down, up), down @ up)


def test_folding_low_ranks_makes_no_array_of_the_kernels_size_but_the_result():
  shapes = adapter.adapter_shapes(256, 256, (4,))
  layer_adapter = {name: jnp.zeros(shape) for name, shape in shapes.items()}
  arguments = jnp.ones((256, 256)), layer_adapter, jnp.array([3, 3, 0, 0, 0])
  rest = {'ranks': (4,), 'lora_product': equation.low_rank_product}
  fold = functools.partial(equation.effective_kernel, **rest)
  memory = jax.jit(fold).lower(*arguments).compile().memory_analysis()
  assert memory.temp_size_in_bytes < memory.output_size_in_bytes / 2


def test_supports_left_unread_may_be_anything():
  """Selected, not multiplied by zero: a NaN in a form that is not chosen stays out."""
  shapes = adapter.adapter_shapes(4, 5, (4,))
  nans = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
  for merged_array in merged()(np.ones((4, 5)), np.ones(5), nans, np.zeros((1, 5), int)):
    assert np.all(merged_array == 1)
