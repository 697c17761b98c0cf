"""What a report says of a structure read off a gradient, and how much structures agree, by hand."""

import numpy as np
import pytest

from glora_jax.vision.reports import structure


def test_the_papers_protocol_is_not_said_to_leave_validation_images_alone(allocation):
  """It trains on them."""
  for protocol in ('honest', 'paper'):
    result = {'protocol': protocol, 'allocation': {'head_epochs': 6, 'epochs': 4}}
    text = structure.tell_choice(allocation, result)
    assert ('No validation image was used' in text) == (protocol == 'honest')


def genome(**columns):
  codes = np.zeros((4, 5), np.int8)
  for tensor, values in columns.items():
    codes[:, 'ABCDE'.index(tensor)] = values
  return codes


def test_ranks_count_as_one_form_and_other_forms_do_not():
  lora, other_rank, vector = (genome(B=[code, 0, 0, 0]) for code in (3, 9, 2))
  share, chance = structure.agreement([lora, other_rank, lora])
  assert share == 1 > chance
  assert structure.agreement([lora, vector])[0] == 0


def test_structures_that_share_no_more_than_chance_agree_little():
  share, chance = structure.agreement([genome(E=[2, 2, 0, 0]), genome(E=[0, 2, 2, 0])])
  assert share == pytest.approx(1 / 3)
  # The second one shifted: to layers 2 and 3, to 3 and 0, to 0 and 1.
  assert chance == pytest.approx((0 + 1 / 3 + 1) / 3)


@pytest.mark.parametrize(
  'names, kinds, blocks',
  [
    (['blocks/qkv[0]', 'blocks/fc1[0]', 'blocks/qkv[1]'], ['qkv', 'fc1'], ['0', '1']),
    (['stages/0/blocks/0/fc1', 'stages/0/down'], ['fc1', 'down'], ['0.0', '0']),
    (['a/0/fc1', 'b/0/fc1'], ['fc1'], ['0', '0']),  # no layer is drawn over another
    (['fc1', 'fc2'], [''], ['fc1', 'fc2']),
  ],
)
def test_blocks_are_rows_and_kinds_of_layers_columns(names, kinds, blocks):
  none = dict.fromkeys('ABCDE', 'none')
  layers = [{'layer': name, **none, 'params': [0, 1, 0, 0, 0]} for name in names]
  found = structure.figure('lora:2', layers)
  assert found.kinds == kinds
  assert [label for label, _ in found.blocks] == blocks
  drawn = [layer.name for _, row in found.blocks for layer in row if layer]
  assert sorted(drawn) == sorted(names)
