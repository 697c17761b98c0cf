"""Where tests find things: folders of the project, programs of child processes, configs."""

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).parent.parent
FIXTURES = ROOT / 'tests' / 'fixtures'
GOLDEN = ROOT / 'tests' / 'golden'
CONFIGS = ROOT / 'configs'


def program(name):
  """The command that starts a program of `tests/programs`."""
  return [sys.executable, str(ROOT / 'tests' / 'programs' / f'{name}.py')]


def get_config(name, *arguments):
  """What `get_config` of a file in `configs` returns."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)
