"""GLoRA on models that other code bases ship, counted by hand; a missing code base is skipped."""

import functools

import pytest
from hand_count import FunctionExample, randomized_model
from zoo_cases import case_of

from tests.peers import code_bases


@functools.cache
def case(name):
  try:
    example = code_bases.EXAMPLES[name]()
  except ImportError as error:
    pytest.skip(f'needs the peers extra: {error}')
  is_function = isinstance(example, FunctionExample)
  return case_of(example, None if is_function else randomized_model(example.make))


@pytest.mark.parametrize('name', code_bases.EXAMPLES)
def test_a_model_of_another_code_base_is_found_whole_and_folds(name):
  model = case(name)
  model.check_rows()
  model.check_coverage()
  model.check_identity()
  model.check_fold()
  model.check_gradients()
