"""A run that is stopped, starved of disk or watched ends in the very result of the undisturbed one, and says in a sentence what happened."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest
from conftest import ROOT, mounting_is_allowed, small_disk

from glora_jax import files
from glora_jax.runs import command_line, experiment
from glora_jax.runs.config import default_config
from glora_jax.runs.workdir import Stopped, claim


@pytest.fixture(scope='module')
def config(backbone, tmp_path_factory):
  """Hardly any training: three dispatches of the supernet, two generations."""
  config = default_config()
  config.model.weights, config.data.dir = backbone, str(tmp_path_factory.mktemp('tfds'))
  config.budget, config.checkpoint_epochs = 1000, 1
  config.model.remat = (
    'dots_saveable'  # as the quickstart, whose config the command line starts from
  )
  config.supernet.update(epochs=3, warmup_epochs=1, batch_size=16, learning_rate=1e-2)
  config.search.update(population=4, generations=1, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup_epochs=0, learning_rate=1e-3)
  return config


@pytest.fixture(scope='module')
def undisturbed(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run') / 'undisturbed'
  experiment.run(config, str(workdir))
  return left(workdir)


def left(workdir):
  """What equal runs have in common, by file."""
  result = files.read_json(workdir / 'result.json')
  del result['seconds']
  names = (
    'metrics.jsonl',
    'adapter.safetensors',
    'folded/model.safetensors',
    'search/archive.npz',
    'test_list.json',
  )
  return {'result': result, **{name: (workdir / name).read_bytes() for name in names}}


def start(config, workdir, *before):
  """The command line, with the test's fields as overrides, after the words of another command that runs it."""
  flat = {
    f'{group}.{name}': value
    for group, fields in config.to_dict().items()
    if isinstance(fields, dict)
    for name, value in fields.items()
  }
  flat |= {name: value for name, value in config.to_dict().items() if not isinstance(value, dict)}
  overrides = [
    f'--config.{name}={value}'
    for name, value in flat.items()
    if value is not None and name != 'job'
  ]
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  return subprocess.Popen(
    [
      *before,
      sys.executable,
      '-m',
      'glora_jax.main',
      '--config',
      'configs/quickstart.py',
      '--workdir',
      str(workdir),
      *overrides,
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env=environment,
    cwd=ROOT,
  )


def polls(number):
  """A `stop` that says True when it is asked for the so-manieth time."""
  asked = iter(range(1, number + 1))
  return lambda: next(asked) == number


def test_a_run_that_is_stopped_again_and_again_and_watched_ends_in_the_same_result(
  config, undisturbed, tmp_path, caplog
):
  """Stops amid the supernet and amid the search; watching is switched on and off between."""
  pytest.importorskip('tensorboardX')
  caplog.set_level('INFO', 'glora_jax')
  watched = config.copy_and_resolve_references()
  watched.watch.update(tensorboard=True, profile='supernet')
  handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  for settings, stop, where in (
    (watched, polls(3), 'supernet at step 100'),
    (config, polls(8), 'search after generation 0'),
  ):
    with pytest.raises(
      Stopped, match=f'Stopped {where}. Everything is saved in .*run, and the same command goes on'
    ):
      experiment.run(settings, str(tmp_path / 'run'), stop)
  experiment.run(watched, str(tmp_path / 'run'))
  assert left(tmp_path / 'run') == undisturbed
  assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  said = '\n'.join(record.getMessage() for record in caplog.records)
  for sentence in (
    'supernet: resumed at step 100',
    'search: resumed after generation 0',
    'supernet: begins',
    'supernet: done, ',
    'mesh: none',
    ' in supports, ',
    ' frozen (float32)',
    'Traced dispatches: 1, in ',
  ):
    assert sentence in said
  assert {'profile', 'tensorboard'} <= set(os.listdir(tmp_path / 'run'))


def test_sigterm_saves_and_ends_a_command_with_its_own_exit_code(config, undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  process = start(config, workdir)
  while not (workdir / 'supernet').exists() and process.poll() is None:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, said = process.communicate()
  assert process.returncode == command_line.STOPPED == 75, said
  assert re.search(
    r'Stopped supernet at step (50|100|150)\. Everything is saved in .*run, and the same command goes on from there\.',
    said,
  )
  assert 'Traceback' not in said
  experiment.run(config, str(workdir))
  assert left(workdir) == undisturbed


def test_a_second_signal_of_its_kind_ends_at_once():
  before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
  try:
    stop = command_line.catch_signals()
    assert not stop()
    signal.raise_signal(signal.SIGINT)
    assert stop()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
  finally:
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
      signal.signal(number, handler)


def test_a_full_disk_ends_a_command_in_a_sentence_and_more_room_goes_on_to_the_same_result(
  config, undisturbed, tmp_path
):
  """It is found by the background thread that saves training states. Without leave to mount, files that may not grow stand for it."""
  mounting = mounting_is_allowed()
  limit = () if mounting else ('sh', '-c', 'ulimit -f 60; exec "$@"', 'sh')  # blocks of 512 bytes
  words = 'No space left on device' if mounting else 'File too large'
  with small_disk(tmp_path, '300k') if mounting else contextlib.nullcontext() as remount:
    process = start(config, tmp_path / 'run', *limit)
    _, said = process.communicate()
    assert process.returncode == 1, said
    assert 'Traceback' not in said
    assert re.search(rf'error: The training state cannot be written to .* \({words}\)', said)
    if mounting:
      remount('size=64m', 'ro')
      with pytest.raises(OSError, match=r'cannot be written \(Read-only file system\)'):
        experiment.run(config, str(tmp_path / 'run'))
      remount('size=64m', 'rw')
    experiment.run(config, str(tmp_path / 'run'))
    assert left(tmp_path / 'run') == undisturbed
    if mounting:
      remount('size=64m', 'ro')
      assert experiment.run(config, str(tmp_path / 'run'))  # a finished run can still be read


def test_a_second_run_in_the_same_workdir_is_refused(config, tmp_path):
  with (
    claim(tmp_path / 'run'),
    pytest.raises(ValueError, match=rf'in use by process {os.getpid()} on '),
  ):
    experiment.run(config, str(tmp_path / 'run'))
  assert os.listdir(tmp_path / 'run') == ['lock']


@pytest.mark.parametrize(
  'fields, error, message',
  [
    (
      {'profile': 'train'},
      ValueError,
      "watch.profile='train' is unknown; it is one of supernet, baselines, search, finetune",
    ),
    ({'tensorboard': True}, ImportError, r"pip install 'glora_jax\[tensorboard\]'"),
  ],
)
def test_watching_what_cannot_be_watched_is_explained(
  config, tmp_path, monkeypatch, fields, error, message
):
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  monkeypatch.setattr(
    sys,
    'path',
    [path for path in sys.path if not os.path.isdir(os.path.join(path, 'tensorboardX'))],
  )
  wrong = config.copy_and_resolve_references()
  wrong.watch.update(fields)
  with pytest.raises(error, match=message):
    experiment.run(wrong, str(tmp_path / 'run'))
