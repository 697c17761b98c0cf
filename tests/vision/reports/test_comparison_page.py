"""What a comparison writes: its methods in order, verdicts from pairs of seeds."""

import csv

import pytest
from pages import comparison

from glora_jax.vision.reports import comparison_page


@pytest.fixture
def result(allocation):
  """A comparison of five methods with two seeds; the search's rival has 180 parameters."""
  return comparison(allocation)


def table(result):
  """The rows of the table as text."""
  summary = comparison_page.summary(result, 'workdir')
  return [line for line in summary.splitlines() if line.startswith('|')][2:]


def test_the_verdict_is_the_paired_difference_to_the_best_within_the_budget(result):
  verdict = '\n'.join(comparison_page.verdicts(result))
  assert 'Searched, at most 200: +2.0 ± 1.4 points against LoRA' in verdict
  del result['methods']['linear'], result['methods']['lora']
  assert comparison_page.verdicts(result) == []


def test_the_table_shows_means_and_spreads_in_the_order_of_parameters(result):
  assert table(result) == [
    '| linear probe | 0 | 50.0 ± 0.0 | 81.0 ± 1.4 |  | 0.001 | 1 |',
    '| gradient, at most 60 | 40 | 50.0 ± 0.0 | 95.0 ± 0.0 |  | 0.001 | 1 |',
    '| searched, at most 200 | 150 | 50.0 ± 0.0 | 91.0 ± 0.0 | 85.0 ± 0.0 | 0.001 | 1 |',
    '| LoRA | 180 | 50.0 ± 0.0 | 89.0 ± 1.4 |  | 0.001 | 1 |',
    '| all of GLoRA | 500 | 50.0 ± 0.0 | 95.0 ± 0.0 |  | 0.001 | 1 |',
  ]


@pytest.mark.parametrize('loss', [float('nan'), None])
def test_a_method_says_how_many_of_its_seeds_diverged_or_learned_nothing(
  result, allocation, tmp_path, loss
):
  """In a file a number that is missing is null."""
  result['methods']['lora'][1]['test_loss'] = loss
  result['diverged'] = {'lora': {'1': 'Its loss is not finite.'}}
  result['learned_nothing'] = {'lora': {'0': 'It guesses.'}, 'full': dict.fromkeys('01', 'Too.')}
  assert any(
    '| LoRA (1 of 2 seeds diverged, 1 of 2 seeds learned nothing) |' in line
    for line in table(result)
  )
  told = comparison_page.tell_troubles(result)
  assert 'Seed 1: Its loss is not finite. Seed 0: It guesses.' in told
  assert 'Seeds 0, 1: Too.' in told
  comparison_page.write(str(tmp_path), result, allocation.spec, [])
  with open(tmp_path / 'table.csv') as file:
    lines = {(line['method'], line['seed']): line for line in csv.DictReader(file)}
  assert len(lines) == 10
  assert lines['lora', '1']['diverged'] == 'Its loss is not finite.'
  assert lines['linear', '0']['diverged'] == ''
  assert float(lines['search-200', '0']['inherited_test_accuracy']) == 0.85


def test_a_comparison_on_all_images_does_not_call_given_rates_chosen():
  result = {'methods': {'bitfit': {}}, 'epochs': 2, 'rates': (0.1,), 'train_on': 'train+val'}
  told = comparison_page.tell_making({**result, 'seconds': {}})
  assert 'training and validation images' in ' '.join(told.split())
  assert 'chosen' not in told
