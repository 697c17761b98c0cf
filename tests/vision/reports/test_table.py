"""The long table as people read it: means by group, seeds, what is missing, published results."""

import csv
import statistics

import pages
import pytest

from glora_jax.vision.data.catalog import FAMILIES, expand
from glora_jax.vision.data.tasks import vtab
from glora_jax.vision.reports import accuracy, report, table
from glora_jax.vision.reports.means import Number
from glora_jax.vision.reports.page import group_by
from glora_jax.vision.reports.table import Board, Cell, pivot_of

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
      computed = statistics.mean(
        statistics.mean(row['values'][name] for name in names) for names in groups
      )
      away[row['method']] = computed - row['group_mean']
  assert len(away) == 10
  wrong = {method for method, distance in away.items() if abs(distance) > 0.05 + 1e-9}
  assert wrong == {'Full', 'Linear', 'LoRA'}
  assert max(map(abs, away.values())) < 0.11
  notes = table.read_published()['notes']['vtab']
  assert all(any(f' {method} is' in note for note in notes) for method in wrong)


@pytest.mark.parametrize('family, lines', [('vtab', 19), ('fewshot', 25), ('generalization', 5)])
def test_tasks_and_published_rows_of_a_family_have_exactly_its_lines(family, lines, make_board):
  assert family in FAMILIES
  names = {place.line for task in expand(f'{family}/all') for place in table.places_of(task)}
  assert len(names) == lines
  first = expand(f'{family}/all')[0]
  rows = [row for row in table.rows_of(make_board({first: 70.0}, f'{family}/all')) if row.source]
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
  page = pages.write_board(tmp_path, board).text
  assert not any(method.is_published for method in pivot_of(board).methods)
  assert 'published for GLoRA' not in page
  assert f'ours on {other} (20 images)' in page
  assert 'published' not in (tmp_path / 'table.csv').read_text()


def test_few_shot_accuracies_are_means_over_the_draws_in_groups_of_equal_shots(make_board):
  draws = {0: 60.0, 1: 62.0, 2: 67.0}
  accuracies = {f'fewshot/food101/4/{draw}': value for draw, value in draws.items()}
  accuracies['fewshot/oxford_pets/4/0'] = 80.0
  cells = ours(make_board(accuracies, 'fewshot/all/4/all'))
  assert str(cells['food101, 4 shots']) == '63.0 ± 3.6'
  assert str(cells['oxford_pets, 4 shots']) == '80.0 (1 of 3)'
  assert str(cells['mean of 4 shots']) == '63.0 (1 of 5)'


def row_of(page, title):
  """The cells of the first row of a page that has a title."""
  return next(row for row in page.rows() if title in ' '.join(row))


def test_a_suite_of_which_tasks_are_missing_says_so(make_board, tmp_path):
  board = make_board({f'vtab/{name}': value for name, value in published('GLoRA').items()})
  del board.results['kitti'], board.results['dtd']
  board.missing['kitti'] = 'kitti needs a download.'
  board.failed['dtd'] = 'It diverged.'
  page = pages.write_board(tmp_path, board)
  heading = row_of(page, 'ours, searched')
  glora = next(place for place, name in enumerate(heading) if name.startswith('GLoRA (0.86'))
  assert row_of(page, 'mean of the 17 that are done')[glora] == '75.2'
  shown = {title: row_of(page, title)[1] for title in means_of(ours(board))}
  assert shown == {
    'mean of natural': '85.1 (6 of 7)',
    'mean of specialized': '87.0',
    'mean of structured': '60.0 (7 of 8)',
    'mean of groups': '87.0 (1 of 3)',
    'mean of all': '75.2 (17 of 19)',
    'mean of the 17 that are done': '75.2',
  }
  items = [item.words() for item in page.all('li')]
  assert 'kitti: kitti needs a download.' in items
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
  assert {'ours, searched', 'ours, lora:2', 'ours, linear probe'} <= set(others)
  assert [round(ours(board)[name].value) for name in ('dtd', 'svhn')] == [70, 78]


