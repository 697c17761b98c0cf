"""Flags and signals: a mistake is one sentence, a second signal ends at once."""

import signal
import subprocess
import sys

import pytest
from places import ROOT

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
