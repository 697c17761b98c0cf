"""Suites: which tasks run, settings by task, failures, and the same table after whatever interruption."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from PIL import Image
from test_configs import get_config
from test_tasks import mocked  # noqa: F401, a fixture

from glora_jax import experiment, files, main, scoreboard, suite
from glora_jax.config import check_config
from glora_jax.data import builders, vtab

SHORT = {  # hardly any training
    'checkpoint_epochs': 1, 'supernet.epochs': 1, 'supernet.warmup_epochs': 0, 'supernet.learning_rate': 1e-2, 'finetune.epochs': 1,
    'finetune.warmup_epochs': 0, 'search.population': 4, 'search.generations': 1, 'search.parents': 2, 'search.mutations': 2,
    'search.crossovers': 2}


@pytest.fixture
def config(backbone, tmp_path):
  config = get_config('vtab', 'all')
  config.data.update(dir=str(tmp_path / 'tfds'), cache=None)
  config.model.weights = backbone
  config.update_from_flattened_dict(SHORT)
  return config


def left(workdir, names):
  """What equal suites have in common, by file."""
  found = {'table.csv': (workdir / 'table.csv').read_text(), 'table.md': (workdir / 'table.md').read_text()}
  for name in names:
    result = files.read_json(workdir / name / 'result.json')
    del result['seconds']
    found[name] = result, (workdir / name / 'metrics.jsonl').read_bytes(), (workdir / name / 'adapter.safetensors').read_bytes()
  return found


@pytest.fixture
def three_ready(mocked, monkeypatch):  # noqa: F811
  """VTAB from mocked TFDS, of which three data sets are prepared."""
  monkeypatch.setattr(builders, 'is_prepared', lambda builder: builder.name in ('dtd', 'oxford_iiit_pet', 'kitti'))
  return ['dtd', 'oxford_iiit_pet', 'kitti']


def test_a_suite_that_is_stopped_and_resumed_ends_in_the_same_table_and_a_failed_task_does_not_end_it(config, three_ready, tmp_path):
  """dtd's learning rate makes its loss infinite; the stop comes amid the search of the pets, after one dispatch and a generation."""
  config.suite.settings = {'dtd': {'learning_rate': 1e30}, 'kitti': {'budget': 500}}
  whole = suite.run(config, str(tmp_path / 'whole'))
  assert list(whole.results) == ['vtab/oxford_iiit_pet', 'vtab/kitti']
  assert list(whole.failed) == ['vtab/dtd']
  assert 'The loss was not finite at step' in whole.failed['vtab/dtd']
  assert len(whole.missing) == 16
  assert 'resisc45/3.0.0 needs a manual download into' in whole.missing['vtab/resisc45']

  workdir = tmp_path / 'stopped'
  searching = lambda: (workdir / 'oxford_iiit_pet' / 'search' / 'archive.npz').exists()
  with pytest.raises(experiment.Stopped, match='Stopped search after generation 0.*oxford_iiit_pet, and the same command goes on'):
    suite.run(config, str(workdir), searching)
  text = (workdir / 'table.md').read_text()
  assert '0 of 19 tasks' in text
  assert '| vtab/dtd | failed |' in text
  assert '| vtab/oxford_iiit_pet | waiting |' in text
  resumed = suite.run(config, str(workdir))
  assert left(workdir, three_ready[1:]) == left(tmp_path / 'whole', three_ready[1:])

  row = scoreboard.own_rows(resumed)[0]
  accuracy = {name: 100 * resumed.results[f'vtab/{name}']['winner']['test_accuracy'] for name in three_ready[1:]}
  assert {name: cell.value for name, cell in row.cells.items() if cell.complete} == pytest.approx(accuracy)
  assert str(scoreboard.summary(row, resumed.tasks)['mean of tasks']) == f'{np.mean(list(accuracy.values())):.1f} (2 of 19)'
  assert 'oxford_iiit_pet:3' in (workdir / 'table.md').read_text()  # the note of a data set that is not the benchmark's
  assert resumed.results['vtab/kitti']['budget'] == 500
  assert files.read_json(workdir / 'kitti' / 'config.json')['budget'] == 500
  assert files.read_json(workdir / 'dtd' / 'config.json')['supernet']['learning_rate'] == 1e30
  with pytest.raises(ValueError, match=r'belongs to another config: suite\.settings\.kitti\.budget was 500 and is now 400'):
    config.suite.settings.kitti.budget = 400
    suite.run(config, str(workdir))


