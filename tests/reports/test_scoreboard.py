"""A suite's means against the published ones, and what they show while tasks are missing."""

import pytest

from glora_jax.data.catalog import FAMILIES, expand
from glora_jax.data.tasks import vtab
from glora_jax.reports import scoreboard
from glora_jax.reports.scoreboard import Cell


def published(method, tasks=('vtab/all',)):
  return next(row for row in scoreboard.published_rows(tasks) if row.method == method)


def numbers(row, tasks=('vtab/all',), **options):
  return {name: cell.value for name, cell in scoreboard.means(row, tasks, **options).items()}


def test_published_means_of_groups_are_those_of_the_accuracies_but_for_three_rows():
  rows = [row for row in scoreboard.published_rows(['vtab/all']) if row.cells['dtd'].complete]
  away = {row.method: numbers(row, quoted=False)['mean of groups'] - row.quoted for row in rows}
  assert len(away) == 10
  wrong = {method for method, distance in away.items() if abs(distance) > 0.05 + 1e-9}
  assert wrong == {'Full', 'Linear', 'LoRA'}
  assert max(map(abs, away.values())) < 0.11
  assert all(numbers(row)['mean of groups'] == row.quoted for row in rows)


@pytest.mark.parametrize('family, columns', [('vtab', 19), ('fewshot', 25), ('generalization', 5)])
def test_published_rows_are_whole_and_have_a_source(family, columns):
  tasks = expand(f'{family}/all')
  names = {column.name for column in scoreboard.columns_of(tasks)}
  assert len(names) == columns
  for row in scoreboard.published()['rows'][family]:
    assert set(row['values']) in (names, set())
    assert row['paper'] or row['method'] in ('Full', 'Linear')
    assert set(row['from_memory']) <= {'params_million', 'group_mean'}


def test_own_results_have_the_published_means_of_the_same_accuracies(make_board):
  glora = published('GLoRA')
  board = make_board({f'vtab/{name}': cell.value for name, cell in glora.cells.items()})
  row = scoreboard.own_rows(board)[0]
  natural = (76.4 + 92.9 + 74.6 + 99.6 + 92.5 + 91.5 + 57.8) / 7
  specialized = 348.1 / 4
  structured = 506.2 / 8
  assert numbers(row) == pytest.approx(
    {
      'mean of natural': natural,
      'mean of specialized': specialized,
      'mean of structured': structured,
      'mean of groups': (natural + specialized + structured) / 3,
      'mean of tasks': (7 * natural + 4 * specialized + 8 * structured) / 19,
    }
  )
  assert round(numbers(row)['mean of groups'], 1) == glora.quoted == 78.0
  assert all(cell.complete for cell in scoreboard.means(row, board.tasks).values())
  assert row.params == 0.25


def test_a_mean_of_which_tasks_are_missing_never_looks_whole(make_board):
  done = set(vtab.NAMES) - {'kitti', 'dtd'}
  board = make_board({f'vtab/{name}': published('GLoRA').cells[name].value for name in done})
  means = scoreboard.means(scoreboard.own_rows(board)[0], board.tasks)
  assert means['mean of natural'][1:] == (6, 7)
  assert {title: str(cell) for title, cell in means.items()} == {
    'mean of natural': '85.1 (6 of 7)',
    'mean of specialized': '87.0',
    'mean of structured': '60.0 (7 of 8)',
    'mean of tasks': '75.2 (17 of 19)',
    'mean of groups': '-',
  }


def test_few_shot_accuracies_are_means_over_the_seeds_in_groups_of_equal_shots(make_board):
  board = make_board(
    {
      'fewshot/food101/4/0': 60.0,
      'fewshot/food101/4/1': 62.0,
      'fewshot/food101/4/2': 67.0,
      'fewshot/oxford_pets/4/0': 80.0,
    },
    'fewshot/all/4/all',
  )
  row = scoreboard.own_rows(board)[0]
  assert row.cells['food101/4'] == Cell(pytest.approx(63.0), 3, 3)
  assert str(row.cells['oxford_pets/4']) == '80.0 (1 of 3)'
  means = scoreboard.means(row, board.tasks)
  assert list(means) == ['mean of 4 shots', 'mean of all']
  assert str(means['mean of 4 shots']) == '63.0 (1 of 5)'
  glora = numbers(published('GLoRA', board.tasks), board.tasks)
  assert glora['mean of 4 shots'] == pytest.approx((65.1 + 30.8 + 99.1 + 24 + 89.1) / 5)


def test_generalization_has_a_column_for_every_test_set(make_board):
  others = {'v2': 60.0, 'sketch': 30.0, 'a': 10.0, 'r': 20.0}
  board = make_board(
    {'generalization/0': 70.0, 'generalization/1': 72.0, 'generalization/2': 74.0},
    'generalization/all',
    others=others,
  )
  row = scoreboard.own_rows(board)[0]
  assert {name: round(cell.value, 6) for name, cell in row.cells.items()} == {'test': 72, **others}
  assert numbers(row, board.tasks) == pytest.approx({'mean of shifted': 30, 'mean of all': 38.4})
  assert published('PACE', board.tasks).cells['r'].value == 35.2


@pytest.mark.parametrize('family', FAMILIES)
def test_the_tasks_of_a_family_fill_exactly_its_columns(family):
  tasks = expand(f'{family}/all')
  names = [column.name for column in scoreboard.columns_of(tasks)]
  measured = [column for task in tasks for column in scoreboard.measured(task)]
  assert len(names) == len(set(names))
  assert set(measured) == set(names)
  assert len(measured) == len(names) * (1 if family == 'vtab' else 3)  # seeds
