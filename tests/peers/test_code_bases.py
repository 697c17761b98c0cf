"""GLoRA on models that other code bases ship, counted by hand; a missing code base is skipped."""

import pytest
from hand_count import FunctionExample, randomized_model
from zoo_cases import case_of

from tests.peers import code_bases


@pytest.mark.parametrize('name', code_bases.EXAMPLES)
def test_a_model_of_another_code_base_is_found_whole_and_folds(name):
  try:
    example = code_bases.EXAMPLES[name]()
  except ImportError as error:
    pytest.skip(f'needs the peers extra: {error}')
  is_function = isinstance(example, FunctionExample)
  model = case_of(example, None if is_function else randomized_model(example.make))
  model.check_layers()
  model.check_results()
