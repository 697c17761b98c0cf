"""A suite's means against the published ones, and what they show while tasks are missing."""

import csv
import statistics

import pages
import pytest

from glora_jax.vision.data.catalog import FAMILIES, expand
from glora_jax.vision.data.tasks import vtab
from glora_jax.vision.reports import scoreboard, tables
from glora_jax.vision.reports.scoreboard import Board

VTAB = {task.name: task.group for task in vtab.TASKS}


def published(method, family='vtab'):
  """The accuracies of a published method."""
  rows = scoreboard.published()['rows'][family]
  return next(row['values'] for row in rows if row['method'] == method)


def ours(board):
  """The first method of a suite, and every cell of it by its title."""
  methods = scoreboard.methods_of(board)
  return methods[0], {title: cells[0] for title, cells in scoreboard.scores(board, methods).items()}


def means_of(cells):
  """The numbers of the cells that are means."""
  return {title: cell.value for title, cell in cells.items() if title.startswith('mean of')}


def test_published_means_of_groups_are_those_of_the_accuracies_but_for_three():
  away = {}
  for row in scoreboard.published()['rows']['vtab']:
    if row['values']:
      groups = tables.grouped(VTAB, lambda name: VTAB[name]).values()
      computed = statistics.mean(
        statistics.mean(row['values'][name] for name in names) for names in groups
      )
      away[row['method']] = computed - row['group_mean']
  assert len(away) == 10
  wrong = {method for method, distance in away.items() if abs(distance) > 0.05 + 1e-9}
  assert wrong == {'Full', 'Linear', 'LoRA'}
  assert max(map(abs, away.values())) < 0.11
  notes = scoreboard.published()['notes']['vtab']
  assert all(any(f' {method} is' in note for note in notes) for method in wrong)


@pytest.mark.parametrize('family, columns', [('vtab', 19), ('fewshot', 25), ('generalization', 5)])
def test_tasks_and_published_rows_of_a_family_have_exactly_its_columns(family, columns):
  assert family in FAMILIES
  tasks = expand(f'{family}/all')
  names = [name for group in scoreboard.columns_of(tasks).values() for name in group]
  measured = [column for task in tasks for column in scoreboard.measured(task)]
  assert len(names) == len(set(names)) == columns
  assert set(measured) == set(names)
  assert len(measured) == columns * (1 if family == 'vtab' else 3)  # seeds
  for row in scoreboard.published()['rows'][family]:
    assert set(row['values']) in (set(names), set())
    assert row['paper'] or row['method'] in ('Full', 'Linear')
    assert set(row['from_memory']) <= {'params_million', 'group_mean'}


def test_own_results_have_the_published_means_of_the_same_accuracies(make_board):
  board = make_board({f'vtab/{name}': value for name, value in published('GLoRA').items()})
  _, cells = ours(board)
  groups = [(76.4 + 92.9 + 74.6 + 99.6 + 92.5 + 91.5 + 57.8) / 7, 348.1 / 4, 506.2 / 8]
  over_all = (7 * groups[0] + 4 * groups[1] + 8 * groups[2]) / 19
  expected = [*groups, statistics.mean(groups), over_all]
  assert list(means_of(cells).values()) == pytest.approx(expected)
  assert all(cell.complete for cell in cells.values())


@pytest.mark.parametrize(
  'task, other', [('vtab/dtd', 'train'), ('fewshot/food101/4/0', 'train+val')]
)
def test_published_results_stand_beside_ours_only_if_trained_on_the_same_images(
  task, other, make_board, tmp_path
):
  board = make_board({task: 70.0}, f'{task.partition("/")[0]}/all')
  assert 'published' in {line['protocol'] for line in scoreboard.lines_of(board)}
  images = {'train': 20, 'val': 10, 'test': 40} | {other: 20}
  board.results[task]['data'] = {**pages.RESULT['data'], 'images': images}
  text = pages.write_suite(tmp_path, board).text
  assert all(map(scoreboard.is_ours, scoreboard.methods_of(board)))
  assert 'published for GLoRA' not in text
  assert f'ours on {other} (20 images)' in text
  assert 'published' not in (tmp_path / 'table.csv').read_text()


