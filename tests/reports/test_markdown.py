"""Markdown: names that it would read stay names, and numbers are as tables show them."""

import math

import pytest

from glora_jax.reports import markdown


def test_columns_of_text_are_on_the_left_and_numbers_on_the_right():
  text = str(markdown.Table(('task', 'state', 'params'), [('digits', 'done', 7)], 2))
  assert text.splitlines() == [
    '| task | state | params |',
    '|---|---|---:|',
    '| digits | done | 7 |',
  ]


@pytest.mark.parametrize('character', '\\`*_{}[]<>#|$~')
def test_what_markdown_would_read_is_escaped(character):
  assert markdown.plain(f'a{character}b') == f'a\\{character}b'


def test_a_name_with_line_breaks_stays_in_its_cell():
  assert markdown.plain(' two\n  lines ') == 'two lines'


def test_accuracies_on_images_that_were_trained_on_are_called_so():
  assert markdown.percent(None) == 'trained on'
  assert markdown.percent(0.9625) == '96.2'


def test_a_single_value_has_no_spread():
  assert markdown.spread([0.5]) == (0.5, 0.0)
  assert markdown.spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_the_spread_of_what_is_not_finite_is_no_number(value):
  """A training that diverged may have such a loss."""
  assert math.isnan(markdown.spread([1.0, value]).deviation)
  assert markdown.spread([value]).deviation == 0.0
