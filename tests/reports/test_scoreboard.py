"""The suite's table: its means against the published ones, what it says while tasks are missing, all from results made by hand."""

import csv

import pytest

from glora_jax.data.catalog import expand
from glora_jax.data.tasks import fewshot, vtab
from glora_jax.reports import run_report, scoreboard, suite_report
from glora_jax.reports.scoreboard import Board, Cell


def result(task, accuracy, protocol='honest', others=None):
  """What a run leaves, with the accuracy in percent for the winner, less for the rest."""
  entry = lambda minus: {
    'params': 250_000,
    'val_accuracy': None if protocol == 'paper' else 0.5,
    'test_accuracy': (accuracy - minus) / 100,
    **(
      {'other_test_accuracies': {name: value / 100 for name, value in others.items()}}
      if others
      else {}
    ),
  }
  return {
    'task': task,
    'protocol': protocol,
    'seed': 42,
    'budget': 300_000,
    'normalization': 'inception',
    'weights': 'in21k-B/16',
    'linear': entry(10),
    'winner_supernet': entry(5),
    'winner': entry(0),
    'presets': {'lora': entry(2)},
    'data': {'origin': f'TFDS {task}', 'notes': ['A note.']},
  }


def published(method, tasks=('vtab/all',)):
  return next(row for row in scoreboard.published_rows(tasks) if row.method == method)


def board(accuracies, suite='vtab/all', **fields):
  return Board(
    suite,
    expand(suite),
    {task: result(task, value, **fields) for task, value in accuracies.items()},
  )


@pytest.fixture
def complete():
  """A VTAB run with the accuracies that were published for GLoRA."""
  return board({f'vtab/{name}': cell.value for name, cell in published('GLoRA').cells.items()})


def numbers(row, tasks=('vtab/all',), **options):
  return {name: cell.value for name, cell in scoreboard.summary(row, tasks, **options).items()}


def test_group_means_are_the_published_ones_but_for_three_rows_that_are_not_the_means_of_their_own_tasks():
  rows = [row for row in scoreboard.published_rows(['vtab/all']) if row.cells['dtd'].complete]
  away = {row.method: numbers(row, quoted=False)['mean of groups'] - row.quoted for row in rows}
  assert len(away) == 10
  assert {method for method, distance in away.items() if abs(distance) > 0.05 + 1e-9} == {
    'Full',
    'Linear',
    'LoRA',
  }
  assert max(map(abs, away.values())) < 0.11
  assert all(numbers(row)['mean of groups'] == row.quoted for row in rows)


def test_published_rows_are_whole_have_a_source_and_say_what_is_from_memory():
  for kind, number in (('vtab', 19), ('fewshot', 25), ('generalization', 5)):
    tasks = expand(f'{kind}/all')
    every = {column.name for column in scoreboard.columns(tasks)}
    assert len(every) == number
    for row in scoreboard.published()['rows'][kind]:
      assert set(row['values']) in (every, set())
      assert row['paper'] or row['method'] in ('Full', 'Linear')
      assert set(row['from_memory']) <= {'params_million', 'group_mean'}
  memory = [
    (row.params, list(row.from_memory))
    for row in scoreboard.published_rows(['vtab/all'])
    if row.method == 'GLoRA'
  ]
  assert memory == [
    (0.86, ['params_million']),
    (0.44, ['params_million', 'group_mean']),
    (0.29, ['params_million', 'group_mean']),
  ]


def test_own_results_of_all_tasks_have_the_published_means_of_the_same_accuracies(complete):
  row = scoreboard.own_rows(complete)[0]
  natural, specialized, structured = (
    (76.4 + 92.9 + 74.6 + 99.6 + 92.5 + 91.5 + 57.8) / 7,
    348.1 / 4,
    506.2 / 8,
  )
  assert numbers(row) == pytest.approx(
    {
      'mean of natural': natural,
      'mean of specialized': specialized,
      'mean of structured': structured,
      'mean of groups': (natural + specialized + structured) / 3,
      'mean of tasks': (7 * natural + 4 * specialized + 8 * structured) / 19,
    }
  )
  assert round(numbers(row)['mean of groups'], 1) == published('GLoRA').quoted == 78.0
  assert all(cell.complete for cell in scoreboard.summary(row, complete.tasks).values())
  assert [one.method for one in scoreboard.own_rows(complete)] == [
    'ours, finetuned',
    'ours, as searched',
    'ours, linear probe',
    'ours, lora',
  ]
  assert row.params == 0.25