def build(name, version, examples, folder):
  """Prepares a data set under the name, version and features of one of TFDS's own."""

  class Local(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.builder(name).info.features)

    def _split_generators(self, dl_manager):
      return {split: examples(split, count) for split, count in (('train', 800), ('validation', 200), ('test', 60))}

    def _generate_examples(self):
      raise NotImplementedError

  Local.name = name
  Local(data_dir=folder, file_format='array_record').download_and_prepare()


def coloured(classes, size, **others):
  """Images whose brightness tells the class, as PNG."""

  def examples(split, count):
    rng = np.random.default_rng(len(split))
    for n in range(count):
      label = n % classes
      pixels = np.clip(rng.normal(40 + 170 * label / classes, 20, (size, size, 3)), 0, 255).astype(np.uint8)
      encoded = io.BytesIO()
      Image.fromarray(pixels).save(encoded, 'png')
      yield f'{split}{n}', {'image': io.BytesIO(encoded.getvalue()), 'label': label, **{key: f'{n}' for key in others}}

  return examples


def broken(split, count):
  for n in range(count):
    yield f'{split}{n}', {'image': io.BytesIO(b'no image'), 'label': n % 6, 'filename': f'{n}'}


def start(config, workdir):
  fields = {name: config.data[name] for name in ('dir',)}
  overrides = [f'--config.data.{name}={value}' for name, value in fields.items()]
  overrides += [f'--config.{name}={value}' for name, value in SHORT.items()]
  overrides += [f'--config.model.weights={config.model.weights}', f'--config.data.cache={workdir}/cache']
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3'}
  return subprocess.Popen([sys.executable, '-m', 'glora_jax.main', '--config', 'configs/vtab.py:all', '--workdir', str(workdir), *overrides],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)


def test_a_command_over_real_data_sets_is_killed_stopped_and_resumed_to_the_same_table_and_its_code_tells_of_the_failure(config, tmp_path):
  """Two data sets that can be learned, and one whose images are broken; kill -9 amid the first, SIGTERM amid the second."""
  build('dtd', '3.0.1', coloured(47, 12, file_name=''), config.data.dir)
  build('patch_camelyon', '2.0.0', coloured(2, 96, id=''), config.data.dir)
  build('dmlab', '2.0.1', broken, config.data.dir)
  workdir = tmp_path / 'run'
  for trace, number in (('dtd/supernet', signal.SIGKILL), ('patch_camelyon/supernet', signal.SIGTERM)):
    process = start(config, workdir)
    while not (workdir / trace).exists() and process.poll() is None:
      time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == (main.STOPPED if number == signal.SIGTERM else -number), said
  assert 'Everything is saved in' in said
  assert 'vtab/dtd | done' in (workdir / 'table.md').read_text()
  process = start(config, workdir)
  printed, said = process.communicate()
  assert process.returncode == 1, said
  assert 'vtab/dmlab failed: 800 of 800 images cannot be decoded' in printed
  assert '2 done, 1 failed, 16 not ready of 19 tasks' in printed
  assert 'Traceback' not in said

  config.data.cache = f'{workdir}/cache'
  board = suite.run(config, str(tmp_path / 'undisturbed'))
  assert left(workdir, ['dtd', 'patch_camelyon']) == left(tmp_path / 'undisturbed', ['dtd', 'patch_camelyon'])
  assert board.results['vtab/patch_camelyon']['winner']['test_accuracy'] > 0.6


def test_nothing_ready_is_one_sentence_and_the_table_lists_what_is_missing(config, tmp_path):
  with pytest.raises(ValueError, match=r'None of the 19 tasks of vtab/all can run; .*table\.md says what each of them lacks'):
    suite.run(config, str(tmp_path / 'run'))
  text = (tmp_path / 'run' / 'table.md').read_text()
  assert text.count('| not ready |') == 19
  assert 'resisc45/3.0.0 needs a manual download into' in text
  assert '--config.suite.prepare=True' in text


