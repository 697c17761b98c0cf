"""What all tests share: how XLA compiles, and which are left out where packages are missing."""

import gc
import importlib.metadata
import importlib.util
import os

# XLA takes half of the tests' time for code that runs for milliseconds; child processes inherit it.
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0 '
  '--xla_cpu_parallel_codegen_split_count=1'  # the programs are small, and all cores have tests
)
if importlib.metadata.version('jaxlib') < '0.11':
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'  # a flag that was taken away

import hypothesis
import jax
import pytest
from places import ROOT

from glora_jax.errors import MissingPackageError

# What pytest would import to look for examples: child processes' programs.
collect_ignore = ['tests/programs', 'tests/vision/programs']

MISSING = ''  # what the application needs and is not installed
try:
  import glora_jax.vision  # noqa: F401
except MissingPackageError as error:
  MISSING = str(error)
  collect_ignore += [
    f'glora_jax/{name}' for name in ('main.py', 'predict.py', 'convert.py', 'vision')
  ]
  collect_ignore += [f'tests/{name}' for name in ('benchmarks', 'peers', 'vision')]

if importlib.util.find_spec('torchax') is None:
  collect_ignore += ['glora_jax/torch.py', 'glora_jax/torch_environment.py']
  collect_ignore += ['glora_jax/vision/models/torch_backbone.py']

CACHE = ROOT / '.pytest_cache'
jax.config.update('jax_compilation_cache_dir', str(CACHE / 'xla'))
# Small programs are most of the compiling, and even they are read faster than compiled.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
if os.environ.pop('PYTHONDONTWRITEBYTECODE', None):
  # Child processes take seconds to compile what they import.
  os.environ['PYTHONPYCACHEPREFIX'] = str(CACHE / 'bytecode')

# A busy machine is no reason to fail. `full` is for `tests/vision/fuzz`: 25 times as many cases.
hypothesis.settings.register_profile('ci', derandomize=True, deadline=None)
hypothesis.settings.register_profile('full', max_examples=2500, deadline=None)
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'ci'))

MOST_PROGRAMS = 1000  # that a process keeps, in about two gigabytes


def pytest_xdist_auto_num_workers():
  """As many as cores that this process may use; xdist counts physical ones, be they its or not."""
  of_this = getattr(os, 'sched_getaffinity', None)  # which Linux alone has
  return len(of_this(0)) if of_this else os.cpu_count()


def pytest_terminal_summary(terminalreporter):
  """Says which tests were left out."""
  if MISSING:
    terminalreporter.write_line(f'Tests of the application were left out: {MISSING}')


def pytest_collection_finish():
  """Lets the garbage collector look through what tests make alone, and less often.

  Tracing makes objects by the million, and modules a third of a million that are never garbage.
  """
  gc.freeze()
  gc.set_threshold(20_000)


@pytest.fixture(scope='module', autouse=True)
def forget_programs():
  """Lets go of compiled programs when there are many: all of them together take gigabytes."""
  yield
  if len(jax.local_devices()[0].client.live_executables()) > MOST_PROGRAMS:
    jax.clear_caches()
    gc.collect()
