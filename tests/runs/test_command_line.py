"""Flags and signals: a mistake is one sentence, a second signal ends at once."""

import os
import signal
import subprocess
import sys

import pytest
from places import ROOT, digests

from glora_jax.runs import command_line


def run(folder, *words):
  """The command, ended."""
  command = [sys.executable, '-m', 'glora_jax.main', '--config', *words]
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  ended = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
  assert 'Traceback' not in ended.stderr
  return ended


@pytest.mark.parametrize(
  'words, named',
  [
    (['quickstart', '--list'], '  quickstart                The main job on what ships in the'),
    (['./own'], 'no config file ./own'),
  ],
)
def test_a_name_means_the_packaged_config_whatever_lies_in_the_current_folder(
  tmp_path, words, named
):
  for name in ('quickstart', 'vtab', 'own', 'config_config'):
    for ending in ('', '.py'):
      (tmp_path / f'{name}{ending}').write_text('not_a_config_of_this_package')
  before = digests(tmp_path)
  ended = run(tmp_path, *words)
  assert named in ended.stdout + ended.stderr
  assert before.items() <= digests(tmp_path).items()


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
