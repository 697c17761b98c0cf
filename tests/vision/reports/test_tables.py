"""Tables, cells and times are as pages and the terminal show them."""

import math

import pytest

from glora_jax.vision.reports import tables
from glora_jax.vision.reports.tables import Table


def test_columns_of_text_are_on_the_left_and_names_stay_in_their_cells():
  table = Table('', ('task', 'state', 'params'), [(' a|b\n c', 'done', 7)], 2)
  assert str(table).splitlines() == [
    '| task | state | params |',
    '|---|---|---:|',
    r'| a\|b c | done | 7 |',
  ]


def test_an_empty_cell_of_a_row_that_stands_out_is_empty():
  assert str(Table('', ('task', 'mean'), [('dtd', '')], strong=[0])).endswith('\n| **dtd** |  |')


def test_only_several_numbers_have_a_spread_and_those_that_are_not_finite_none():
  """A training that diverged may have such a loss."""
  assert tables.mean([0.5]).deviation is None
  assert tables.mean([1.0, 3.0]).deviation == pytest.approx(2**0.5)
  assert math.isnan(tables.mean([1.0, math.inf]).deviation)


def test_a_minute_has_sixty_seconds():
  assert [tables.duration(seconds) for seconds in (59.94, 59.96)] == ['59.9 s', '1 min 0 s']
