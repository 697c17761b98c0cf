"""What a report says of a structure that was read off a gradient, from values made by hand."""

from glora_jax.reports import structure


def test_the_table_has_every_form_on_offer_and_marks_what_was_bought(allocation):
  lines = str(structure.values_table(list(allocation.units()))).splitlines()
  assert lines[0] == '| layer | A vector | A LoRA | B LoRA | C vector | E vector |'
  bought = '<strong>{}</strong>'.format
  assert lines[2] == f'| attn/qkv | {bought("30.0")} | 0.0 | 0.0 | 0.0 | {bought("20.0")} |'
  # C is on offer only where there are fewer inputs than outputs.
  assert lines[3] == f'| mlp/fc2 | 0.0 | 0.0 | {bought("50.0")} (2) |  | 0.0 |'


def test_the_papers_protocol_is_not_said_to_leave_validation_images_alone(allocation):
  """It trains on them."""
  for protocol in ('honest', 'paper'):
    result = {'protocol': protocol, 'allocation': {'head_epochs': 6, 'epochs': 4}}
    text = structure.tell_choice(allocation, result)
    assert ('No validation image was used' in text) == (protocol == 'honest')