def test_seeds_with_different_results_have_one_figure_of_each_structure(allocation, tmp_path):
  cells = {str(seed): Cell('digits', '', None, seed) for seed in (0, 1)}
  results = {name: {**pages.make_findings(allocation).result, 'task': 'digits'} for name in cells}
  results['1']['result'] = 'lora'
  results['1']['structures']['lora']['layers'] = []
  page = pages.write_board(tmp_path, Board('digits', cells, results))
  shown = [each.words() for each in page.all('figcaption') if 'trained parameters' in each.words()]
  assert len(shown) == len(set(shown)) == 2


def summary(board):
  """The rows of a board's table as text."""
  lines = report.summary_of_suite(board, 'workdir').splitlines()
  return [line for line in lines if line.startswith('|')][2:]


def told_gains(board):
  """The sentences on what a grid chose."""
  return '\n'.join(accuracy.tell_gains(pivot_of(board)))


def test_a_grids_table_has_means_and_spreads_in_the_order_of_parameters(allocation):
  assert summary(pages.make_grid(allocation)) == [
    '| linear probe | 0 | 50.0 ± 0.0 | 81.0 ± 1.4 | 0.001 | 30 |',
    '| gradient, at most 60 | 40 | 50.0 ± 0.0 | 95.0 ± 0.0 | 0.001 | 30 |',
    '| searched, at most 200 | 150 | 50.0 ± 0.0 | 91.0 ± 0.0 | 0.001 | 30 |',
    '| lora | 180 | 50.0 ± 0.0 | 89.0 ± 1.4 | 0.001 | 30 |',
    '| all of GLoRA | 500 | 50.0 ± 0.0 | 95.0 ± 0.0 | 0.001 | 30 |',
  ]


def test_a_spread_may_be_below_its_mean_and_is_not_cut_in_two(allocation, tmp_path):
  page = pages.write_board(tmp_path, pages.make_grid(allocation))
  assert '81.0 ±\xa01.4' in [cell.text for cell in page.all('td')]


def test_a_base_that_was_trained_whole_has_no_structure_to_draw(tmp_path):
  found = pages.structure(9, 0.5, label='finetuning') | {'genome': [], 'layers': []}
  fields = {'result': 'finetuning', 'structures': {'finetuning': found}}
  results = {str(seed): {**pages.RESULT, 'seed': seed, **fields} for seed in (0, 1)}
  cells = {name: Cell('pets', seed=int(name)) for name in results}
  page = pages.write_board(tmp_path, Board('pets', cells, results))
  assert 'Structures' not in [heading.words() for heading in page.all('h2')]


def test_the_table_does_not_depend_on_the_order_in_which_runs_ended(allocation):
  board = pages.make_grid(allocation)
  rows = table.rows_of(board)
  board.results = dict(reversed(board.results.items()))
  assert table.rows_of(board) == rows


def set_validation(board, **shares):
  """Gives structures of a grid another accuracy on the validation images."""
  for name in board.tested:
    for structure, found in board.results[name]['structures'].items():
      found['val_accuracy'] = shares.get(structure, found['val_accuracy'])


def test_validation_accuracy_chooses_the_best_of_a_grid_and_the_best_within_a_budget(
  allocation, tmp_path
):
  board = pages.make_grid(allocation)
  set_validation(board, lora=0.7, linear=0.6, gradient=0.7, search=0.65)
  head = pages.write_board(tmp_path, board).all('header')[0].words()
  assert 'on the validation images is gradient, at most 60 (tied with 1 other): 95.0' in head
  set_validation(board, lora=0.75, linear=0.8)  # the test accuracy of LoRA is higher
  head = pages.write_board(tmp_path, board).all('header')[0].words()
  assert 'The best of 5 structures on the validation images is linear probe: 81.0' in head
  assert 'Searched, at most 200: +10.0 ± 1.4 points against linear probe' in told_gains(board)


