"""GLoRA on pure functions of many kinds, found by how they use their parameters."""

import function_zoo
import pytest
from zoo_cases import SPACE, Case, case_of

import glora_jax


def case(name):
  return case_of(function_zoo.EXAMPLES[name](), heads=None)


@pytest.mark.parametrize('name', function_zoo.EXAMPLES)
def test_a_function_is_found_whole_starts_as_itself_folds_by_the_equation_and_has_gradients(name):
  model = case(name)
  model.check_layers()
  model.check_results()


def test_a_linen_model_of_other_peoples_modules_is_adapted_by_use():
  function = case('own_modules_scanned_along_axis_1')
  adapted = glora_jax.adapt(
    function.example.linen, *function.example.inputs, space=SPACE, heads=None
  )
  linen = Case(function.example, adapted, function.params, function.plain)
  linen.check_layers()
  linen.check_fold()
