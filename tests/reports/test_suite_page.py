"""What a suite writes: its page and CSV, whatever of it is done."""

import csv

import pages
import pytest

from glora_jax.data.catalog import expand
from glora_jax.reports import markdown, scoreboard
from glora_jax.reports.scoreboard import Board


def first_line(path):
  with open(path) as file:
    return next(csv.DictReader(file))


def row_of(page, title):
  """The cells of the first row of a page that has a title."""
  return next(row for row in page.rows() if title in ' '.join(row))


@pytest.fixture
def unfinished(make_board):
  """A suite with the published accuracies of GLoRA, of which two tasks are missing."""
  glora = next(row for row in scoreboard.published_rows(['vtab/all']) if row.method == 'GLoRA')
  board = make_board({f'vtab/{name}': cell.value for name, cell in glora.cells.items()})
  del board.results['vtab/kitti'], board.results['vtab/dtd']
  board.missing['vtab/kitti'] = 'kitti/3.1.0 needs\n a download.'
  board.failed['vtab/dtd'] = 'The loss was not finite at step 7.'
  return board


def test_a_suite_of_which_tasks_are_missing_says_so(unfinished, tmp_path):
  page = pages.write_suite(tmp_path, unfinished)
  assert '17 of 19 tasks' in page.all('title')[0].text
  same_tasks = row_of(page, 'mean of the 17 that are done')
  heading = row_of(page, 'ours, finetuned')
  glora = next(place for place, name in enumerate(heading) if name.startswith('GLoRA (0.86'))
  assert same_tasks[1] == same_tasks[glora] == '75.2'
  assert row_of(page, 'vtab/kitti')[1] == 'not ready'
  items = [item.words() for item in page.all('li')]
  assert 'vtab/kitti: kitti/3.1.0 needs a download.' in items
  assert 'vtab/dtd: The loss was not finite at step 7.' in items

  ours = first_line(tmp_path / 'table.csv')
  incomplete = ('kitti', 'mean_of_natural', 'mean_of_structured', 'mean_of_groups', 'mean_of_tasks')
  assert [ours[name] for name in incomplete] == [''] * 5
  assert ours['mean_of_specialized'] == '87.03'
  assert (ours['svhn'], ours['complete'], ours['of']) == ('91.5', '17', '19')


def test_a_table_before_the_first_result_can_be_written(tmp_path):
  empty = Board('generalization/all', expand('generalization/all'))
  assert empty.waiting == [f'generalization/{seed}' for seed in range(3)]
  text = pages.write_suite(tmp_path, empty).text
  assert '0 of 3 tasks' in text
  assert 'were searched' not in text  # nobody knows yet


def test_the_papers_protocol_stands_in_text_headings_and_csv(make_board, tmp_path):
  board = make_board({'vtab/dtd': 70.0}, protocol='paper')
  page = pages.write_suite(tmp_path, board)
  assert markdown.PAPER_LABEL in page.words()
  assert "ours (PROTOCOL 'paper'), not finetuned (" in ' '.join(page.rows()[0])
  ours = first_line(tmp_path / 'table.csv')
  assert (ours['method'], ours['protocol']) == ("ours (PROTOCOL 'paper'), not finetuned", 'paper')
