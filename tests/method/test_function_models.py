"""GLoRA on pure functions of many kinds, found by how they use their parameters."""

import function_zoo
import pytest
from zoo_cases import case_of


@pytest.mark.parametrize('name', function_zoo.EXAMPLES)
def test_a_function_is_found_whole_starts_as_itself_folds_by_the_equation_and_has_gradients(name):
  model = case_of(function_zoo.EXAMPLES[name](), heads=None)
  model.check_layers()
  model.check_results()
