"""What a report says of a structure that was read off a gradient, from values made by hand."""

import numpy as np

from glora_jax.reports import structure


def test_the_table_has_every_form_on_offer_and_marks_what_was_bought(allocation):
  lines = str(structure.values_table(list(allocation.units()))).splitlines()
  assert lines[0] == '| layer | A vector | A LoRA | B LoRA | C vector | E vector |'
  assert lines[2] == '| attn/qkv | **30.0** | 0.0 | 0.0 | 0.0 | **20.0** |'
  # C is on offer only where there are fewer inputs than outputs.
  assert lines[3] == '| mlp/fc2 | 0.0 | 0.0 | **50.0** (2) |  | 0.0 |'


def test_the_papers_protocol_is_not_said_to_leave_validation_images_alone(allocation):
  """It trains on them."""
  for protocol in ('honest', 'paper'):
    result = {'protocol': protocol, 'allocation': {'head_epochs': 6}}
    text = structure.tell_choice(allocation, result)
    assert ('No validation image was used' in text) == (protocol == 'honest')


def test_little_agreement_is_called_little():
  first, second = np.zeros((2, 4, 5), np.int8)
  first[0, 1], second[2, 1] = 3, 3
  assert 'another trains 0% in the same form' in structure.tell_agreement([first, second])
  assert 'That is little' in structure.tell_agreement([first, second])
  assert 'That is little' not in structure.tell_agreement([first, first])
