"""Suites: which runs they have, failures, one list before the first test, resuming."""

import json
import logging
import math
import re

import html_pages
import pytest
from few_shot_lists import write_few_shot_lists
from places import get_config
from tiny_runs import changed, context_of

from glora_jax import main
from glora_jax.errors import UserError
from glora_jax.files import read_json
from glora_jax.method.genomes import count_params, genome_to_json
from glora_jax.method.presets import preset
from glora_jax.vision.data import tfds as tfds_lib
from glora_jax.vision.reports.table import Board, Cell, pivot_of
from glora_jax.vision.runs import cells, suite
from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.runners import in_this_process
from glora_jax.vision.runs.workdir import Stopped


@pytest.fixture
def config(backbone, tmp_path):
  config = get_config('vtab', 'all,tiny=True')
  config.data.dir, config.model.weights = str(tmp_path / 'tfds'), backbone
  return config


def runs_of(config):
  """The settings of a suite's runs, by name."""
  return {name: run.settings for name, run in grid_of(check_config(config))[1].items()}


def grid_of(settings, chosen=None):
  """(the runs that try a learning rate, those that are tested), by name."""
  runs = cells.runs_of(settings, chosen)
  trials = {name: run for name, run in runs.items() if run.cell.rate is not None}
  return trials, {name: run for name, run in runs.items() if name not in trials}


def few_shot(config, root, **fields):
  """A config of three tasks whose lists lie in a folder."""
  places = {'data__source': 'lists', 'data__root': str(root), 'presets': ()}
  return changed(config, task='fewshot/oxford_pets/1/all', **places, **fields)


def test_all_tasks_are_checked_before_the_first_begins(run_config, monkeypatch, tmp_path):
  """Of the second an image is broken."""

  def end(*_):
    raise RuntimeError('all are checked')

  folder, workdir = tmp_path / 'lists' / 'oxford_pets', tmp_path / 'run'
  write_few_shot_lists(folder)
  (folder / 'images' / 't11.png').write_bytes(b'broken')
  config = few_shot(run_config, folder.parent, budget=None)
  config.training.batch_size = 2
  monkeypatch.setattr(suite, 'write_config', end)
  with pytest.raises(RuntimeError, match='all are checked'):
    suite.run(config, str(workdir))
  text = html_pages.read(workdir).text
  assert re.search(r'oxford_pets/1/1: 1 of 6 images cannot be .*t11\.png', text)
  assert not [*workdir.rglob('stage.json')]


def test_a_bug_in_a_task_keeps_its_traceback_and_the_rest_continues(caplog):
  mistake = UserError('It is too large.')
  for error, level, has_traceback in (
    (mistake, logging.INFO, False),
    (mistake, logging.DEBUG, True),  # --debug
    (ValueError('operands could not be broadcast'), logging.INFO, True),
  ):
    caplog.clear()
    board = Board('vtab/all', {'dtd': Cell('vtab/dtd')})
    with caplog.at_level(level, 'glora_jax'):
      suite.attempt(board, 'dtd', lambda error=error: fail(error))
    assert ('in fail' in caplog.text) == has_traceback
    assert ('bug of glora_jax' in board.failed['dtd']) == (type(error) is ValueError)


def fail(error):
  raise error


def test_nothing_ready_is_one_sentence_and_the_table_lists_what_is_missing(config, tmp_path):
  with pytest.raises(ValueError, match='None of the 19 runs of vtab/all can start'):
    suite.run(config, str(tmp_path / 'run'))
  page = html_pages.read(tmp_path / 'run')
  assert [row[1] for row in page.rows()].count('not ready') == 19
  assert '--config.suite.prepare=True' in page.text


