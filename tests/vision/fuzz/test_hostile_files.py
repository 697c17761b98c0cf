"""Files that are spoilt, foreign or none at all: read right, or refused in one line."""

import functools

import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from judging import REFUSED, cases, judged, new_place, same
from places import FIXTURES
from spoiling import spoilt_copy
from trees import randomized

import glora_jax
from glora_jax import Archive, Layer, SearchSpace, Spec
from glora_jax.files import read_json, write_json, write_tensors
from glora_jax.vision.models import weights
from glora_jax.vision.models.formats.table import WRITTEN
from glora_jax.vision.models.metadata import OURS
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.runs.stages.search import read_archive

SPEC = Spec((Layer('attn/qkv', 8, 24), Layer('mlp/fc1', 8, 32, bias=False)))
INPUTS = jnp.ones((2, 4))
LORA = np.array([[0, 3, 0, 0, 0]], np.int8)
NAMES = {'Dense': 'layers.0.fc'}
METADATA = {'image_size': 8, 'normalization': 'imagenet', 'classes': list('abcde')}


@functools.cache
def dense():
  """One linear layer, adapted, with its variables."""
  adapted = glora_jax.adapt(nn.Dense(3, name='Dense'), INPUTS, space=SearchSpace(ranks=(2, 4)))
  params = {'kernel': np.ones((4, 3), np.float32), 'bias': np.zeros(3, np.float32)}
  return adapted, randomized(adapted.init(jax.random.key(0), params))


def vit():
  model = ViT(5, patch_size=4, width=12, depth=2, num_heads=2)
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
  return model, randomized(jax.eval_shape(model.init, jax.random.key(0), images)['params'])


def checkpoints():
  """The tensors of a big_vision file by name, and our ViT in every format that is written."""
  tensors = dict(np.load(FIXTURES / 'big_vision.npz'))
  return [tensors, *([*vit(), METADATA, name] for name in (OURS, *WRITTEN))]


def write_checkpoint(folder, value):
  if isinstance(value, dict):
    np.savez(folder / 'model.npz', **value)
  else:
    weights.save(folder, *value)


def read_checkpoint(folder):
  model, params, metadata = weights.load(str(folder))
  return [model, params, {k: value for k, value in metadata.items() if k != 'source'}]


def read_adapter(folder):
  adapted, variables = dense()
  path = str(folder / 'adapter.safetensors')
  fixed, variables = glora_jax.load_adapter(path, adapted, variables['params'])
  assert np.isfinite(fixed.apply(variables, INPUTS)).all()
  return [variables, fixed.genome]


def write_adapter(folder, value):
  variables, genome = value
  glora_jax.save_adapter(str(folder / 'adapter.safetensors'), dense()[0].fix(genome), variables)


def read_of_peft(folder):
  adapted, variables = dense()
  fixed, variables = glora_jax.peft.load(
    str(folder / 'adapter'), adapted, variables['params'], NAMES
  )
  return [variables, fixed.genome]


def write_peft(folder, value):
  variables, genome = value
  glora_jax.peft.save(str(folder / 'adapter'), dense()[0].fix(genome), variables, NAMES)


def archives():
  genomes = glora_jax.random_genomes(np.random.default_rng(0), SPEC, 4)
  return [Archive.empty(SPEC).extended(genomes, [5, 7, 7, 1], [1.0, 2.0, 3.0, 4.0], 0).arrays()]


def write_archive(folder, value):
  write_tensors(str(folder / 'archive.safetensors'), value, 'archive', {})


def write_genome(folder, value):
  content = glora_jax.genome_to_json(SPEC, value)
  write_json(str(folder / 'genome.json'), content, 'genome')


def read_genome(folder):
  return glora_jax.genome_from_json(SPEC, read_json(str(folder / 'genome.json'), 'genome'))


# What makes values of a kind, writes one into a folder, and reads it from there again.
KINDS = {
  'checkpoint': (checkpoints, write_checkpoint, read_checkpoint),
  'adapter': (lambda: [[dense()[1], LORA]], write_adapter, read_adapter),
  'adapter of PEFT': (lambda: [[dense()[1], LORA]], write_peft, read_of_peft),
  'archive': (
    archives,
    write_archive,
    lambda folder: read_archive(str(folder / 'archive.safetensors'), SPEC).arrays(),
  ),
  'genome': (lambda: [glora_jax.preset(SPEC, 'lora')], write_genome, read_genome),
}


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
  """Folders of each kind, as the library writes them."""
  folders = {}
  for name, (values, write, _) in KINDS.items():
    for value in values():
      folders.setdefault(name, []).append(tmp_path_factory.mktemp('original'))
      write(folders[name][-1], value)
  return folders


@pytest.mark.parametrize('name', KINDS)
@cases(0.2)
@given(data=st.data())
def test_a_spoilt_file_is_read_right_or_refused(name, data, originals):
  _, write, read = KINDS[name]
  with new_place() as place:
    number = spoilt_copy(data.draw, data.draw(st.sampled_from(originals[name])), place.given)
    result = judged(lambda: read(place.given), place)
    assert number or result is not REFUSED
    if result is not REFUSED:
      place.current.joinpath('again').mkdir()
      write(place.current / 'again', result)
      assert same(read(place.current / 'again'), result)
