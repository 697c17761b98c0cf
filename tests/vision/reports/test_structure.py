"""What a report says of a structure that was read off a gradient, from values made by hand."""

from glora_jax.vision.reports import structure


def test_the_papers_protocol_is_not_said_to_leave_validation_images_alone(allocation):
  """It trains on them."""
  for protocol in ('honest', 'paper'):
    result = {'protocol': protocol, 'allocation': {'head_epochs': 6, 'epochs': 4}}
    text = structure.tell_choice(allocation, result)
    assert ('No validation image was used' in text) == (protocol == 'honest')
