"""What the command says of itself, and how it ends where nobody reads on."""

import subprocess
import sys

import pytest
from places import ROOT

from glora_jax import main
from glora_jax.vision.data import catalog
from glora_jax.vision.runs import terminal
from glora_jax.vision.runs.settings import NO_PRESETS


def test_the_list_names_everything_and_what_is_ready(monkeypatch, tmp_path):
  monkeypatch.setattr(catalog, 'is_ready', lambda name, source: name == 'vtab/cifar100')
  monkeypatch.setenv('GLORA_JAX_CACHE', str(tmp_path))
  text = main.PAGES['--list']()
  names = (*main.configs(), 'hira', 'in21k-B/16')
  assert all(f' {name}' in text for name in names)
  assert all(repr(name) in text for name in NO_PRESETS)
  assert 'ready: 1 (cifar100)' in ' '.join(text.split())
  assert 'Domain generalization; ready: 0' in text


def test_ctrl_c_ends_without_a_traceback():
  def interrupted():
    raise KeyboardInterrupt

  with pytest.raises(SystemExit) as ended:
    terminal.run_program(interrupted)
  assert ended.value.code == 130


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
  command = f'{sys.executable} -m glora_jax.main --help | true'
  result = subprocess.run(['sh', '-c', command], check=True, capture_output=True, cwd=ROOT)
  assert not result.stderr


def loaded_by(code):
  """The standard output of a fresh process, whose last line has the modules that it loaded."""
  words = [sys.executable, '-c', f'import sys\n{code}\nprint(*sys.modules)']
  return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_the_first_pages_of_the_command_load_no_jax():
  code = (
    'import glora_jax.main as main; sys.argv = ["main"{}]\ntry: main.command()\n'
    'except SystemExit: pass'
  )
  for flag, expected in (
    ('', 'Five things to do'),
    (', "--help"', '--workdir: Folder'),
  ):
    page = loaded_by(code.format(flag))
    assert expected in page
    assert 'jax' not in page.splitlines()[-1].split()


def test_a_line_of_the_log_does_not_end_in_a_progress_bar():
  code = (
    'import glora_jax.main as main, tqdm\n'
    'def job(config):\n  with tqdm.tqdm(total=2):\n'
    '    main.logging.getLogger("glora_jax").info("said")\n'
    'main.main = job\nmain.flags.FLAGS(["main"])\nmain._main_with_flags([])'
  )
  words = [sys.executable, '-c', code]
  result = subprocess.run(words, check=True, capture_output=True, text=True)
  assert '\nsaid\n' in result.stderr


def test_runs_load_no_library_that_only_some_of_them_need():
  modules = loaded_by('import glora_jax.vision.runs.job').split()
  assert 'glora_jax.vision.data.tasks.digits' in modules
  assert not {'grain', 'sklearn', 'pandas', 'matplotlib'} & {*modules}
