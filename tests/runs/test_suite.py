"""Suites: which tasks run, settings by task, failures, the same table after an interruption."""

import csv
import io
import json
import re
import signal
import time

import html_pages
import mocked_tfds
import numpy as np
import pytest
import tensorflow_datasets as tfds
from few_shot_lists import write_few_shot_lists
from mocked_tfds import mocked  # noqa: F401, a fixture
from PIL import Image
from places import get_config
from tiny_runs import changed, overrides, start_command

from glora_jax import files
from glora_jax.data import tfds as tfds_lib
from glora_jax.data.tasks import vtab
from glora_jax.reports import scoreboard
from glora_jax.runs import command_line, experiment, suite
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import never
from glora_jax.runs.workdir import Stopped, claim
from glora_jax.training.loop import NonFiniteLossError, TrainState

SHORT = {  # hardly any training
  'checkpoint_epochs': 1,
  'supernet.epochs': 1,
  'supernet.warmup_epochs': 0,
  'supernet.learning_rate': 1e-2,
  'finetune.epochs': 0,
  'finetune.warmup_epochs': 0,
  'search.population': 4,
  'search.generations': 1,
  'search.parents': 2,
  'search.mutations': 2,
  'search.crossovers': 2,
}
PIXELS = np.random.default_rng(0).integers(0, 256, (102, 6, 6, 3), np.uint8)


@pytest.fixture
def config(backbone, tmp_path):
  config = get_config('vtab', 'all')
  config.data.update(dir=str(tmp_path / 'tfds'), cache=None)
  config.model.weights = backbone
  config.update_from_flattened_dict(SHORT)
  return config


def own_means(board):
  """The winners' accuracies by task, and the means that the table has of them."""
  row = scoreboard.own_rows(board)[0]
  return (
    {name: cell.value for name, cell in row.cells.items() if cell.complete},
    {name: str(cell) for name, cell in scoreboard.means(row, board.tasks).items()},
  )


def firsts(workdir):
  """The first two cells of every row of a page."""
  return [row[:2] for row in html_pages.read(workdir).rows()]


def test_all_tasks_are_checked_before_the_first_begins(run_config, monkeypatch, tmp_path):
  """Of the second an image is broken."""

  def end(*_):
    raise RuntimeError('all are checked')

  folder, workdir = tmp_path / 'lists' / 'oxford_pets', tmp_path / 'run'
  write_few_shot_lists(folder)
  (folder / 'images' / 't11.png').write_bytes(b'broken')
  config = changed(run_config, task='fewshot/oxford_pets/1/all', budget=None, presets=())
  config.data.update(source='lists', root=str(folder.parent), cache=str(tmp_path / 'cache'))
  config.supernet.batch_size = config.finetune.batch_size = 2
  monkeypatch.setattr(suite, 'claim_workdir', end)
  with pytest.raises(RuntimeError, match='all are checked'):
    suite.run(config, str(workdir))
  text = html_pages.read(workdir).text
  assert re.search(r'fewshot/oxford_pets/1/1: 1 of 6 images cannot be .*t11\.png', text)
  left = sorted(str(path.relative_to(workdir / 'oxford_pets')) for path in workdir.rglob('*/?/*'))
  names = ('images.npz', 'lock', 'weights.json')
  kept = [[f'1/{seed}', *(f'1/{seed}/{name}' for name in names)] for seed in (0, 2)]
  assert left == [*kept[0], *kept[1]]  # the failed one as it was
  assert not (workdir / 'config.json').exists()


def test_a_field_that_does_nothing_is_named_once_for_all_tasks(
  run_config, monkeypatch, tmp_path, caplog
):
  def carry_out(*_):
    raise ValueError('It ends here.')

  monkeypatch.setattr(experiment, 'carry_out', carry_out)
  monkeypatch.setattr(suite, '_check', lambda *_: None)
  write_few_shot_lists(tmp_path / 'lists' / 'oxford_pets')
  config = changed(run_config, task='fewshot/oxford_pets/1/all', budget=None, mesh__fsdp=4)
  config.data.update(source='lists', root=str(tmp_path / 'lists'))
  config.suite.settings = {'oxford_pets': {'budget': 5000}}
  board = suite.run(config, str(tmp_path / 'run'))
  assert len(board.failed) == 3
  named = [text for text in caplog.messages if 'does nothing' in text]
  assert [text.partition(' ')[0] for text in named] == ['mesh.fsdp=4']


