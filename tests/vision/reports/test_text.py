"""Tables and times are as pages and the terminal show them."""

from glora_jax.vision.reports.text import Table


def test_columns_of_text_are_on_the_left_and_names_stay_in_their_cells():
  table = Table('', ('task', 'state', 'params'), [(' a|b\n c', 'done', 7)], 2)
  assert str(table).splitlines() == [
    '| task | state | params |',
    '|---|---|---:|',
    r'| a\|b c | done | 7 |',
  ]


def test_an_empty_cell_of_a_row_that_stands_out_is_empty():
  assert str(Table('', ('task', 'mean'), [('dtd', '')], strong=[0])).endswith('\n| **dtd** |  |')