def test_what_needs_no_manual_download_is_prepared_on_request(config, monkeypatch):
  asked, there = [], set()
  monkeypatch.setattr(builders, 'is_prepared', lambda builder: builder.name in there)

  def prepare(builder):
    asked.append(builder.name)
    raise OSError(builders.instructions(builder))

  monkeypatch.setattr(builders, 'prepare', prepare)
  own = suite.task_configs(config)
  assert 'at its first use' in suite.missing(own['vtab/dtd'], 'unused', prepare=False)
  assert not asked
  assert 'needs a manual download' in suite.missing(own['vtab/resisc45'], 'unused', prepare=True)
  assert asked == ['resisc45']


def test_the_config_of_a_task_is_that_of_a_run_of_it_alone(config, tmp_path):
  path = tmp_path / 'settings.json'
  path.write_text(json.dumps({'cifar100': {'budget': 860000, 'learning_rate': 1e-3}, 'svhn': {'budget': None}}))
  every = suite.task_configs(get_config('vtab', f'all,settings={path}'))
  assert list(every) == [f'vtab/{name}' for name in vtab.names()]
  for name in ('cifar100', 'svhn', 'kitti'):
    alone = get_config('vtab', f'{name},settings={path}')
    check_config(every[f'vtab/{name}'])
    assert json.loads(every[f'vtab/{name}'].to_json()) == json.loads(alone.to_json())
  assert every['vtab/cifar100'].supernet.learning_rate == every['vtab/cifar100'].finetune.learning_rate == 1e-3


def test_the_longest_name_in_the_settings_counts(tmp_path):
  path = tmp_path / 'settings.json'
  path.write_text(json.dumps({'food101/4': {'budget': 2}, 'food101': {'budget': 1, 'learning_rate': 0.5}, 'food101/4/0': {'budget': 3}}))
  own = suite.task_configs(get_config('fewshot', f'all,seed=all,settings={path}'))
  assert [own[f'fewshot/{name}'].budget for name in ('food101/1/0', 'food101/4/1', 'food101/4/0', 'oxford_pets/4/0')] == [1, 2, 3, None]
  assert own['fewshot/food101/4/0'].supernet.learning_rate == 0.5


@pytest.mark.parametrize('text, message', [
    ('{"cifar10": {"budget": 1}}', r"settings\.json: 'cifar10' is no task of vtab; there are cifar100, caltech101"),
    ('{"cifar100": {"budgets": 1}}', "'cifar100' has 'budgets'; only budget and learning_rate can be given"),
    ('{"cifar100": {"budget": 0.5}}', "'cifar100': budget=0.5 must be a whole number"),
    ('{"cifar100": {"budget": "1e5"}}', "'cifar100': budget='1e5' must be a whole number"),
    ('{"cifar100": {"learning_rate": 0}}', "'cifar100': learning_rate=0 must be a number above 0"),
    ('{"cifar100": {"learning_rate": true}}', "'cifar100': learning_rate=True must be a number above 0"),
    ('{"cifar100": {"learning_rate": "1e-3"}}', "'cifar100': learning_rate='1e-3' must be a number above 0"),
    ('{"cifar100": 100000}', "'cifar100' has 100000; an object with budget or learning_rate is expected"),
    ('["cifar100"]', 'holds a list; an object of tasks is expected'),
    ('{"cifar100": ', 'is no JSON'),
])
def test_wrong_settings_are_one_sentence(tmp_path, text, message):
  path = tmp_path / 'settings.json'
  path.write_text(text)
  for arguments in ('all', 'dtd'):
    with pytest.raises(ValueError, match=message) as caught:
      get_config('vtab', f'{arguments},settings={path}')
    assert '\n' not in str(caught.value)


def test_a_settings_file_that_is_not_there_is_said():
  with pytest.raises(FileNotFoundError, match="There is no file 'none.json'; settings= takes a JSON file"):
    get_config('vtab', 'all,settings=none.json')