def test_a_task_that_another_process_runs_is_not_checked_beside_it(monkeypatch, tmp_path):
  """It may be writing what a check would remove; and it may be finished when its turn comes."""
  monkeypatch.setattr(suite, 'rehearse', lambda config, folder: pytest.fail('it is checked'))
  folder = str(tmp_path / 'cifar100')
  with claim(folder):
    suite._rehearse(None, folder, 'Checking task 1 of 2', never)
  with pytest.raises(pytest.fail.Exception, match='it is checked'):
    suite._rehearse(None, folder, 'Checking task 1 of 2', never)


@pytest.mark.full
def test_a_task_that_was_run_alone_in_its_folder_is_one_of_the_suite(run_config, tmp_path):
  """As a queue's array of jobs does it: one command a task, and one for the table."""
  write_few_shot_lists(tmp_path / 'lists' / 'oxford_pets')
  every = changed(run_config, task='fewshot/oxford_pets/1/all', structure='lora', presets=())
  every.data.update(source='lists', root=str(tmp_path / 'lists'), cache=None)
  every.training.update(batch_size=2, epochs=1, warmup_epochs=0)
  every.suite.settings = {'oxford_pets': {'budget': 5000}}
  [alone] = suite.task_configs(changed(every, task='fewshot/oxford_pets/1/1')).values()
  workdir = tmp_path / 'run'
  experiment.run(alone, str(workdir / 'oxford_pets' / '1' / '1'))
  with pytest.raises(Stopped, match='before fewshot/oxford_pets/1/0'):
    suite.run(every, str(workdir), lambda: True)
  states = [row[1] for row in html_pages.read(workdir).rows() if row[0].startswith('fewshot/')]
  assert states == ['waiting', 'done', 'waiting']


@pytest.mark.slow
def test_a_suite_is_stopped_and_resumed_and_its_table_is_right(
  config, mocked, monkeypatch, tmp_path
):
  """A data set is ready, and another whose labels are wrong; the stop comes amid the search."""
  name = 'oxford_flowers102'
  monkeypatch.setattr(tfds_lib, 'is_prepared', lambda builder: builder.name in ('dtd', name))
  # The programs of the other test serve this one, too.
  monkeypatch.setitem(mocked_tfds.SIZES, name, {**mocked_tfds.SIZES[name], 'test': 60})
  monkeypatch.setitem(mocked_tfds.CLASSES, 'dtd', 48)  # one more than there are
  config.suite.settings = {name: {'budget': 500}}
  workdir = tmp_path / 'run'
  archive = workdir / name / 'search' / 'archive.npz'
  with pytest.raises(
    Stopped,
    match=r'Stopped search after generation 0.*oxford_flowers102, and the same command goes on',
  ):
    suite.run(config, str(workdir), archive.exists)
  assert '0 of 19 tasks' in html_pages.read(workdir).text
  for task, state in (('dtd', 'failed'), (name, 'waiting'), ('resisc45', 'not ready')):
    assert [f'vtab/{task}', state] in firsts(workdir)

  board = suite.run(config, str(workdir))
  assert list(board.results) == [f'vtab/{name}']
  assert board.failed == {'vtab/dtd': 'vtab/dtd train has labels 0 to 47, but 47 classes.'}
  assert len(board.missing) == 17
  assert 'resisc45/3.0.0 needs a manual download into' in board.missing['vtab/resisc45']
  result = files.read_json(workdir / name / 'result.json')
  accuracy = 100 * result['winner']['test_accuracy']
  cells, means = own_means(board)
  assert cells == {name: pytest.approx(accuracy)}
  assert means == {
    'mean of natural': f'{accuracy:.1f} (1 of 7)',
    'mean of specialized': '-',
    'mean of structured': '-',
    'mean of groups': '-',
    'mean of tasks': f'{accuracy:.1f} (1 of 19)',
  }
  assert ['mean of tasks', means['mean of tasks']] in firsts(workdir)
  assert result['winner']['params'] <= result['budget'] == 500
  assert files.read_json(workdir / name / 'config.json')['budget'] == 500
  config.suite.settings[name].budget = 400
  with pytest.raises(
    ValueError,
    match=rf'belongs to another config: suite\.settings\.{name}\.budget was 500 and is now 400',
  ):
    suite.run(config, str(workdir))


