"""What a report says of a structure that was read off a gradient, from values made by hand."""

import numpy as np
import pytest

from glora_jax.reports import structure
from glora_jax.search.allocated import Allocation


@pytest.fixture
def result():
  return {
    'protocol': 'honest',
    'allocation': {'head_epochs': 6, 'epochs': 4},
    'seconds': {'head': 3.2, 'structure': 4.4, 'training': 60.0},
  }


def test_the_table_has_every_form_on_offer_and_marks_what_was_bought(allocation):
  lines = str(structure.values_table(list(allocation.units()))).splitlines()
  assert lines[0] == '| layer | A vector | A LoRA | B LoRA | C vector | E vector |'
  assert lines[2] == '| attn/qkv | **30.0** | 0.0 | 0.0 | 0.0 | **20.0** |'
  # C is on offer only where there are fewer inputs than outputs.
  assert lines[3] == '| mlp/fc2 | 0.0 | 0.0 | **50.0** (2) |  | 0.0 |'


def test_the_page_says_what_was_found_and_what_it_cost(allocation, result):
  told = [
    structure.tell_choice(allocation, result),
    structure.tell_cost(result),
  ]
  text = ' '.join(told)
  assert 'structure of 40 parameters was read off one gradient' in text
  assert 'was trained alone for 6 epochs before' in text
  assert 'up to 40 parameters. No validation image was used.' in text
  assert 'Head and gradient took 8 seconds' in text
  assert 'count as 4 epochs' in text


def test_the_papers_protocol_is_not_said_to_leave_validation_images_alone(allocation, result):
  """It trains on them."""
  result['protocol'] = 'paper'
  text = structure.tell_choice(allocation, result)
  assert 'validation image' not in text
  assert 'up to 40 parameters. `structure/` has the numbers.' in text


def test_a_budget_that_nobody_gave_is_said_to_be_proposed(allocation, result):
  proposed = Allocation(**{**vars(allocation), 'proposed': True})
  text = structure.tell_choice(proposed, result)
  assert 'No budget was given; the one proposed is the knee' in text


def test_little_agreement_is_called_little():
  first, second = np.zeros((2, 4, 5), np.int8)
  first[0, 1], second[2, 1] = 3, 3
  assert 'another trains 0% in the same form' in structure.tell_agreement([first, second])
  assert 'That is little' in structure.tell_agreement([first, second])
  assert 'That is little' not in structure.tell_agreement([first, first])
