"""The long table as people read it: means by group, seeds, what is missing, published results."""

import csv
import statistics

import pages
import pytest

from glora_jax.vision.data.catalog import expand
from glora_jax.vision.data.tasks import vtab
from glora_jax.vision.reports import accuracy, report, table
from glora_jax.vision.reports.means import Number
from glora_jax.vision.reports.page import group_by
from glora_jax.vision.reports.table import pivot_of

VTAB = {task.name: task.group for task in vtab.TASKS}


def published(method, family='vtab'):
  """The accuracies of a published method."""
  rows = table.read_published()['rows'][family]
  return next(row['values'] for row in rows if row['method'] == method)


def ours(board):
  """The numbers of a board's first method, by title."""
  return pivot_of(board).methods[0].cells


def means_of(cells):
  """The numbers of the cells that are means."""
  return {title: cell.value for title, cell in cells.items() if title.startswith('mean of')}


def test_published_means_of_groups_are_those_of_the_accuracies_but_for_three():
  away = {}
  for row in table.read_published()['rows']['vtab']:
    if row['values']:
      groups = group_by(VTAB, lambda name: VTAB[name]).values()
      means = [statistics.mean(row['values'][name] for name in names) for names in groups]
      away[row['method']] = statistics.mean(means) - row['group_mean']
  assert len(away) == 10
  wrong = {method for method, distance in away.items() if abs(distance) > 0.05 + 1e-9}
  assert wrong == {'Full', 'Linear', 'LoRA'}
  assert max(map(abs, away.values())) < 0.11
  notes = ' '.join(table.read_published()['notes']['vtab'])
  assert all(f' {method} is' in notes for method in wrong)


@pytest.mark.parametrize('family, lines', [('vtab', 19), ('fewshot', 25), ('generalization', 5)])
def test_tasks_and_published_rows_of_a_family_have_exactly_its_lines(family, lines, make_board):
  tasks = expand(f'{family}/all')
  names = {place.line for task in tasks for place in table.places_of(task)}
  assert len(names) == lines
  rows = [row for row in table.rows_of(make_board({tasks[0]: 70.0}, f'{family}/all')) if row.source]
  for (method, _), same in group_by(rows, lambda row: (row.label, row.parameters)).items():
    found = {table.place_of(row.task, row.split).line for row in same if row.task}
    assert found in (names, set()), method


def test_own_results_have_the_published_means_of_the_same_accuracies(make_board):
  cells = ours(make_board({f'vtab/{name}': value for name, value in published('GLoRA').items()}))
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
  assert 'published' in {row.protocol for row in table.rows_of(board)}
  [result] = board.results.values()
  result['train_on'] = other
  result['data'] = {**result['data'], 'images': {'test': 40, other: 20}}
  assert 'published' not in {row.protocol for row in table.rows_of(board)}
  assert f'ours on {other} (20 images)' in pages.write_board(tmp_path, board).text


def test_few_shot_accuracies_are_means_over_the_draws_in_groups_of_equal_shots(make_board):
  draws = {0: 60.0, 1: 62.0, 2: 67.0}
  accuracies = {f'fewshot/food101/4/{draw}': value for draw, value in draws.items()}
  accuracies['fewshot/oxford_pets/4/0'] = 80.0
  cells = ours(make_board(accuracies, 'fewshot/all/4/all'))
  assert str(cells['food101, 4 shots']) == '63.0 ± 3.6'
  assert str(cells['oxford_pets, 4 shots']) == '80.0 (1 of 3)'
  assert str(cells['mean of 4 shots']) == '63.0 (1 of 5)'


def test_a_suite_of_which_tasks_are_missing_says_so(make_board, tmp_path):
  board = make_board({f'vtab/{name}': value for name, value in published('GLoRA').items()})
  del board.results['kitti'], board.results['dtd']
  board.missing['kitti'] = 'kitti needs a download.'
  board.failed['dtd'] = 'It diverged.'
  cells = ours(board)
  assert {title: str(cells[title]) for title in means_of(cells)} == {
    'mean of natural': '85.1 (6 of 7)',
    'mean of specialized': '87.0',
    'mean of structured': '60.0 (7 of 8)',
    'mean of groups': '87.0 (1 of 3)',
    'mean of all': '75.2 (17 of 19)',
    'mean of the 17 that are done': '75.2',
  }
  theirs = [one.cells for one in pivot_of(board).methods if one.label.startswith('GLoRA')]
  assert '75.2' in [str(cells['mean of the 17 that are done']) for cells in theirs]
  page = pages.write_board(tmp_path, board)
  assert 'kitti: kitti needs a download.' in [item.words() for item in page.all('li')]
  assert 'dtd: It diverged.' in page.all('header')[0].words()