def test_a_loss_that_is_not_finite_is_a_failure_of_the_task_and_a_stop_is_none():

  def ends(error):
    raise error

  board = scoreboard.Board('vtab/all', ['vtab/dtd'])
  suite.attempt(board, 'vtab/dtd', lambda: ends(NonFiniteLossError(TrainState({}, {}, 7))))
  assert board.failed['vtab/dtd'].startswith('The loss or its gradient was not finite at step 7')
  with pytest.raises(Stopped):
    suite.attempt(board, 'vtab/dtd', lambda: ends(Stopped('there', 'workdir')))


def build(name, version, counts, example, folder):
  """Prepares a data set under the name, version and features of one of TFDS's own."""

  class Local(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.builder(name).info.features)

    def _split_generators(self, dl_manager):
      return {
        split: ((f'{split}{n}', example(n)) for n in range(count))
        for split, count in counts.items()
      }

    def _generate_examples(self):
      raise NotImplementedError  # abstract

  Local.name = name
  Local(data_dir=folder, file_format='array_record').download_and_prepare()


def png(pixels):
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, 'png')
  return io.BytesIO(encoded.getvalue())


def start(config, workdir):
  """The command over all of VTAB, hardly any training."""
  fields = {
    **SHORT,
    'data.dir': config.data.dir,
    'data.cache': f'{workdir}-images',
    'model.weights': config.model.weights,
  }
  return start_command('configs/vtab.py:all', workdir, overrides(fields))


@pytest.mark.full
def test_a_command_over_data_sets_is_killed_and_its_table_and_exit_codes_are_right(
  config, tmp_path
):
  """Three data sets, one of them broken; kill -9 and SIGTERM come amid the second task."""
  small, folder = {'train': 800, 'validation': 200, 'test': 60}, config.data.dir
  build(
    'caltech101',
    '3.0.1',
    {'train': 2954, 'test': 60},
    lambda n: {'image': png(PIXELS[n % 102]), 'label': n % 102, 'image/file_name': f'{n}'},
    folder,
  )
  build(
    'oxford_flowers102',
    '2.1.1',
    small,
    lambda n: {'image': png(PIXELS[n % 7]), 'label': n % 7, 'file_name': f'{n}'},
    folder,
  )
  build(
    'dmlab',
    '2.0.1',
    small,
    lambda n: {'image': io.BytesIO(b'no image'), 'label': n % 6, 'filename': f'{n}'},
    folder,
  )
  workdir, name = tmp_path / 'run', 'oxford_flowers102'
  for number, stage in ((signal.SIGKILL, 'supernet'), (signal.SIGTERM, 'search')):
    process = start(config, workdir)
    while not (workdir / name / stage).exists() and process.poll() is None:
      time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    expected = command_line.STOPPED if number == signal.SIGTERM else -number
    assert process.returncode == expected, errors
  assert re.search(
    r'Stopped .*Everything is saved in .*oxford_flowers102, and the same command goes on', errors
  )
  assert ['vtab/caltech101', 'done'] in firsts(workdir)
  process = start(config, workdir)
  printed, errors = process.communicate()
  assert process.returncode == 1, errors
  assert 'Traceback' not in errors
  assert re.search(r'vtab/dmlab failed: (\d+) of \1 images cannot be decoded', printed)
  assert '2 done, 1 failed, 16 not ready of 19 tasks' in printed

  with open(workdir / 'table.csv') as file:
    ours = next(csv.DictReader(file))
  accuracies = {
    task: 100 * files.read_json(workdir / task / 'result.json')['winner']['test_accuracy']
    for task in ('caltech101', name)
  }
  assert {task: float(ours[task]) for task in accuracies} == pytest.approx(accuracies, abs=0.01)
  # 7 and 102 different images: the accuracy of neither task can stand for that of the other.
  assert accuracies[name] > accuracies['caltech101']
  mean = f'{np.mean(list(accuracies.values())):.1f} (2 of 7)'
  assert ['mean of natural', mean] in firsts(workdir)
  assert ours['mean_of_natural'] == ''


