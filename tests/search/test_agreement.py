"""How much structures agree, against cases that can be counted by hand."""

import numpy as np
import pytest

from glora_jax.search.agreement import agreement


def genome(**columns):
  codes = np.zeros((4, 5), np.int8)
  for tensor, values in columns.items():
    codes[:, 'ABCDE'.index(tensor)] = values
  return codes


def test_one_and_the_same_structure_agrees_wholly():
  found = agreement([genome(B=[3, 0, 0, 5])] * 3)
  assert found.share == 1
  assert found.chance < 1
  assert not found.is_little


def test_ranks_count_as_one_form_and_other_forms_do_not():
  lora, other_rank, vector = genome(B=[3, 0, 0, 0]), genome(B=[9, 0, 0, 0]), genome(B=[2, 0, 0, 0])
  assert agreement([lora, other_rank]).share == 1
  assert agreement([lora, vector]).share == 0


def test_structures_that_share_no_more_than_chance_agree_little():
  found = agreement([genome(E=[2, 2, 0, 0]), genome(E=[0, 2, 2, 0])])
  assert found.share == pytest.approx(1 / 3)
  # The second one shifted: to layers 2 and 3, to 3 and 0, to 0 and 1.
  assert found.chance == pytest.approx((0 + 1 / 3 + 1) / 3)
  assert found.is_little


def test_a_single_structure_has_nothing_to_agree_with():
  with pytest.raises(ValueError, match='give at least two'):
    agreement([genome()])
