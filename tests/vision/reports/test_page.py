"""The pages of runs, grids and suites: whole, readable, and as their results say."""

import re
import types

import html_pages
import pages
import pytest

from glora_jax import main
from glora_jax.vision.data import record
from glora_jax.vision.reports import page, table
from glora_jax.vision.reports.table import Board, Cell


def test_a_page_fetches_nothing_runs_nothing_and_links_to_what_is_there(any_page):
  assert not any_page.all('script', 'iframe', 'object', 'embed')
  for element in everything(any_page):
    assert not any(name.startswith('on') for name in element.attributes)
    for name in ('src', 'href', 'xlink:href', 'action'):
      address = element.attributes.get(name) or ''
      assert re.match(r'data:|#|$', address) or address.endswith('/report.html')
  [style] = any_page.all('style')
  assert not re.search(r'url\(|@import|https?:', style.text)
  policies = [each.attributes.get('content', '') for each in any_page.all('meta')]
  assert any(policy.startswith("default-src 'none'") for policy in policies)
  names = [each.attributes['id'] for each in everything(any_page) if 'id' in each.attributes]
  links = {each.attributes['href'] for each in any_page.all('a')}
  assert {link.removeprefix('#') for link in links if link[0] == '#'} <= set(names)


def everything(element):
  """All elements within one."""
  return [each for inner in element.inner for each in (inner, *everything(inner))]


def test_names_from_strangers_are_text(tmp_path, allocation):
  findings = pages.make_findings(allocation, ('d\udcffg', pages.SCRIPT, 'dog'))
  root = pages.write_run(tmp_path, findings)
  assert root.all('h1')[0].words() == pages.IMAGE
  assert f'{pages.SCRIPT}, mistaken for dog' in root.text
  assert r'd\udcffg, mistaken for' in root.text  # no encoding has it
  assert any(pages.SCRIPT in image.attributes['alt'] for image in root.all('img'))
  assert all(image.attributes['src'].startswith('data:image/png;') for image in root.all('img'))


def test_the_figures_of_a_run_are_those_of_its_result(tmp_path, findings):
  root = pages.write_run(tmp_path, findings)
  head = root.all('header')[0].words()
  for told in (
    'classifies 80.0% of 40 test images correctly',
    '65.2 to 89.5 (95%)',
    '30.0 points more than the linear probe',
    "2.5 points more than the gradient's structure (may be chance",
    'The result is the searched structure',
    '1 x cpu',
  ):
    assert told in head
  rows = root.all('table')[0].rows()
  assert rows[1] == ['linear probe', '0', '50.0', '50.0']
  assert rows[-1] == ['searched, finetuned', '40', '80.0', '80.0']
  assert '8 of 40 test images are misclassified.' in root.words()
  assert len(root.all('img')) == 8
  assert 'supernet, epoch 2: 75' in root.words()  # the title of a point
  assert pages.MADE['command'] in root.words()


def test_a_page_says_at_whose_learning_rate_the_baselines_are_trained(tmp_path, findings):
  told = pages.write_run(tmp_path, findings).all('header')[0].words()
  assert "at the result's learning rate and without the epochs of its finetuning, so" in told
  cells = {'rate': Cell('pets', '', None, 1000, 1e-3), 'tested': Cell('pets')}
  tuned = Board('pets', cells, {'tested': findings.result})
  assert 'so the comparison favors the' in pages.write_board(tmp_path, tuned).words()
  for name in ('linear', 'lora', 'gradient'):
    findings.result['structures'][name]['rate'] = 2e-3
  assert "at the supernet's learning rate" in pages.write_run(tmp_path, findings).words()


@pytest.mark.parametrize('number', [20, 21])
def test_every_class_has_its_metrics_in_a_table_that_folds_if_it_is_long(
  number, tmp_path, allocation
):
  findings = pages.make_findings(allocation, [f'kind {at}' for at in range(number)])
  root = pages.write_run(tmp_path, findings)
  [section] = [each for each in root.all('section') if each.attributes['id'] == 'classes']
  labels, answers = findings.outcome.labels, findings.outcome.classes
  for (name, images, _, recall, _), at in zip(section.rows()[1:], range(number), strict=True):
    is_right = answers[labels == at] == at
    assert (name, images) == (f'kind {at}', str(len(is_right)))
    assert recall == f'{100 * is_right.mean():.1f}'
  assert (
    'kind 0, the most frequent class of the test images, would be right for 5.0%' in section.words()
  )
  assert 'is 12.5 points off the share of right answers' in section.words()
  assert bool(section.all('details')) == (number > 20)
  drawn = {each.attributes.get('class', '').split(' ')[0] for each in root.all('table')}
  assert ('confusion' in drawn) == (number <= 20)