def test_what_needs_no_manual_download_is_prepared_on_request(config, monkeypatch):
  asked = []
  monkeypatch.setattr(tfds_lib, 'is_prepared', lambda builder: False)

  def prepare(builder):
    asked.append(builder.name)
    raise OSError(tfds_lib.instructions(builder))

  monkeypatch.setattr(tfds_lib, 'prepare', prepare)
  own = runs_of(config)
  assert '--config.suite.prepare=True' in suite.missing(own['dtd'], prepare=False)
  assert not asked
  assert 'needs a manual download' in suite.missing(own['resisc45'], prepare=True)
  assert asked == ['resisc45']


def test_the_config_of_a_task_is_that_of_a_run_of_it_alone(tmp_path, monkeypatch):
  """Of the names in the settings the longest counts."""
  monkeypatch.setenv('HOME', str(tmp_path))
  settings = {'food101/4': {'budget': 2}, 'food101': {'budget': 1, 'learning_rate': 0.5}}
  settings |= {'food101/4/0': {'budget': 3}, 'oxford_pets': {'budget': None}}
  (tmp_path / 'settings.json').write_text(json.dumps(settings))
  every = runs_of(get_config('fewshot', 'all,seed=all,settings=~/settings.json'))
  for name, budget in (
    ('food101/1/0', 1),
    ('food101/4/1', 2),
    ('food101/4/0', 3),
    ('oxford_pets/4/0', None),
    ('fgvc_aircraft/4/0', None),
  ):
    data_set, shots, seed = name.split('/')
    arguments = f'{data_set},shots={shots},seed={seed},settings=~/settings.json'
    assert every[name] == check_config(get_config('fewshot', arguments))
    assert every[name].budget == budget
  assert every['food101/4/0'].training.learning_rate == 0.5
  assert every['food101/4/0'].finetuning.learning_rate == 0.5


def test_a_run_of_a_grid_is_one_of_its_structure_alone():
  config = get_config('compare', 'tune')
  config.suite.update(structures=('lora:2', 'gradient', 'search'), seeds=2)
  config.suite.rate.gradient = 8e-3
  settings = check_config(config)
  trials, _ = grid_of(settings)
  assert [*trials] == [f'{x}/rate-{r:g}' for x in ('lora:2', 'search') for r in config.suite.rates]
  chosen = {('digits', 'lora:2'): 1e-3, ('digits', 'search'): 4e-3}
  of = {name: run.settings for name, run in grid_of(settings, chosen)[1].items()}
  names = ('lora:2', 'gradient-20000', 'gradient-40000', 'search-20000', 'search-40000')
  assert [*of] == [f'{name}/{seed}' for name in names for seed in (0, 1)]
  assert all(each.test and each.presets is None and not each.is_suite for each in of.values())
  for trial in trials.values():
    assert not trial.settings.test
    assert trial.settings.seed not in (0, 1)
    assert trial.settings.budget in (None, 40_000)
  lora, gradient, search = of['lora:2/1'], of['gradient-20000/0'], of['search-40000/0']
  assert (lora.budget, gradient.budget, search.budget) == (None, 20_000, 40_000)
  assert [each.training.learning_rate for each in (lora, gradient, search)] == [1e-3, 8e-3, 4e-3]
  assert search.finetune.learning_rate == 2e-3
  # All of them see the images as often; a gradient's training is shortened when it runs.
  epochs = search.training.epochs + search.finetune.epochs
  assert lora.training.epochs == gradient.training.epochs == epochs
  # The head does not depend on the rate that is tried, so that all of them share one gradient.
  assert gradient.allocation.head_rate == 2 * settings.training.learning_rate


@pytest.mark.parametrize(
  'fields, structures',
  [
    ({'training.epochs': 2, 'suite.structures': ('bitfit', 'lora:1')}, ['bitfit', 'lora:1']),
    ({'protocol': 'paper', 'suite.structures': ('search',)}, ['search']),
    ({'structure': 'transfer', 'suite.budgets': (900,)}, ['transfer']),
  ],
)
def test_a_suite_checks_the_structures_and_budgets_that_it_trains_and_no_others(fields, structures):
  config = changed(default_config(), structure='gradient', training__warmup=0.0)
  config.update_from_flattened_dict(fields)
  runs = cells.runs_of(check_config(config)).values()
  assert [run.settings.structure for run in runs] == structures


