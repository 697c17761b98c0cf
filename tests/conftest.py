"""What tests share: a persistent compilation cache, the golden values, small models."""

import contextlib
import functools
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile

# XLA takes half of the tests' time for code that runs for milliseconds; child processes inherit this.
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_optimization_level=0'

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glora_jax.models import weights
from glora_jax.models.vit import ViT

ROOT = pathlib.Path(__file__).parent.parent
FIXTURES = ROOT / 'tests' / 'fixtures'
CONFIGS = ROOT / 'configs'


# What pytest would import to look for examples: programs of child processes, helpers that need peers.
collect_ignore = ['programs', 'peers/families.py', 'peers/make_fixtures.py']


def program(name):
  """The command that starts a program of `tests/programs`."""
  return [sys.executable, str(ROOT / 'tests' / 'programs' / f'{name}.py')]


def get_config(name, *arguments):
  """What `get_config` of a file in `configs` returns."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*arguments)


jax.config.update('jax_compilation_cache_dir', str(ROOT / '.pytest_cache' / 'xla'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(scope='session')
def golden_layer():
  """One linear layer of the official implementation in Flax's layout: kernel, bias, supports, x, genomes, y; float64."""
  with np.load(ROOT / 'tests' / 'golden' / 'official_layer.npz') as file:
    values = dict(file)
  values['kernel'] = values.pop('weight').T
  values['supports'] = supports_from_official(values)
  return values


@pytest.fixture(scope='session')
def golden_vit():
  """A ViT of the official implementation: params and supports of our scanned ViT, x, genomes, logits, param_count."""
  with np.load(ROOT / 'tests' / 'golden' / 'official_vit.npz') as file:
    values = dict(file)
  state = {
    name.removeprefix('param/'): value
    for name, value in values.items()
    if name.startswith('param/')
  }
  depth = 1 + max(int(name.split('.')[1]) for name in state if name.startswith('blocks.'))
  linear = lambda name: {'kernel': state[f'{name}.weight'].T, 'bias': state[f'{name}.bias']}
  norm = lambda name: {'scale': state[f'{name}.weight'], 'bias': state[f'{name}.bias']}
  supports = lambda name: supports_from_official(
    {
      key.removeprefix(f'{name}.'): value
      for key, value in state.items()
      if key.startswith(f'{name}.')
    }
  )
  layers = {'attn': ('qkv', 'proj'), 'mlp': ('fc1', 'fc2')}
  blocks = [
    {
      part: {name: linear(f'blocks.{i}.{part}.{name}') for name in names}
      for part, names in layers.items()
    }
    | {name: norm(f'blocks.{i}.{name}') for name in ('norm1', 'norm2')}
    for i in range(depth)
  ]
  adapters = [
    {
      part: {name: supports(f'blocks.{i}.{part}.{name}') for name in names}
      for part, names in layers.items()
    }
    for i in range(depth)
  ]
  stack = lambda trees: jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
  patch = state['patch_embed.proj.weight']
  return {
    'params': {
      'embed': {'kernel': patch.transpose(2, 3, 1, 0), 'bias': state['patch_embed.proj.bias']},
      'cls': state['cls_token'],
      'pos_embed': state['pos_embed'],
      'blocks': stack(blocks),
      'norm': norm('norm'),
      'head': linear('head'),
    },
    'glora': {'blocks': stack(adapters)},
    'unstacked': (blocks, adapters),
    'x': values['x_nchw'].transpose(0, 2, 3, 1),
    'genomes': values['genomes'],
    'logits': values['logits'],
    'param_count': values['param_count'],
    'shape': {
      'patch_size': patch.shape[-1],
      'width': patch.shape[0],
      'depth': depth,
      'num_heads': int(values['heads']),
    },
  }


def supports_from_official(tensors):
  """The official names and layout to ours: `Au` is `A_down` transposed, `Ad` is `A_up` transposed, `Cd` and `Cu` as they are."""
  return {
    'A_down': tensors['Au'].T,
    'A_up': tensors['Ad'].T,
    'B_down': tensors['Bu'].T,
    'B_up': tensors['Bd'].T,
    'C_down': tensors['Cd'],
    'C_up': tensors['Cu'],
    'D': tensors['D'],
    'E': tensors['E'],
  }


def randomized(tree, seed=0, scale=0.3):
  """A tree of the same shapes and dtypes with normal entries; supports that are not at their initial values."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype), tree)


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
def run_config(backbone, tmp_path_factory):
  """The config of a run that is over in seconds."""
  from tiny_runs import make_config

  return make_config(backbone, tmp_path_factory.mktemp('tfds'))


@pytest.fixture(scope='session')
def finished_run(run_config, tmp_path_factory):
  """(workdir, result) of a run that nothing disturbed."""
  from glora_jax.runs import experiment

  workdir = tmp_path_factory.mktemp('run') / 'finished'
  return workdir, experiment.run(run_config, str(workdir))


@functools.cache
def mounting_is_allowed():
  with tempfile.TemporaryDirectory() as folder:
    try:
      subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', folder], check=True, capture_output=True)
      subprocess.run(['umount', folder], check=True)
    except (OSError, subprocess.CalledProcessError):
      return False
  return True


@contextlib.contextmanager
def small_disk(folder, size, *options):
  """A file system of its own in a folder, as large as given; skips the test where mounting is not allowed.

  Gives a function that mounts it anew with other options, 'size=8m' or 'ro'; what it holds stays.
  """
  if not mounting_is_allowed():
    pytest.skip('a small disk cannot be mounted here')
  subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', ','.join((f'size={size}', *options)), 'tmpfs', folder],
    check=True,
  )
  try:
    yield lambda *options: subprocess.run(
      ['mount', '-o', ','.join(('remount', *options)), folder], check=True
    )
  finally:
    subprocess.run(['umount', folder], check=True)