def test_few_shot_accuracies_are_means_over_the_seeds_in_groups_of_equal_shots(make_board):
  seeds = {0: 60.0, 1: 62.0, 2: 67.0}
  accuracies = {f'fewshot/food101/4/{seed}': value for seed, value in seeds.items()}
  accuracies['fewshot/oxford_pets/4/0'] = 80.0
  one = make_board({'fewshot/oxford_pets/4/0': 80.0}, 'fewshot/oxford_pets/4/all')
  assert str(ours(one)[1]['food101, 4 shots']) == ''
  _, cells = ours(make_board(accuracies, 'fewshot/all/4/all'))
  assert str(cells['food101, 4 shots']) == '63.0 ± 3.6'
  assert str(cells['oxford_pets, 4 shots']) == '80.0 (1 of 3)'
  assert str(cells['mean of 4 shots']) == '63.0 (1 of 5)'


def test_generalization_has_a_column_for_every_test_set(make_board):
  others = {'v2': 60.0, 'sketch': 30.0, 'a': 10.0, 'r': 20.0}
  accuracies = {f'generalization/{seed}': 70.0 + 2 * seed for seed in range(3)}
  board = make_board(accuracies, 'generalization/all', others=others)
  method, cells = ours(board)
  values = {name: round(method.cells[name].value, 6) for name in scoreboard.TEST_SETS}
  assert values == {'test': 72, **others}
  assert means_of(cells) == pytest.approx({'mean of shifted': 30, 'mean of all': 38.4})


def row_of(page, title):
  """The cells of the first row of a page that has a title."""
  return next(row for row in page.rows() if title in ' '.join(row))


def test_a_suite_of_which_tasks_are_missing_says_so(make_board, tmp_path):
  board = make_board({f'vtab/{name}': value for name, value in published('GLoRA').items()})
  del board.results['vtab/kitti'], board.results['vtab/dtd']
  board.missing['vtab/kitti'] = 'kitti needs a download.'
  board.failed['vtab/dtd'] = 'It diverged.'
  page = pages.write_suite(tmp_path, board)
  heading = row_of(page, 'ours, searched')
  glora = next(place for place, name in enumerate(heading) if name.startswith('GLoRA (0.86'))
  assert row_of(page, 'mean of the 17 that are done')[glora] == '75.2'
  shown = {title: row_of(page, title)[1] for title in means_of(ours(board)[1])}
  assert shown == {
    'mean of natural': '85.1 (6 of 7)',
    'mean of specialized': '87.0',
    'mean of structured': '60.0 (7 of 8)',
    'mean of groups': '87.0 (1 of 3)',
    'mean of all': '75.2 (17 of 19)',
    'mean of the 17 that are done': '75.2',
  }
  items = [item.words() for item in page.all('li')]
  assert {'vtab/kitti: kitti needs a download.', 'vtab/dtd: It diverged.'} <= set(items)


def test_a_page_before_the_first_result_can_be_written(tmp_path):
  empty = Board('generalization/all', expand('generalization/all'))
  assert empty.waiting == list(empty.tasks)
  assert '0 of 3 tasks' in pages.write_suite(tmp_path, empty).text


def test_the_papers_protocol_stands_in_text_headings_and_csv(make_board, tmp_path):
  page = pages.write_suite(tmp_path, make_board({'vtab/dtd': 70.0}, protocol='paper'))
  assert tables.PAPER_LABEL in page.words()
  assert "ours (PROTOCOL 'paper'), searched (" in ' '.join(page.rows()[0])
  with open(tmp_path / 'table.csv') as file:
    line = next(csv.DictReader(file))
  assert (line['method'], line['protocol']) == ("ours (PROTOCOL 'paper'), searched", 'paper')
  assert float(line['test_accuracy']) == pytest.approx(0.7)


def test_results_of_different_structures_are_one_method_with_each_below(make_board):
  board = make_board({'vtab/dtd': 70.0, 'vtab/svhn': 80.0})
  board.results['vtab/svhn']['result'] = 'lora'
  first, *others = [method.name for method in scoreboard.methods_of(board)]
  assert first == 'ours, searched or lora:2'
  assert {'ours, searched', 'ours, lora:2', 'ours, linear probe'} <= set(others)
  _, cells = ours(board)
  assert [round(cells[name].value) for name in ('dtd', 'svhn')] == [70, 78]
