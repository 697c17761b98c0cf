"""GLoRA on pure functions of many kinds, found by how they use their parameters."""

import functools

import function_zoo
import pytest
from zoo_cases import SPACE, Case, case_of

import glora_jax

every_function = pytest.mark.parametrize('name', function_zoo.EXAMPLES)


@functools.cache
def case(name):
  return case_of(function_zoo.EXAMPLES[name](), heads=None)


@every_function
def test_rows_are_the_layers_that_a_reader_counts(name):
  case(name).check_rows()


@every_function
def test_every_subnet_is_the_function_at_initialization(name):
  case(name).check_identity()


@every_function
def test_fold_is_the_equation_along_the_axes_that_a_reader_finds(name):
  case(name).check_fold()


@every_function
def test_every_support_of_every_layer_gets_a_gradient(name):
  case(name).check_gradients()


@every_function
def test_matrices_that_no_row_covers_are_named(name):
  case(name).check_coverage()


def test_a_linen_model_of_other_peoples_modules_is_adapted_by_use():
  function = case('own_modules_scanned_along_axis_1')
  adapted = glora_jax.adapt(
    function.example.linen, *function.example.inputs, space=SPACE, heads=None
  )
  linen = Case(function.example, adapted, function.params, function.plain)
  linen.check_rows()
  linen.check_coverage()
  linen.check_fold()