def test_nothing_ready_is_one_sentence_and_the_table_lists_what_is_missing(config, tmp_path):
  with pytest.raises(
    ValueError,
    match=r'None of the 19 tasks of vtab/all can run; .*report\.html says what each of them lacks',
  ):
    suite.run(config, str(tmp_path / 'run'))
  text = html_pages.read(tmp_path / 'run').text
  assert [row[1] for row in firsts(tmp_path / 'run')].count('not ready') == 19
  assert 'resisc45/3.0.0 needs a manual download into' in text
  assert '--config.suite.prepare=True' in text


def test_what_needs_no_manual_download_is_prepared_on_request(config, monkeypatch):
  asked = []
  monkeypatch.setattr(tfds_lib, 'is_prepared', lambda builder: False)

  def prepare(builder):
    asked.append(builder.name)
    raise OSError(tfds_lib.instructions(builder))

  monkeypatch.setattr(tfds_lib, 'prepare', prepare)
  own = suite.task_configs(config)
  assert 'at its first use' in suite.missing(own['vtab/dtd'], 'unused', prepare=False)
  assert not asked
  assert 'needs a manual download' in suite.missing(own['vtab/resisc45'], 'unused', prepare=True)
  assert asked == ['resisc45']


def test_the_config_of_a_task_is_that_of_a_run_of_it_alone(config, tmp_path):
  path = tmp_path / 'settings.json'
  path.write_text(
    json.dumps({'cifar100': {'budget': 860000, 'learning_rate': 1e-3}, 'svhn': {'budget': None}})
  )
  every = suite.task_configs(get_config('vtab', f'all,settings={path}'))
  assert list(every) == [f'vtab/{name}' for name in vtab.NAMES]
  for name in ('cifar100', 'svhn', 'kitti'):
    alone = get_config('vtab', f'{name},settings={path}')
    check_config(every[f'vtab/{name}'])
    assert json.loads(every[f'vtab/{name}'].to_json()) == json.loads(alone.to_json())
  assert (
    every['vtab/cifar100'].supernet.learning_rate
    == every['vtab/cifar100'].finetune.learning_rate
    == 1e-3
  )


def test_the_longest_name_in_the_settings_counts(tmp_path):
  path = tmp_path / 'settings.json'
  path.write_text(
    json.dumps(
      {
        'food101/4': {'budget': 2},
        'food101': {'budget': 1, 'learning_rate': 0.5},
        'food101/4/0': {'budget': 3},
      }
    )
  )
  own = suite.task_configs(get_config('fewshot', f'all,seed=all,settings={path}'))
  assert [
    own[f'fewshot/{name}'].budget
    for name in ('food101/1/0', 'food101/4/1', 'food101/4/0', 'oxford_pets/4/0')
  ] == [1, 2, 3, None]
  assert own['fewshot/food101/4/0'].supernet.learning_rate == 0.5


def test_a_home_in_the_path_of_settings_is_filled_in(monkeypatch, tmp_path):
  (tmp_path / 'settings.json').write_text('{"cifar100": {"budget": 860000}}')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert get_config('vtab', 'cifar100,settings=~/settings.json').budget == 860_000
