"""Suites: which tasks run, settings by task, failures, the same table after an interruption."""

import json
import logging
import re
import signal

import html_pages
import pytest
from few_shot_lists import write_few_shot_lists
from mocked_tfds import mocked  # noqa: F401, a fixture
from places import get_config
from tiny_runs import changed, start_command, wait_for

from glora_jax.errors import UserError
from glora_jax.vision.data import tfds as tfds_lib
from glora_jax.vision.data.tasks import vtab
from glora_jax.vision.reports import scoreboard
from glora_jax.vision.runs import command_line, suite
from glora_jax.vision.runs.config import check_config


@pytest.fixture
def config(backbone, tmp_path):
  config = get_config('vtab', 'all,tiny=True')
  config.data.dir, config.model.weights = str(tmp_path / 'tfds'), backbone
  return config


def firsts(workdir):
  """The first two cells of every row of a page."""
  return [row[:2] for row in html_pages.read(workdir).rows()]


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
  assert re.search(r'fewshot/oxford_pets/1/1: 1 of 6 images cannot be .*t11\.png', text)
  assert not [*workdir.rglob('stage.json')]


@pytest.mark.parametrize(
  'error, level, has_traceback',
  [
    (UserError('It is too large.'), logging.INFO, False),
    (UserError('It is too large.'), logging.DEBUG, True),  # --debug
    (ValueError('operands could not be broadcast'), logging.INFO, True),
  ],
)
def test_a_bug_in_a_task_keeps_its_traceback_and_the_rest_continues(
  error, level, has_traceback, caplog
):
  board = scoreboard.Board('vtab/all', ['vtab/dtd'])
  with caplog.at_level(level, 'glora_jax'):
    suite.attempt(board, 'vtab/dtd', lambda: fail(error))
  assert ('in fail' in caplog.text) == has_traceback
  assert ('bug of glora_jax' in board.failed['vtab/dtd']) == (type(error) is ValueError)


def fail(error):
  raise error


@pytest.mark.full
def test_a_command_that_is_killed_leaves_the_table_of_an_undisturbed_suite(run_config, tmp_path):
  """kill -9 and SIGTERM come amid the second of three tasks; of the third an image is broken."""
  write_few_shot_lists(tmp_path / 'lists' / 'oxford_pets')
  (tmp_path / 'lists' / 'oxford_pets' / 'images' / 't20.png').write_bytes(b'broken')
  config = few_shot(run_config, tmp_path / 'lists', structure='lora', budget=5000)
  config.training.update(batch_size=2, epochs=12, warmup_epochs=0)
  workdir = tmp_path / 'run'
  for number, stage in ((signal.SIGKILL, 'linear'), (signal.SIGTERM, 'lora')):
    process = start_command(config, workdir)
    wait_for(process, workdir / 'oxford_pets' / '1' / '1' / 'training' / stage)
    process.send_signal(number)
    _, errors = process.communicate()
    expected = command_line.STOPPED if number == signal.SIGTERM else -number
    assert process.returncode == expected, errors
  assert re.search(r'Stopped .*Everything is saved in .*oxford_pets/1/1; the same', errors)
  assert ['fewshot/oxford_pets/1/0', 'done'] in firsts(workdir)
  process = start_command(config, workdir)
  printed, errors = process.communicate()
  assert process.returncode == 1, errors
  assert 'Traceback' not in errors
  assert re.search('oxford_pets/1/2 failed: 1 of . images cannot be decoded', printed)
  assert '2 done, 1 failed, 0 not ready of 3 tasks' in printed
  board = suite.run(config, str(tmp_path / 'undisturbed'))
  assert len(board.results) == 2
  tables = [(folder / 'table.csv').read_text() for folder in (workdir, tmp_path / 'undisturbed')]
  assert tables[0] == tables[1]


def test_nothing_ready_is_one_sentence_and_the_table_lists_what_is_missing(config, tmp_path):
  with pytest.raises(ValueError, match='None of the 19 tasks of vtab/all can run'):
    suite.run(config, str(tmp_path / 'run'))
  assert [row[1] for row in firsts(tmp_path / 'run')].count('not ready') == 19
  assert '--config.suite.prepare=True' in html_pages.read(tmp_path / 'run').text


def test_what_needs_no_manual_download_is_prepared_on_request(config, monkeypatch):
  asked = []
  monkeypatch.setattr(tfds_lib, 'is_prepared', lambda builder: False)

  def prepare(builder):
    asked.append(builder.name)
    raise OSError(tfds_lib.instructions(builder))

  monkeypatch.setattr(tfds_lib, 'prepare', prepare)
  own = suite.tasks_of(check_config(config))
  assert '--config.suite.prepare=True' in suite.missing(own['vtab/dtd'], prepare=False)
  assert not asked
  assert 'needs a manual download' in suite.missing(own['vtab/resisc45'], prepare=True)
  assert asked == ['resisc45']


def settings_file(folder, settings):
  (folder / 'settings.json').write_text(json.dumps(settings))
  return folder / 'settings.json'


def test_the_config_of_a_task_is_that_of_a_run_of_it_alone(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  settings = {'cifar100': {'budget': 860000, 'learning_rate': 1e-3}, 'svhn': {'budget': None}}
  path = settings_file(tmp_path, settings)
  every = suite.tasks_of(check_config(get_config('vtab', f'all,settings={path}')))
  assert list(every) == [f'vtab/{name}' for name in vtab.NAMES]
  for name in ('cifar100', 'svhn', 'kitti'):
    alone = get_config('vtab', f'{name},settings=~/settings.json')
    assert every[f'vtab/{name}'] == check_config(alone)
  of_cifar = every['vtab/cifar100']
  assert of_cifar.training.learning_rate == of_cifar.finetuning.learning_rate == 1e-3
  assert of_cifar.budget == 860_000


def test_the_longest_name_in_the_settings_counts(tmp_path):
  first = {'budget': 1, 'learning_rate': 0.5}
  settings = {'food101/4': {'budget': 2}, 'food101': first, 'food101/4/0': {'budget': 3}}
  path = settings_file(tmp_path, settings)
  own = suite.tasks_of(check_config(get_config('fewshot', f'all,seed=all,settings={path}')))
  names = ('food101/1/0', 'food101/4/1', 'food101/4/0', 'oxford_pets/4/0')
  assert [own[f'fewshot/{name}'].budget for name in names] == [1, 2, 3, None]
  assert own['fewshot/food101/4/0'].training.learning_rate == 0.5
