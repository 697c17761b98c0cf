"""Flags and signals: a mistake is one sentence, a second signal ends at once."""

import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from places import ROOT, digests

from glora_jax.runs import command_line


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--config.sead=1'], 'sead'),
    (['--config.seed=one'], 'seed'),
    (['--config.budget=0.5'], 'budget=0.5 must be a whole number'),
    (['--config=configs/none.py'], 'There is no config file configs/none.py'),
    (['stray'], 'stray'),
  ],
)
def test_wrong_command_lines_are_one_sentence(tmp_path, arguments, message):
  words = ['-m', 'glora_jax.main', '--config', 'configs/quickstart.py', '--workdir', str(tmp_path)]
  run = subprocess.run(
    [sys.executable, *words, *arguments], capture_output=True, text=True, cwd=ROOT
  )
  assert run.returncode != 0
  assert message in run.stderr
  assert 'Traceback' not in run.stderr
  assert len(run.stderr.strip().splitlines()) <= 3


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--list'], '  quickstart                The main job on what ships in the package'),
    (['--config', 'quickstart', '--config.zzzz=1'], "The config has no field 'zzzz'"),
    (['--config=vtab:cifar100', '--config.zzzz=1'], "The config has no field 'zzzz'"),
    (['--config', 'own'], 'own needs your images: --config own:FOLDER'),
    (['--config', 'quickstart.py'], 'quickstart.py, line 1, fails with NameError'),
    (['--config', './own'], './own, line 1, fails with NameError'),
  ],
)
def test_a_name_means_the_packaged_config_whatever_lies_in_the_current_folder(
  tmp_path, arguments, message
):
  for name in ('quickstart', 'vtab', 'own', 'config_config'):
    for ending in ('', '.py'):
      (tmp_path / f'{name}{ending}').write_text('not_a_config_of_this_package')
  before = digests(tmp_path)
  command = [sys.executable, '-m', 'glora_jax.main', *arguments]
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
  assert message in run.stdout + run.stderr
  assert 'Traceback' not in run.stderr
  assert before.items() <= digests(tmp_path).items()


def test_default_folds_follow_the_images_and_given_ones_are_refused(tmp_path):
  for n in range(8):
    folder = tmp_path / 'photos' / ('cat', 'dog')[n % 2]
    folder.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (28, 28), (n, n, n)).save(folder / f'{n}.png')
  (tmp_path / 'notes.txt').write_text("a stranger's")
  before = digests(tmp_path)

  def plan(*words):
    command = [sys.executable, '-m', 'glora_jax.main', '--config', 'own:photos', '--plan', *words]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

  planned = plan()
  assert planned.returncode == 0
  assert 'Using 4 folds instead of allocation.folds=8: there are only 4' in planned.stderr
  refused = plan('--config.allocation.folds=5')
  assert 'allocation.folds=5 is more than the 4 training images; lower it.' in refused.stderr
  assert digests(tmp_path) == before


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
