"""Where tests find things: folders of the project, programs of child processes, configs."""

import hashlib
import importlib.util
import os
import pathlib
import re
import sys

import jax

ROOT = pathlib.Path(__file__).parent.parent
FIXTURES = ROOT / 'tests' / 'vision' / 'fixtures'
GOLDEN = ROOT / 'tests' / 'golden'
CONFIGS = ROOT / 'configs'


def program(name):
  """The command that starts a program below `tests`, which imports what tests import."""
  folders = ('', '/vision', '/vision/data', '/search')
  paths = ':'.join([str(ROOT), *(f'{ROOT}/tests{folder}' for folder in folders)])
  return ['env', f'PYTHONPATH={paths}', sys.executable, f'{ROOT}/tests/{name}.py']


def environment(devices):
  """The environment of a process with simulated devices, which compiles as the tests do."""
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def code_of(page, language='python'):
  """The blocks of code of a page of the project."""
  text = (ROOT / page).read_text()
  return re.findall(rf'(?ms)^```{re.escape(language)}\n(.*?)^```', text)


def get_config(name, *arguments):
  """What `get_config` of a file in `configs` returns."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


def digests(folder):
  """SHA-256 of every file below a folder, by its path in there."""
  return {
    path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob('*')
    if path.is_file()
  }
