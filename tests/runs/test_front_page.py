"""What the command says of itself, where it is coloured, and what its streams refuse."""

import errno
import io
import logging
import os
import re
import subprocess
import sys

import pytest
from absl import flags
from places import ROOT

from glora_jax.data import catalog
from glora_jax.reports import run_charts, run_page
from glora_jax.runs import command_line, terminal
from glora_jax.runs.config import RunSettings
from glora_jax.runs.run import stage_names
from glora_jax.runs.terminal import Painter, painted


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_help_is_one_page_with_every_flag():
  lines = terminal.help_page().splitlines()
  assert len(lines) <= 40
  assert max(map(len, lines)) <= 100
  starts = {line.split()[0] for line in lines if line.startswith('  --')}
  assert starts == {f'--{name}' for name in terminal.own_flags()} | {
    *('--help', '--config.FIELD=VALUE')
  }
  of_the_program = {flag.name for flag in vars(command_line).values() if is_flag(flag)}
  assert of_the_program == {*terminal.own_flags()} <= {*flags.FLAGS}


def is_flag(value):
  """Whether a name of a module is a flag that it defines."""
  return isinstance(value, flags.FlagHolder)


def test_a_flag_without_a_group_is_on_the_page(monkeypatch):
  monkeypatch.setattr(terminal, 'GROUPS', {'What is run': ('config',)})
  assert '--workdir FOLDER' in terminal.help_page().partition('\nMore\n')[2]


def test_the_list_names_everything_and_what_is_ready(monkeypatch, tmp_path):
  monkeypatch.setattr(catalog, 'is_ready', lambda name, source: name == 'vtab/cifar100')
  monkeypatch.setenv('GLORA_JAX_CACHE', str(tmp_path))
  text = command_line.inventory()
  assert all(f'\n  {name} ' in text for name in command_line.names())
  assert 'ready: 1 (cifar100)' in ' '.join(text.split())
  assert 'Domain generalization; ready: 0' in text
  assert 'hira, scale_shift' in text
  assert 'in21k-B/16' in text
  assert max(map(len, text.splitlines())) <= 100


def test_the_greeting_has_commands_that_start():
  words = [
    line.split('python -m ')[1].split()
    for line in terminal.GREETING.splitlines()
    if 'python -m glora_jax.main' in line
  ]
  assert len(words) == 3
  for _, flag, *value in words:
    assert flag.removeprefix('--') in flags.FLAGS
    assert all(command_line.path_of(name.partition(':')[0]) for name in value)


def test_colours_are_for_terminals_where_nobody_forbids_them(monkeypatch):
  monkeypatch.delenv('NO_COLOR', raising=False)
  monkeypatch.setenv('TERM', 'xterm')
  assert painted('x', 'red', Terminal()) == '\033[31mx\033[0m'
  record = logging.LogRecord('a', logging.INFO, '', 0, '%s: begins', ('search',), None)
  assert Painter(Terminal()).format(record) == '\033[1msearch: begins\033[0m'
  assert Painter(io.StringIO()).format(record) == 'search: begins'
  monkeypatch.setenv('NO_COLOR', '1')
  assert Painter(Terminal()).format(record) == 'search: begins'


SEARCHED = ('supernet', 'baselines', 'search', 'finetune')
JOBS = [
  (RunSettings(), SEARCHED),
  (RunSettings(presets=('gradient',)), ('head', 'structure', *SEARCHED)),
  (RunSettings(structure='gradient'), ('head', 'structure', 'baselines', 'training')),
  (RunSettings(structure='lora:2'), ('structure', 'baselines', 'training')),
  (RunSettings(job='compare'), ('tuning', 'training')),
]


@pytest.mark.parametrize('settings, stages', JOBS)
def test_stages_are_counted_for_every_job(settings, stages):
  assert stage_names(settings) == (*stages, 'test', 'report')


def test_lists_of_stages_have_those_that_jobs_begin():
  names = {
    name
    for path in (ROOT / 'glora_jax' / 'runs').rglob('*.py')
    for name in re.findall(r"run\.stage\('(\w+)'\)", path.read_text())
  }
  assert names == {name for settings, _ in JOBS for name in stage_names(settings)}
  assert run_page.STAGES.keys() <= names
  assert {re.split('/|_choice', name)[0] for name in run_charts.STAGES} <= names


def broken(*arguments):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupted():
  raise KeyboardInterrupt


@pytest.mark.parametrize(
  'program, code',
  [
    (interrupted, 130),
    (broken, 'error: A file or a stream cannot be read or written (No space left on device).'),
    (lambda: sys.exit(3), 3),
  ],
)
def test_a_command_ends_without_a_traceback(program, code, monkeypatch):
  monkeypatch.setattr(terminal, 'forget_output', lambda: None)
  with pytest.raises(SystemExit) as ended:
    terminal.run_program(program)
  assert ended.value.code == code


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