def grid(config):
  """A config of linear probes and gradients; the probe's learning rate is chosen."""
  config = changed(config, presets=(), budget=None, training__epochs=5)
  config.suite.update(structures=('linear', 'gradient'), budgets=(300, 900), seeds=2)
  config.suite.update(rates=(1e-3, 1e-2))
  config.suite.rate.gradient = 1e-2
  return config


def left_by(workdir):
  """What a suite leaves but for times, by file."""
  names = ('test_list.json', 'adapter.safetensors', 'metrics.jsonl')
  paths = [path for name in names for path in sorted(workdir.rglob(name))]
  return {str(path.relative_to(workdir)): path.read_bytes() for path in paths}


@pytest.mark.full
def test_one_list_of_all_is_written_before_the_first_test_and_what_is_shared_is_made_once(
  run_config, tmp_path
):
  """A stop amid the choice, the trainings and the tests changes nothing."""
  config, whole, stopped = grid(run_config), tmp_path / 'whole', tmp_path / 'stopped'

  def look():
    """Never asks to stop; looks at what is on disk."""
    if any(path.parent != whole for path in whole.rglob('test_list.json')):
      assert [*read_json(whole / 'test_list.json', 'test list')['runs']] == tested
    return False

  tested = [*runs_of(config)]
  board = suite.run(config, str(whole), look)
  assert [*board.results] == ['linear/rate-0.001', 'linear/rate-0.01', *tested]
  assert len([*whole.glob('shared/head/*/stage.json')]) == 2  # one of each seed
  assert len([*whole.glob('shared/gradient/*/stage.json')]) == 2
  structures = [result['structures'][result['result']] for result in board.results.values()]
  best = max(structures[:2], key=lambda row: (row['val_accuracy'], -row['val_loss']))
  assert structures[2]['rate'] == best['rate']
  assert 'test_accuracy' not in structures[0]
  stops = 0
  while True:
    asked = iter(range(60))
    try:
      suite.run(config, str(stopped), lambda asked=asked: next(asked, None) is None)
    except Stopped:
      stops += 1
    else:
      break
  assert stops > 1
  assert left_by(stopped) == left_by(whole)
  with pytest.raises(ValueError, match=r'suite\.seeds was 2 and is now 3\. Its test images were'):
    suite.run(changed(config, suite__seeds=3), str(whole))


def write_genome(path, run_config, structure):
  """Writes a preset of the tiny backbone as a genome file; its number of parameters."""
  spec = context_of(run_config, path.parent / 'run').adapted.spec
  path.write_text(json.dumps(genome_to_json(spec, preset(spec, structure))))
  return int(count_params(spec, preset(spec, structure)))


def test_a_suite_without_a_test_freezes_no_list_and_one_of_all_once_it_is_to_be_tested(
  run_config, tmp_path
):
  alone = {'structure': 'linear', 'presets': (), 'training__epochs': 1}
  config = changed(run_config, **alone, test=False, suite__seeds=2)
  board = suite.run(config, str(tmp_path))
  assert len(board.results) == 2
  assert not [*tmp_path.rglob('test_list.json')]

  def look():
    """Never asks to stop; the list of all is the first."""
    assert (tmp_path / 'test_list.json').exists() or not [*tmp_path.rglob('test_list.json')]
    return False

  board = suite.run(changed(config, test=True), str(tmp_path), look)
  assert [*read_json(tmp_path / 'test_list.json', 'test list')['runs']] == [*board.results]