def test_a_mean_of_which_tasks_are_missing_never_looks_whole(complete, tmp_path):
  del complete.results['vtab/kitti'], complete.results['vtab/dtd']
  complete.missing['vtab/kitti'] = 'kitti/3.1.0 needs\n a download.'
  complete.failed['vtab/dtd'] = 'The loss was not finite at step 7.'
  row = scoreboard.own_rows(complete)[0]
  means = scoreboard.summary(row, complete.tasks)
  assert means['mean of natural'][1:] == (6, 7)
  assert str(means['mean of natural']) == '85.1 (6 of 7)'
  assert str(means['mean of specialized']) == '87.0'
  assert str(means['mean of structured']) == '60.0 (7 of 8)'
  assert str(means['mean of tasks']) == '75.2 (17 of 19)'
  assert str(means['mean of groups']) == '-'
  suite_report.write(complete, str(tmp_path))
  text = (tmp_path / 'table.md').read_text()
  assert '17 of 19 tasks' in text.splitlines()[0]
  same = next(line for line in text.splitlines() if 'mean of the 17 that are done' in line).split(
    '|'
  )
  heading = next(line for line in text.splitlines() if 'ours, finetuned' in line).split('|')
  column = next(
    number for number, name in enumerate(heading) if name.strip().startswith('GLoRA (0.86')
  )
  assert (
    same[2].strip() == same[column].strip() == '**75.2**'
  )  # the published row over the same tasks
  assert '| vtab/kitti | not ready |' in text
  assert '- vtab/kitti: kitti/3.1.0 needs a download.' in text
  assert '| vtab/dtd | failed |' in text
  assert '- vtab/dtd: The loss was not finite at step 7.' in text
  with open(tmp_path / 'table.csv') as file:
    ours = next(csv.DictReader(file))
  assert [
    ours[name]
    for name in (
      'kitti',
      'mean_of_natural',
      'mean_of_structured',
      'mean_of_groups',
      'mean_of_tasks',
    )
  ] == [''] * 5
  assert (ours['mean_of_specialized'], ours['svhn'], ours['complete'], ours['of']) == (
    '87.03',
    '91.5',
    '17',
    '19',
  )
  assert (tmp_path / 'table.png').read_bytes()[:4] == b'\x89PNG'


def test_a_table_before_the_first_result_can_be_written(tmp_path):
  empty = Board('vtab/all', expand('vtab/all'))
  suite_report.write(empty, str(tmp_path))
  assert empty.waiting == [f'vtab/{name}' for name in vtab.NAMES]
  assert '0 of 19 tasks' in (tmp_path / 'table.md').read_text()
  assert (tmp_path / 'table.png').exists()


def test_the_papers_protocol_is_said_in_text_headings_and_csv(tmp_path):
  suite_report.write(board({'vtab/dtd': 70.0}, protocol='paper'), str(tmp_path))
  text = (tmp_path / 'table.md').read_text()
  assert run_report.PAPER_LABEL in text
  assert "| ours (PROTOCOL 'paper'), finetuned (" in text
  with open(tmp_path / 'table.csv') as file:
    ours = next(csv.DictReader(file))
  assert (ours['method'], ours['protocol']) == ("ours (PROTOCOL 'paper'), finetuned", 'paper')


def test_few_shot_accuracies_are_means_over_the_seeds_and_groups_are_numbers_of_shots():
  one = board(
    {
      'fewshot/food101/4/0': 60.0,
      'fewshot/food101/4/1': 62.0,
      'fewshot/food101/4/2': 67.0,
      'fewshot/oxford_pets/4/0': 80.0,
    },
    'fewshot/all/4/all',
  )
  row = scoreboard.own_rows(one)[0]
  assert row.cells['food101/4'] == Cell(pytest.approx(63.0), 3, 3)
  assert str(row.cells['oxford_pets/4']) == '80.0 (1 of 3)'
  means = scoreboard.summary(row, one.tasks)
  assert list(means) == ['mean of 4 shots', 'mean of all']
  assert str(means['mean of 4 shots']) == '63.0 (1 of 5)'
  assert numbers(published('GLoRA', one.tasks), one.tasks)['mean of 4 shots'] == pytest.approx(
    (65.1 + 30.8 + 99.1 + 24 + 89.1) / 5
  )
  whole = board(dict.fromkeys(expand('fewshot/all/all/0'), 50.0), 'fewshot/all/all/0')
  assert len(whole.tasks) == 5 * len(fewshot.SHOTS)
  assert numbers(scoreboard.own_rows(whole)[0], whole.tasks) == pytest.approx(
    dict.fromkeys(
      (
        'mean of 1 shot',
        *(f'mean of {number} shots' for number in fewshot.SHOTS[1:]),
        'mean of all',
      ),
      50,
    )
  )


def test_generalization_has_a_column_for_every_test_set():
  others = {'v2': 60.0, 'sketch': 30.0, 'a': 10.0, 'r': 20.0}
  one = board(
    {'generalization/0': 70.0, 'generalization/1': 72.0, 'generalization/2': 74.0},
    'generalization/all',
    others=others,
  )
  row = scoreboard.own_rows(one)[0]
  assert {name: round(cell.value, 6) for name, cell in row.cells.items()} == {'test': 72, **others}
  assert numbers(row, one.tasks) == pytest.approx({'mean of shifted': 30, 'mean of all': 38.4})
  assert published('PACE', one.tasks).cells['r'].value == 35.2