def test_the_papers_protocol_stands_in_text_headings_and_csv(make_board, tmp_path):
  page = pages.write_board(tmp_path, make_board({'vtab/dtd': 70.0}, protocol='paper'))
  assert table.PAPER_LABEL in page.words()
  assert "ours (PROTOCOL 'paper'), searched (" in ' '.join(page.rows()[0])


def test_results_of_different_structures_are_one_method_with_each_below(make_board):
  board = make_board({'vtab/dtd': 70.0, 'vtab/svhn': 80.0})
  board.results['svhn']['result'] = 'lora'
  first, *others = [method.label for method in pivot_of(board).methods]
  assert first == 'ours, searched or lora:2'
  assert {'ours, searched', 'ours, lora:2'} <= {*others}
  assert [ours(board)[name].value for name in ('dtd', 'svhn')] == pytest.approx([70, 78])


def summary(board):
  """The rows of a board's table as text."""
  lines = report.summary_of_suite(board, 'workdir').splitlines()
  return [line for line in lines if line.startswith('|')][2:]


def told_gains(board):
  """The sentences on what a grid chose."""
  return '\n'.join(accuracy.tell_gains(pivot_of(board)))


def test_a_grids_table_has_means_and_spreads_in_the_order_of_parameters(board):
  assert summary(board) == [
    '| linear probe | 0 | 50.0 ± 0.0 | 81.0 ± 1.4 | 0.001 | 30 |',
    '| gradient, at most 60 | 40 | 50.0 ± 0.0 | 95.0 ± 0.0 | 0.001 | 30 |',
    '| searched, at most 200 | 150 | 50.0 ± 0.0 | 91.0 ± 0.0 | 0.001 | 30 |',
    '| lora | 180 | 50.0 ± 0.0 | 89.0 ± 1.4 | 0.001 | 30 |',
    '| all of GLoRA | 500 | 50.0 ± 0.0 | 95.0 ± 0.0 | 0.001 | 30 |',
  ]


def test_a_base_that_was_trained_whole_has_no_structure_to_draw(tmp_path):
  board = pages.board_of({('pets', 'finetuning', seed): (0.5, 0.5) for seed in (0, 1)})
  for result in board.results.values():
    result['structures']['finetuning'] |= {'genome': [], 'layers': []}
  page = pages.write_board(tmp_path, board)
  assert 'Structures' not in [heading.words() for heading in page.all('h2')]


def test_the_table_does_not_depend_on_the_order_in_which_runs_ended(board):
  rows = table.rows_of(board)
  board.results = dict(reversed(board.results.items()))
  assert table.rows_of(board) == rows


def set_validation(board, **shares):
  """Gives structures of a grid another accuracy on the validation images."""
  for name in board.tested:
    for structure, found in board.results[name]['structures'].items():
      found['val_accuracy'] = shares.get(structure, found['val_accuracy'])


def test_validation_accuracy_chooses_the_best_of_a_grid_and_the_best_within_a_budget(board):
  set_validation(board, lora=0.7, linear=0.6, gradient=0.7, search=0.65)
  told = accuracy.tell_best(pivot_of(board))
  assert 'on the validation images is gradient, at most 60 (tied with 1 other): 95.0' in told
  set_validation(board, lora=0.75, linear=0.8)  # the test accuracy of LoRA is higher
  told = accuracy.tell_best(pivot_of(board))
  assert 'The best of 5 structures on the validation images is linear probe: 81.0' in told
  assert 'Searched, at most 200: +10.0 ± 1.4 points against linear probe' in told_gains(board)


def test_a_grid_without_validation_accuracy_has_no_best(board, tmp_path):
  set_validation(board, **dict.fromkeys(('full', 'linear', 'lora', 'gradient', 'search')))
  head = pages.write_board(tmp_path, board).all('header')[0].words()
  assert '12 of 12 runs are done. None of 5 structures is called the best' in head
  assert 'Searched, at most 200' not in told_gains(board)  # two fixed ones are within that budget
  assert 'Gradient, at most 60: +14.0 ± 1.4 points against linear probe' in told_gains(board)


def test_means_over_tasks_are_compared_on_the_validation_images_of_the_tasks_that_are_done():
  """On validation BitFit is better on both tasks that are done, and LoRA by far on the third."""
  shares = {('vtab/caltech101', 'lora', 0): (1.0, 0.9), ('vtab/caltech101', 'bitfit', 0): (0, 0)}
  for task in ('vtab/dtd', 'vtab/svhn'):
    shares |= {(task, 'lora', 0): (0.5, 0.9), (task, 'bitfit', 0): (0.6, 0.8)}
  board = pages.board_of(shares, 'vtab/all')
  del board.results['vtab/caltech101/bitfit/0']
  pivot = pivot_of(board)
  assert pivot.headline == 'mean of the 2 that are done'
  assert pivot.best.rows[0].structure == 'bitfit'
  told = accuracy.tell_best(pivot)
  assert 'The best of 2 structures on the validation images is bitfit: 80.0%' in told