def test_images_that_were_left_out_are_named_with_the_reason(tmp_path, findings):
  whole = record.Row('train', 'cat', 'cat/1.jpg', '1', 'digest', '')
  broken = record.Row('test', 'cat', f'{pages.IMAGE}/2.jpg', '0', '', 'not a readable image (x)')
  record.write(str(tmp_path), [whole, broken])
  root = pages.write_run(tmp_path, findings)
  assert [broken.image, 'test', broken.fault] in root.rows()
  assert whole.image not in root.text


def test_a_run_without_errors_search_and_other_structures_has_a_page(tmp_path, findings):
  findings.outcome.classes[:] = findings.outcome.labels
  findings.result['structures'] = {'gradient': findings.result['structures']['search']}
  findings.result['result'], findings.archive = 'gradient', None
  root = pages.write_run(tmp_path, findings)
  assert 'All 40 test images are classified correctly' in root.text
  assert not root.all('img')
  assert 'Search' not in [heading.words() for heading in root.all('h2')]


def test_a_run_without_a_test_has_a_page_of_validation_accuracies(tmp_path, findings):
  del findings.result['fold_max_abs_diff']
  for found in findings.result['structures'].values():
    del found['test_accuracy']
    found.pop('against_result', None)
  findings.outcome = None
  root = pages.write_run(tmp_path, findings)
  assert 'classifies 80.0% of 10 validation images correctly' in root.all('header')[0].words()
  assert root.rows()[0] == ['structure', 'parameters', 'validation']
  assert 'test_list.json' not in root.words()
  assert not {'Errors', 'Use it'} & {heading.words() for heading in root.all('h2')}


@pytest.mark.parametrize('protocol, late', [('honest', []), ('paper', []), ('honest', ['dtd'])])
def test_a_list_is_said_to_be_written_before_the_test_only_if_it_was(
  protocol, late, tmp_path, make_board
):
  board = make_board({'vtab/dtd': 70.0}, protocol=protocol)
  assert 'test_list.json' not in pages.write_board(tmp_path, board).words()
  board.late = late
  (tmp_path / 'test_list.json').touch()
  text = pages.write_board(tmp_path, board).words()
  assert (page.TEST_LIST.striptags() in text) == (protocol == 'honest' and not late)
  assert ('dtd: added to test_list.json after other runs had been tested' in text) == bool(late)


def test_a_notebook_shows_parts_of_a_page_with_the_papers_warning(tmp_path, findings):
  findings.result['protocol'] = 'paper'
  pages.write_run(tmp_path, findings)
  frame = html_pages.parse(page.show(str(tmp_path), 'errors', 'accuracy')._repr_html_())
  [shown] = frame.all('iframe')
  root = html_pages.parse(shown.attributes['srcdoc'] + '</body></html>')
  assert [heading.words() for heading in root.all('h2')] == ['Errors', 'Accuracy']
  assert table.PAPER_LABEL in root.words()
  with pytest.raises(ValueError, match="no section 'error'; it has accuracy"):
    page.show(str(tmp_path), 'error')


def test_the_page_is_opened_where_that_is_asked(monkeypatch, tmp_path, capsys):
  opened, path = [], tmp_path / 'report.html'
  monkeypatch.setattr(main.webbrowser, 'open', lambda url: opened.append(url))
  monkeypatch.setattr(main, 'OPEN', types.SimpleNamespace(value=True))
  main.open_page(str(path))
  assert opened == [path.as_uri()]
  assert f'open {path} by hand' in capsys.readouterr().err


def test_columns_of_text_are_on_the_left_and_names_stay_in_their_cells():
  table = page.Table('', ('task', 'state', 'params'), [(' a|b\n c', 'done', 7)], 2)
  assert str(table).splitlines() == [
    '| task | state | params |',
    '|---|---|---:|',
    r'| a\|b c | done | 7 |',
  ]
