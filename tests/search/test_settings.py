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
    ({'fitness': 'speed'}, 'one of accuracy, loss'),
    ({'population': 10**9}, 'population=1000000000 must be at least 1 and at most 1000000'),
    ({'generations': 1.5}, 'generations=1.5 must be a whole number'),
    ({'mutation_probability': float('nan')}, 'must be a finite number'),
    ({'mutation_probability': 1.5}, 'must be at least 0 and at most 1'),
    ({'mode': 'greedy'}, 'paper, pareto, random'),
  ],
)
def test_wrong_settings_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    Evolution(**fields)