def test_structures_are_compared_at_the_seeds_that_all_have_finished():
  by_name = {'bitfit': (0.9, 0.5), 'lora': (0.8, 0.9)}
  board = pages.board_of({('pets', x, n): (by_name[x][n], 0.7) for x in by_name for n in (0, 1)})
  assert pivot_of(board).best.label == 'lora'
  del board.results['pets/bitfit/1']
  assert pivot_of(board).best.label == 'bitfit'
  del board.results['pets/lora/0']
  assert pivot_of(board).best is None


def test_the_best_of_a_grid_is_a_structure_with_weights_that_were_trained_for_it(board):
  set_validation(board, gradient=0.6)
  for seed in (0, 1):
    structures = board.results[f'search-200/{seed}']['structures']
    inherited = {'label': 'inherited', 'val_accuracy': 0.99, 'test_accuracy': 0.99}
    structures['supernet'] = {**structures['search'], **inherited}
  told = accuracy.tell_best(pivot_of(board))
  assert 'images is gradient, at most 60: 95.0' in told
  assert '| inherited, at most 200 | 150 | 99.0 ± 0.0 | 99.0 ± 0.0 | 0.001 | 30 |' in summary(board)


def test_gains_are_paired_differences_to_the_best_within_the_budget(board):
  set_validation(board, lora=0.6)
  assert 'Searched, at most 200: +2.0 ± 1.4 points against lora' in told_gains(board)
  del board.results['lora/0'], board.results['linear/0']  # only seed 1 has a pair
  assert 'Searched, at most 200: +3.0 points against lora' in told_gains(board)
  assert 'Gradient, at most 60: +13.0 points against linear probe' in told_gains(board)


def test_a_failed_seed_is_missing_from_the_mean_and_named_above_it(board, tmp_path):
  del board.results['lora/1']
  board.failed['lora/1'] = 'The loss was not finite.'
  for seed in (0, 1):
    board.results[f'full/{seed}']['structures']['full']['learned_nothing'] = 'It guesses.'
  head = pages.write_board(tmp_path, board).all('header')[0].words()
  assert 'lora/1: The loss was not finite. full/0, full/1: It' in head
  assert 'max_grad_norm=1' in head
  assert '| lora | 180 | 50.0 (1 of 2) | 90.0 (1 of 2) | 0.001 | 30 |' in summary(board)


def test_rates_that_were_tried_are_in_the_table_and_in_no_mean(board, tmp_path):
  for _ in range(2):
    page = pages.write_board(tmp_path, board)
    assert ['lora', '50.0', '75.0'] in page.rows()
    with open(tmp_path / 'table.csv') as file:
      tried = [line for line in csv.DictReader(file) if line['role'] == 'rate']
    found = [(line['run'], line['split']) for line in tried]
    assert found == [('lora/rate-0.001', 'val'), ('lora/rate-0.004', 'val')]
    for name in board.tested & board.results.keys():  # before the tests
      del board.results[name]
  assert '2 of 12 runs are done' in page.all('header')[0].words()


def test_a_mean_of_means_has_the_spread_over_seeds():
  """Two tasks of a grid, each better with another seed."""
  by_task = {'vtab/dtd': (0.5, 0.7), 'vtab/svhn': (0.8, 0.6)}
  shares = {(x, 'lora', n): (0.5, by_task[x][n]) for x in by_task for n in (0, 1)}
  assert str(ours(pages.board_of(shares, 'vtab/all'))['mean of natural']) == '65.0 ± 0.0'
  assert Number({0: 1.0}).deviation is None


def test_the_table_has_every_class_of_every_result_and_no_mean_counts_them(
  board, findings, tmp_path
):
  by_class = findings.result['by_class']
  without = summary(board)
  for name in board.tested:
    board.results[name]['by_class'] = by_class
  assert summary(board) == without
  pages.write_board(tmp_path, board)
  with open(tmp_path / 'table.csv') as file:
    lines = [line for line in csv.DictReader(file) if line['class_name'] == 'dog']
  assert [line['run'] for line in lines] == [*board.tested]
  for name, column in by_class.items():
    assert {line[name] for line in lines} == {str(column['dog'])}


def test_balanced_accuracies_stand_beside_the_others_with_their_spread(board):
  for name in board.tested:
    [found] = board.results[name]['structures'].values()
    found |= {'val_balanced_accuracy': 0.25, 'test_balanced_accuracy': found['test_accuracy'] / 2}
  [title, _, linear, *_] = report.summary_of_suite(board, 'workdir').splitlines()
  assert '| validation | validation, balanced | test | test, balanced |' in title
  assert '| 50.0 ± 0.0 | 25.0 ± 0.0 | 81.0 ± 1.4 | 40.5 ± 0.7 |' in linear
