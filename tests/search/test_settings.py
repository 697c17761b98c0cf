"""The numbers of a search."""

import pytest

from glora_jax.search.settings import Evolution


def test_defaults_are_the_papers():
  assert Evolution() == Evolution(50, 20, 10, 25, 25, 0.2, 'accuracy', 'paper')


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'population': 0}, 'at least 1'),
    ({'mutations': 40}, 'more than population=50'),
    ({'fitness': 'speed'}, "'accuracy' or 'loss'"),
    ({'mutation_probability': 1.5}, 'between 0 and 1'),
    ({'mode': 'greedy'}, 'paper, pareto, guided, random'),
  ],
)
def test_wrong_settings_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    Evolution(**fields)
