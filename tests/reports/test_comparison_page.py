"""What a comparison writes: its rows in order, verdicts from pairs of seeds."""

import csv

import pytest
from pages import runs

from glora_jax.method.space import Spec
from glora_jax.reports import comparison_page


def written(folder, result):
  """The lines of the table that a comparison without structures writes, by method."""
  comparison_page.write(str(folder), result, Spec(()), [])
  with open(folder / 'table.csv') as file:
    return {row['method']: row for row in csv.DictReader(file)}


@pytest.fixture
def result():
  """A comparison of four methods with two seeds; the search's rival has 180 parameters."""
  return {
    'task': 'digits',
    'weights': 'embedded',
    'epochs': 8,
    'finetune_epochs': 2,
    'seeds': [0, 1],
    'rates': [1e-3, 1e-2],
    'rate': dict.fromkeys(('linear', 'lora', 'full', 'search'), 1e-3),
    'methods': {
      'full': runs(500, 0.95, 0.95),
      'linear': runs(0, 0.80, 0.82),
      'lora': runs(180, 0.90, 0.88),
      'search-200': runs(150, 0.91, 0.91, inherited_test_accuracy=0.85),
    },
    'data': {'origin': 'made by hand', 'notes': ['A note.']},
    'seconds': {},
  }


def test_the_verdict_is_the_paired_difference_to_the_best_within_the_budget(result):
  [verdict] = comparison_page.verdicts(result)
  assert verdict.startswith(
    'Searched, at most 200: +2.0 ± 1.4 points beside LoRA, the best fixed method within that '
    '(150 and 180 parameters'
  )
  del result['methods']['linear'], result['methods']['lora']
  assert comparison_page.verdicts(result) == []


def test_the_table_shows_means_and_spreads_in_the_order_of_parameters(result):
  assert str(comparison_page.accuracies(result)).splitlines()[2:] == [
    '| linear probe | 0 | 0.001 | 50.0 ± 0.0 | 81.0 ± 1.4 |  | 1 |',
    '| searched, at most 200 | 150 | 0.001 | 50.0 ± 0.0 | 91.0 ± 0.0 | 85.0 ± 0.0 | 1 |',
    '| LoRA | 180 | 0.001 | 50.0 ± 0.0 | 89.0 ± 1.4 |  | 1 |',
    '| all of GLoRA | 500 | 0.001 | 50.0 ± 0.0 | 95.0 ± 0.0 |  | 1 |',
  ]


def test_a_single_seed_has_no_spread(result, tmp_path):
  result['methods'] = {name: found[:1] for name, found in result['methods'].items()}
  assert '±' not in comparison_page.summary({**result, 'seeds': [0]}, str(tmp_path))
  rows = written(tmp_path, {**result, 'seeds': [0]}).values()
  assert {row['test_accuracy_spread'] for row in rows} == {''}
  assert [float(row['test_accuracy']) for row in rows] == [0.80, 0.91, 0.90, 0.95]


def test_a_row_says_how_many_of_its_seeds_diverged_or_learned_nothing_and_how(result, tmp_path):
  result['diverged'] = {'lora': {'1': 'Its loss is not finite.'}}
  result['learned_nothing'] = {'lora': {'0': 'It guesses.'}, 'full': dict.fromkeys('01', 'Too.')}
  title = 'LoRA (1 of 2 seeds diverged, 1 of 2 seeds learned nothing)'
  assert title in [dots.label for dots in comparison_page.accuracy_plot(result).rows]
  told, others, _ = comparison_page.troubles(result)
  assert told.endswith('Seed 1: Its loss is not finite. Seed 0: It guesses.')
  assert others.endswith('Seeds 0, 1: Too.')
  rows = written(tmp_path, result)
  assert [(rows[name]['diverged'], rows[name]['learned_nothing']) for name in ('lora', 'full')] == [
    ('1', '1'),
    ('0', '2'),
  ]
  assert rows['linear']['diverged'] == '0'
  assert float(rows['search-200']['inherited_test_accuracy']) == pytest.approx(0.85)


@pytest.mark.parametrize('loss', [float('nan'), None])
def test_a_loss_that_is_not_finite_leaves_the_accuracies_as_they_are(loss, result):
  """A seed has diverged; a file has null for what is no number."""
  result['methods']['lora'] = runs(180, 0.90, 0.10, test_loss=0.5)
  result['methods']['lora'][1]['test_loss'] = loss
  row = next(row for row in comparison_page.rows(result) if row['method'] == 'lora')
  assert row['test_accuracy'] == 0.5
  assert '50.0 ± 56.6' in str(comparison_page.accuracies(result))