def test_a_grid_without_validation_accuracy_has_no_best(allocation, tmp_path):
  board = pages.make_grid(allocation)
  for result in board.results.values():
    for found in result['structures'].values():
      found['val_accuracy'] = None
  head = pages.write_board(tmp_path, board).all('header')[0].words()
  assert '12 of 12 runs are done. None of 5 structures is called the best' in head
  assert 'Searched, at most 200' not in told_gains(board)  # two fixed ones are within that budget
  assert 'Gradient, at most 60: +14.0 ± 1.4 points against linear probe' in told_gains(board)


def test_means_over_tasks_are_compared_on_the_validation_images_of_the_tasks_that_are_done():
  """On validation BitFit is better on both tasks that are done, and LoRA by far on the third."""
  cells, results = {}, {}
  shares = {'dtd': {'lora': 0.5, 'bitfit': 0.6}, 'svhn': {'lora': 0.5, 'bitfit': 0.6}}
  for task, by_name in {**shares, 'caltech101': {'lora': 1.0}}.items():
    for name in ('lora', 'bitfit'):
      folder = f'{task}/{name}/0'
      cells[folder] = Cell(f'vtab/{task}', name)
      if name in by_name:
        tested = 0.9 if name == 'lora' else 0.8
        results[folder] = pages.grid_result(f'vtab/{task}', name, None, 0, 9, tested, {})
        results[folder]['structures'][name]['val_accuracy'] = by_name[name]
  pivot = pivot_of(Board('vtab/all', cells, results))
  assert pivot.headline == 'mean of the 2 that are done'
  assert pivot.best.rows[0].structure == 'bitfit'
  told = accuracy.tell_best(pivot)
  assert 'The best of 2 structures on the validation images is bitfit: 80.0%' in told


def test_structures_are_compared_at_the_seeds_that_all_have_finished():
  cells, results = {}, {}
  for name, shares in {'bitfit': (0.9, 0.5), 'lora': (0.8, 0.9)}.items():
    for seed, share in enumerate(shares):
      cells[f'{name}/{seed}'] = Cell('pets', name, None, seed)
      result = results[f'{name}/{seed}'] = pages.grid_result('pets', name, None, seed, 9, 0.7, {})
      result['structures'][name]['val_accuracy'] = share
  board = Board('pets', cells, results)
  assert pivot_of(board).best.label == 'lora'
  del results['bitfit/1']
  assert pivot_of(board).best.label == 'bitfit'
  del results['lora/0']
  assert pivot_of(board).best is None


def test_the_best_of_a_grid_is_a_structure_with_weights_that_were_trained_for_it(
  allocation, tmp_path
):
  board = pages.make_grid(allocation)
  set_validation(board, gradient=0.6)
  for seed in (0, 1):
    structures = board.results[f'search-200/{seed}']['structures']
    inherited = {'label': 'inherited', 'val_accuracy': 0.99, 'test_accuracy': 0.99}
    structures['supernet'] = {**structures['search'], **inherited}
  head = pages.write_board(tmp_path, board).all('header')[0].words()
  assert 'images is gradient, at most 60: 95.0' in head
  assert '| inherited, at most 200 | 150 | 99.0 ± 0.0 | 99.0 ± 0.0 | 0.001 | 30 |' in summary(board)
  cells = {'lora/0': board.cells['lora/0']}
  head = pages.write_board(tmp_path, Board('digits', cells, board.results)).all('header')[0].words()
  assert 'Lora: 90.0% test accuracy with 180 trained parameters.' in head


def test_gains_are_paired_differences_to_the_best_within_the_budget(allocation):
  board = pages.make_grid(allocation)
  set_validation(board, lora=0.6)
  assert 'Searched, at most 200: +2.0 ± 1.4 points against lora' in told_gains(board)
  del board.results['lora/0'], board.results['linear/0']  # only seed 1 has a pair
  assert 'Searched, at most 200: +3.0 points against lora' in told_gains(board)
  assert 'Gradient, at most 60: +13.0 points against linear probe' in told_gains(board)


