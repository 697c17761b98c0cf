"""GLoRA on models that other code bases ship, counted by hand."""

import pytest
from zoo_cases import case_of

from tests.peers import code_bases


@pytest.mark.parametrize('name', code_bases.EXAMPLES)
def test_a_model_of_another_code_base_is_found_whole_and_folds(name):
  model = case_of(code_bases.EXAMPLES[name]())
  model.check_layers()
  model.check_results()
