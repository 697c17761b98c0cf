"""What the command says of itself, where it is coloured, and what its streams refuse."""

import io
import logging
import subprocess
import sys

import pytest
from absl import flags
from places import ROOT

from glora_jax.data import catalog
from glora_jax.runs import command_line, terminal
from glora_jax.runs.terminal import Painter, painted


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_help_is_one_page_with_every_flag():
  lines = terminal.help_page().splitlines()
  starts = {line.split()[0] for line in lines if line.startswith('  --')}
  defined = [value for value in vars(command_line).values() if isinstance(value, flags.FlagHolder)]
  assert starts == {f'--{flag.name}' for flag in defined} | {'--help', '--config.FIELD=VALUE'}


def test_the_list_names_everything_and_what_is_ready(monkeypatch, tmp_path):
  monkeypatch.setattr(catalog, 'is_ready', lambda name, source: name == 'vtab/cifar100')
  monkeypatch.setenv('GLORA_JAX_CACHE', str(tmp_path))
  text = command_line.inventory()
  names = (*command_line.names(), 'hira', 'in21k-B/16')
  assert all(f' {name}' in text for name in names)
  assert 'ready: 1 (cifar100)' in ' '.join(text.split())
  assert 'Domain generalization; ready: 0' in text


def test_colours_are_for_terminals_where_nobody_forbids_them(monkeypatch):
  monkeypatch.delenv('NO_COLOR', raising=False)
  monkeypatch.setenv('TERM', 'xterm')
  assert painted('x', 'red', Terminal()) == '\033[31mx\033[0m'
  record = logging.LogRecord('a', logging.INFO, '', 0, '%s: stage 1', ('search',), None)
  assert Painter(Terminal()).format(record) == '\033[1msearch: stage 1\033[0m'
  assert Painter(io.StringIO()).format(record) == 'search: stage 1'
  monkeypatch.setenv('NO_COLOR', '1')
  assert Painter(Terminal()).format(record) == 'search: stage 1'


def test_ctrl_c_ends_without_a_traceback(monkeypatch):
  def interrupted():
    raise KeyboardInterrupt

  monkeypatch.setattr(terminal, 'forget_output', lambda: None)
  with pytest.raises(SystemExit) as ended:
    terminal.run_program(interrupted)
  assert ended.value.code == 130


def test_what_standard_output_refuses_at_the_end_is_a_sentence(monkeypatch):
  with open('/dev/full', 'w') as full:
    monkeypatch.setattr(sys, 'stdout', full)
    with pytest.raises(SystemExit, match=r'error: .*\(No space left on device\)'):
      terminal.run_program(lambda: print('much'))
  # What could not be written was let go, so that closing the file raised nothing.


CLOSED = """
import os, sys
from glora_jax.runs import terminal
terminal.run_program(lambda: print('to nobody', os.open(os.devnull, os.O_RDONLY)))
os.write(3, b'%d %d' % (os.fstat(1).st_rdev == os.stat(os.devnull).st_rdev, sys.stdout is None))
"""


def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path):
  command = f'exec {sys.executable} -c "$0" 3>{tmp_path / "said"} >&- 2>&-'
  subprocess.run(['sh', '-c', command, CLOSED], check=True, cwd=ROOT)
  assert (tmp_path / 'said').read_text() == '1 0'
