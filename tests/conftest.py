"""What all tests share: how XLA compiles, the golden values, one tiny run."""

import gc
import importlib.metadata
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
import jax.numpy as jnp
import numpy as np
import official
import pytest
from PIL import Image
from places import ROOT
from trees import randomized

from glora_jax.vision.models import weights
from glora_jax.vision.models.vit import ViT

# What pytest would import to look for examples: child processes' programs, helpers that need peers.
collect_ignore = ['programs', 'peers/families.py', 'peers/make_fixtures.py']

CACHE = ROOT / '.pytest_cache'
jax.config.update('jax_compilation_cache_dir', str(CACHE / 'xla'))
# Small programs are most of the compiling, and even they are read faster than compiled.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
if os.environ.pop('PYTHONDONTWRITEBYTECODE', None):
  # Child processes take seconds to compile what they import.
  os.environ['PYTHONPYCACHEPREFIX'] = str(CACHE / 'bytecode')

# A busy machine is no reason to fail. `full` is for `tests/vision/fuzz`: 20,000 cases by chance.
hypothesis.settings.register_profile('ci', derandomize=True, deadline=None)
hypothesis.settings.register_profile('full', max_examples=2500, deadline=None)
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'ci'))

MOST_PROGRAMS = 1000  # that a process keeps, in about two gigabytes


def pytest_xdist_auto_num_workers():
  """As many as cores that this process may use; xdist counts physical ones, be they its or not."""
  of_this = getattr(os, 'sched_getaffinity', None)  # which Linux alone has
  return len(of_this(0)) if of_this else os.cpu_count()


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


@pytest.fixture(scope='session')
def golden_layer():
  """One linear layer of the official implementation: see `official.load_layer`."""
  return official.load_layer()


@pytest.fixture(scope='session')
def golden_vit():
  """A ViT of the official implementation: see `official.load_vit`."""
  return official.load_vit()


@pytest.fixture(scope='session')
def backbone(tmp_path_factory):
  """A tiny ViT of 8 x 8 images as a checkpoint file."""
  model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  params = randomized(shapes['params'], scale=0.2)
  path = tmp_path_factory.mktemp('backbone') / 'tiny.safetensors'
  weights.save(path, model, params, {'image_size': 8, 'normalization': 'unit'})
  return str(path)


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
  """Seven images in a folder and its subfolders, none of them square, and what is none."""
  folder = tmp_path_factory.mktemp('data') / 'photos'
  rng = np.random.default_rng(0)
  (folder / 'inside' / 'deeper').mkdir(parents=True)
  inside = ('inside/a.png', 'inside/b.gif', 'inside/deeper/x.bmp')
  for number, name in enumerate(('b.png', 'a.JPG', 'c.webp', *inside, 'z.tif')):
    colour = rng.choice([0, 255], 3) // 4 * 3
    pixels = colour + rng.integers(0, 64, (3, 2 + number, 3), np.uint8)
    Image.fromarray(pixels.astype(np.uint8)).resize((30 + 9 * number, 21)).save(folder / name)
  for name in ('notes.txt', '.hidden.png'):
    (folder / name).write_text('no image')
  return folder


@pytest.fixture(scope='session')
def run_config(backbone):
  """The config of a run that is over in seconds."""
  from tiny_runs import make_config

  return make_config(backbone)


@pytest.fixture(scope='session')
def finished_run(run_config, tmp_path_factory):
  """(workdir, result) of a run that nothing disturbed."""
  from glora_jax.vision.runs import experiment

  workdir = tmp_path_factory.mktemp('run') / 'finished'
  return workdir, experiment.run(run_config, str(workdir))


@pytest.fixture
def read(monkeypatch):
  """The images that are read, by the last two parts of their paths."""
  from glora_jax.vision.data.examples import Files

  paths, image = [], Files.image

  def note(self, index, **draft):
    paths.append('/'.join(self.paths[index].split('/')[-2:]))
    return image(self, index, **draft)

  monkeypatch.setattr(Files, 'image', note)
  return paths