def test_genome_files_of_one_name_in_two_folders_are_two_rows(run_config, tmp_path):
  names, expected = [], []
  for folder, name in (('a', 'linear'), ('b', 'bitfit')):
    names.append(str(tmp_path / folder / 'genome.json'))
    (tmp_path / folder).mkdir()
    params = write_genome(tmp_path / folder / 'genome.json', run_config, name)
    expected.append((f'{folder}/genome.json', params))
  config = changed(run_config, test=False, budget=None, suite__structures=tuple(names))
  config.training.update(epochs=1, warmup=0.0)
  rows = pivot_of(suite.run(config, str(tmp_path / 'suite'))).methods
  assert [(row.label, row.parameters.value) for row in rows] == expected


def test_a_run_that_is_trained_after_others_were_tested_is_marked_in_the_list_and_on_the_page(
  run_config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = changed(run_config, budget=None, suite__structures=('linear', 'mine.json'))
  config.training.update(epochs=1, warmup=0.0)
  printed, code = main.run(check_config(config), 'suite', never)
  assert code == 1
  assert '1 done, 1 failed, 0 not ready of 2 runs' in printed
  assert read_json('suite/test_list.json', 'test list')['late'] == []
  write_genome(tmp_path / 'mine.json', run_config, 'bitfit')
  for _ in range(2):  # the last start only reads
    assert main.run(check_config(config), 'suite', never)[1] == 0
    assert read_json('suite/test_list.json', 'test list')['late'] == ['mine.json/42']
    text = html_pages.read(tmp_path / 'suite').all('header')[0].words()
    assert 'mine.json/42: added to test_list.json after other runs had been tested' in text


def test_a_structure_whose_rates_all_failed_fails_and_one_without_data_does_not():
  config = changed(get_config('vtab', 'dtd'), suite__structures=('bitfit',), suite__rates=(1e30,))
  trials, tested = grid_of(check_config(config))
  cells_of = {name: run.cell for name, run in (trials | tested).items()}
  for reason, failed in (('missing', []), ('failed', [*trials, *tested])):
    board = Board('vtab/dtd', cells_of)
    getattr(board, reason).update(dict.fromkeys(trials, 'The loss was not finite.'))
    phases = suite._Phases(board, 'runs', in_this_process, never)
    assert phases.choose_rates('val_accuracy') == {}
    assert [*board.failed] == failed
  assert {board.failed[name] for name in tested} == {
    'No learning rate could be chosen. The loss was not finite.'
  }


def test_a_rate_that_diverged_wins_no_tie():
  losses = {0.1: None, 0.05: -math.inf, 0.03: math.nan, 0.01: 2.0}
  rows = {rate: {'by': 0.5, 'val_loss': loss} for rate, loss in losses.items()}
  assert suite.best_on_val(rows, 'by') == 0.01


@pytest.mark.parametrize('given, finetuned_at', [(None, 2e-3), (1e-5, 4e-5)])
def test_a_search_is_trained_at_the_best_rate_and_finetuned_at_the_same_share_of_it(
  given, finetuned_at
):
  """The config finetunes at half of its rate, 1e-3, or at a hundredth."""
  config = default_config()
  config.update(structure='search', budget=20_000, presets=None)
  config.training.learning_rate, config.finetune.learning_rate = 1e-3, given
  config.suite.update(structures=('search',), rates=(1e-3, 4e-3))
  settings = check_config(config)
  trials, _ = grid_of(settings)
  board = Board('digits', {name: trial.cell for name, trial in trials.items()})
  for name, trial in trials.items():
    rate = trial.settings.finetuning.learning_rate
    found = {'rate': rate, 'val_accuracy': rate, 'val_loss': 1.0}
    board.results[name] = {'result': 'search', 'structures': {'search': found}}
  chosen = suite._Phases(board, 'runs', in_this_process, never).choose_rates('val_accuracy')
  [run] = grid_of(settings, chosen)[1].values()
  assert run.settings.training.learning_rate == 4e-3
  assert run.settings.finetuning.learning_rate == pytest.approx(finetuned_at)
