"""GLoRA on NNX models of many kinds, as pure functions and alive."""

import functools

import jax
import jax.numpy as jnp
import nnx_zoo
import numpy as np
import pytest
from comparing import vector
from flax import nnx
from hand_count import by_name, expected, fold_by_hand, found, randomized_model, unboxed
from trees import randomized
from zoo_cases import SPACE, Case, as_at_start, distance

import glora_jax
from glora_jax.nnx import Support, live

# Small, and unlike each other; the others are computed by `.ci/full`, here and for the record.
QUICK = (
  'fused_queries_keys_and_values',
  'scanned_layers',
  'shared_layers',
  'streams_as_an_argument',
)
every_model = pytest.mark.parametrize('name', nnx_zoo.EXAMPLES)
computed = pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in nnx_zoo.EXAMPLES
  ],
)


@nnx.jit
def call(model, inputs, kwargs):
  """Compiled once for a model, whatever its parameters."""
  return vector(model(*inputs, **kwargs))


@nnx.jit
def compute(model, inputs, kwargs):
  """Gradients of a sum of the outputs by the supports, the outputs, and the folded parameters."""

  def loss(model):
    outputs = vector(model(*inputs, **kwargs))
    return jnp.cos(jnp.arange(len(outputs))) @ outputs, outputs

  folded = glora_jax.nnx.params(glora_jax.nnx.fold(model))
  return *nnx.grad(loss, argnums=nnx.DiffState(0, Support), has_aux=True)(model), folded


@functools.cache
def base(name):
  """(example, its model with random parameters)."""
  example = nnx_zoo.EXAMPLES[name]()
  return example, randomized_model(example.make)


@functools.cache
def case(name):
  """The model as a pure function."""
  example, model = base(name)
  adapted = glora_jax.nnx.adapt(
    model, *example.inputs, space=SPACE, **example.options, **example.kwargs
  )

  def plain(params):
    return call(glora_jax.nnx.with_params(model, params), example.inputs, example.kwargs)

  return Case(example, adapted, glora_jax.nnx.params(model), plain)


@every_model
def test_rows_are_the_layers_that_a_reader_counts(name):
  case(name).check_rows()


@computed
def test_every_subnet_is_the_model_at_initialization(name):
  case(name).check_identity()


@computed
def test_fold_is_the_equation_along_the_axes_that_a_reader_finds(name):
  case(name).check_fold()


@computed
def test_every_support_of_every_layer_gets_a_gradient(name):
  case(name).check_gradients()


@every_model
def test_matrices_that_no_row_covers_are_named(name):
  case(name).check_coverage()


@computed
def test_a_live_model_has_the_rows_computes_the_equation_folds_and_has_gradients(name):
  example, model = base(name)
  attached = glora_jax.nnx.attach(
    model, *example.inputs, space=SPACE, **example.options, **example.kwargs
  )
  adapted, variables = glora_jax.nnx.as_adapted(attached)
  assert isinstance(attached, type(model))
  assert found(adapted) == expected(example.kernels)
  assert len(live.spec(attached)) == example.rows

  variables = {**variables, 'glora': randomized(variables['glora'], seed=2)}
  start = {**variables, 'glora': as_at_start(variables['glora'])}
  glora_jax.nnx.set_variables(attached, start)
  outputs = compute(attached, example.inputs, example.kwargs)[1]
  assert distance(outputs, call(model, example.inputs, example.kwargs)) <= example.tolerance

  glora_jax.nnx.set_variables(attached, variables)
  by_support, outputs, params = compute(attached, example.inputs, example.kwargs)
  sizes = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(by_support)]
  assert min(sizes) > 1e-6 * max(sizes) or example.blind != r'(?!)'
  genome = live.get_genome(attached)
  rows = {layer.name: genome[row] for row, layer in enumerate(adapted.spec)}
  by_hand = fold_by_hand(
    example.kernels,
    by_name(glora_jax.nnx.params(model)),
    unboxed(variables['glora']),
    rows,
    SPACE.ranks,
  )
  assert by_name(params).keys() == by_hand.keys()
  for path, value in by_name(params).items():
    np.testing.assert_allclose(value, by_hand[path], atol=1e-5 * np.abs(by_hand[path]).max())
  folded = glora_jax.nnx.with_params(model, params)
  assert type(folded) is type(model) is type(nnx.eval_shape(glora_jax.nnx.fold, attached))
  assert distance(outputs, call(folded, example.inputs, example.kwargs)) <= example.tolerance
