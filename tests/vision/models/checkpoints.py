"""Checkpoints that several tests read, and spoil."""

import functools
import types

import flax
import jax
import numpy as np
import pytest
import safetensors.numpy
from places import FIXTURES
from trees import randomized

from glora_jax.vision.models import weights
from glora_jax.vision.models.checkpoint import read_checkpoint
from glora_jax.vision.models.vit import ViT

FAMILIES = sorted(path for path in FIXTURES.iterdir() if path.is_dir())
CLASSES = ['a', 'b', 'c', 'd', 'e']

OURS = ViT(5, patch_size=8, width=12, depth=2, num_heads=2, layer_scale=0.1, pool='gap')


@functools.cache
def shapes_of(model, image_size):
  images = np.zeros((1, image_size, image_size, 3), np.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)['params']


def params_of(model, image_size=16):
  """Random parameters of a model."""
  return jax.tree.map(np.asarray, randomized(shapes_of(model, image_size)))


def logits_of(model, params, images):
  return _compiled(model)({'params': params}, images)


@functools.cache
def _compiled(model):
  return jax.jit(model.apply)


def flat(params):
  """Parameters by 'path/of/parameter'."""
  return flax.traverse_util.flatten_dict(params, sep='/')


def assert_equal_files(one_path, other_path):
  written, expected = read_checkpoint(one_path).arrays, read_checkpoint(other_path).arrays
  assert written.keys() == expected.keys()
  for name, array in written.items():
    assert (array.shape, array.dtype) == (expected[name].shape, expected[name].dtype)
    assert array.tobytes() == expected[name].tobytes()


def assert_equal_params(params, expected):
  jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.fixture(scope='session')
def own(tmp_path_factory):
  """(path of a checkpoint in our own format, its parameters)."""
  path = tmp_path_factory.mktemp('own') / 'model.safetensors'
  params = params_of(OURS)
  metadata = {'image_size': 16, 'normalization': 'unit', 'classes': CLASSES}
  weights.save(path, OURS, params, metadata)
  return path, params


@pytest.fixture
def timm(tmp_path):
  """The tensors of a timm file, to be spoilt; `load` writes and reads them."""
  tensors = safetensors.numpy.load_file(FIXTURES / 'timm_vit' / 'model.safetensors')
  path = tmp_path / 'spoilt.safetensors'

  def load(**fields):
    safetensors.numpy.save_file(tensors, path)
    return weights.load(path, **{'num_heads': 4, **fields})

  return types.SimpleNamespace(
    tensors=tensors, path=path, config=tmp_path / 'config.json', load=load
  )