def test_a_failed_seed_is_missing_from_the_mean_and_named_above_it(allocation, tmp_path):
  board = pages.make_grid(allocation)
  del board.results['lora/1']
  board.failed['lora/1'] = 'The loss was not finite.'
  for seed in (0, 1):
    [found] = board.results[f'full/{seed}']['structures'].values()
    found['learned_nothing'] = 'It guesses.'
  head = pages.write_board(tmp_path, board).all('header')[0].words()
  assert 'lora/1: The loss was not finite. full/0, full/1: It' in head
  assert 'max_grad_norm=1' in head
  assert '| lora | 180 | 50.0 (1 of 2) | 90.0 (1 of 2) | 0.001 | 30 |' in summary(board)


def test_rates_that_were_tried_are_in_the_table_and_in_no_mean(allocation, tmp_path):
  board = pages.make_grid(allocation)
  page = pages.write_board(tmp_path, board)
  assert ['structure', '0.001', '0.004'] in page.rows()
  assert ['lora', '50.0', '75.0'] in page.rows()
  with open(tmp_path / 'table.csv') as file:
    tried = [line for line in csv.DictReader(file) if line['role'] == 'rate']
  assert [(line['run'], line['split']) for line in tried] == [
    ('lora/rate-0.001', 'val'),
    ('lora/rate-0.004', 'val'),
  ]
  for name in board.tested:
    del board.results[name]
  page = pages.write_board(tmp_path, board)
  assert '2 of 12 runs are done' in page.all('header')[0].words()
  assert ['lora', '50.0', '75.0'] in page.rows()


def test_the_page_names_a_structure_whose_best_rate_is_at_an_end_of_those_tried(
  allocation, tmp_path
):
  board, told = pages.make_grid(allocation), 'a rate beyond it may be better: lora.'
  assert told in pages.write_board(tmp_path, board).words()
  board.cells['lora/rate-0.01'] = Cell('pets', 'lora', None, 1000, 1e-2)  # which diverged
  assert told not in pages.write_board(tmp_path, board).words()


def test_a_mean_of_means_has_the_spread_over_seeds(allocation):
  """Two tasks of a grid, each better with another seed."""
  cells, results = {}, {}
  for task, accuracies in (('vtab/dtd', (0.5, 0.7)), ('vtab/svhn', (0.8, 0.6))):
    for seed, share in enumerate(accuracies):
      name = f'{task}/{seed}'
      cells[name] = Cell(task, 'lora', None, seed)
      results[name] = pages.grid_result(task, 'lora', None, seed, 9, share, {})
  number = ours(Board('vtab/all', cells, results))['mean of natural']
  assert str(number) == '65.0 ± 0.0'
  assert Number({0: 1.0}).deviation is None


def test_the_table_has_every_class_of_every_result_and_no_mean_counts_them(allocation, tmp_path):
  board, findings = pages.make_grid(allocation), pages.make_findings(allocation)
  without = summary(board)
  for name in board.tested:
    board.results[name]['by_class'] = findings.result['by_class']
  assert summary(board) == without
  pages.write_board(tmp_path, board)
  with open(tmp_path / 'table.csv') as file:
    lines = [line for line in csv.DictReader(file) if line['class_name'] == 'dog']
  assert [line['run'] for line in lines] == [*board.tested]
  [shares] = {
    tuple(line[name] for name in ('images', 'precision', 'recall', 'f1')) for line in lines
  }
  assert shares == tuple(str(column['dog']) for column in findings.result['by_class'].values())


def test_balanced_accuracies_stand_beside_the_others_with_their_spread(allocation):
  board = pages.make_grid(allocation)
  for name in board.tested:
    for found in board.results[name]['structures'].values():
      found |= {'val_balanced_accuracy': 0.25, 'test_balanced_accuracy': found['test_accuracy'] / 2}
  [title, _, linear, *_] = report.summary_of_suite(board, 'workdir').splitlines()
  assert '| validation | validation, balanced | test | test, balanced |' in title
  assert '| 50.0 ± 0.0 | 25.0 ± 0.0 | 81.0 ± 1.4 | 40.5 ± 0.7 |' in linear
