"""GLoRA on models that other code bases ship, counted by hand; a missing code base is skipped."""

import functools

import jax
import pytest
from comparing import vector
from hand_count import NnxExample, randomized_model
from zoo_cases import SPACE, Case

import glora_jax
from tests.peers import code_bases


@functools.cache
def case(name):
  try:
    example = code_bases.EXAMPLES[name]()
  except ImportError as error:
    pytest.skip(f'needs the peers extra: {error}')
  if isinstance(example, NnxExample):
    model = randomized_model(example.make)
    params = glora_jax.nnx.params(model)
    adapted = glora_jax.nnx.adapt(model, *example.inputs, space=SPACE, **example.options)
  else:
    params = example.params
    adapted = glora_jax.adapt_function(
      example.apply, params, *example.inputs, space=SPACE, **example.options
    )

  @jax.jit
  def plain(params):
    if isinstance(example, NnxExample):
      return vector(glora_jax.nnx.with_params(model, params)(*example.inputs))
    return vector(example.apply(params, *example.inputs))

  return Case(example, adapted, params, plain)


@pytest.mark.parametrize('name', code_bases.EXAMPLES)
def test_a_model_of_another_code_base_is_found_whole_and_folds(name):
  model = case(name)
  model.check_rows()
  model.check_coverage()
  model.check_identity()
  model.check_fold()
  model.check_gradients()
