"""Files that are spoilt, foreign or none at all: read right, or refused in one line."""

import functools
from typing import NamedTuple

import flax
import flax.linen as nn
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_vit import FlaxViT
from hypothesis import given
from judging import REFUSED, cases, judged, new_place, same
from spoiling import spoilt_copy
from trees import randomized

import glora_jax
from glora_jax import Archive, Layer, SearchSpace, Spec
from glora_jax.files import read_json, write_json, write_tensors
from glora_jax.peft import load_peft, save_peft
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


class Kind(NamedTuple):
  """A kind of file: what makes values, writes one into a folder and reads it from there again."""

  values: object
  write: object
  read: object


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


def npz():
  """The tensors of a big_vision file, by name."""
  images = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
  params = randomized(jax.eval_shape(FlaxViT().init, jax.random.key(0), images)['params'])
  return flax.traverse_util.flatten_dict(params, sep='/')


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


def read_peft(folder):
  adapted, variables = dense()
  fixed, variables = load_peft(str(folder), adapted, variables['params'], NAMES)
  return [variables, fixed.genome]


def archives():
  rng, found = np.random.default_rng(0), Archive.empty(SPEC)
  for generation in range(3):
    genomes = glora_jax.random_genomes(rng, SPEC, 4)
    found = found.extended(genomes, rng.integers(0, 9, 4), rng.random(4), generation)
  return [found.arrays()]


KINDS = {
  'checkpoint': Kind(
    lambda: [npz(), *([*vit(), METADATA, name] for name in (OURS, *WRITTEN))],
    write_checkpoint,
    read_checkpoint,
  ),
  'adapter': Kind(
    lambda: [[dense()[1], LORA]],
    lambda folder, value: glora_jax.save_adapter(
      str(folder / 'adapter.safetensors'), dense()[0], *value
    ),
    read_adapter,
  ),
  'adapter of PEFT': Kind(
    lambda: [[dense()[1], LORA]],
    lambda folder, value: save_peft(str(folder / 'adapter'), dense()[0], value[0], NAMES, value[1]),
    lambda folder: read_peft(folder / 'adapter'),
  ),
  'archive': Kind(
    archives,
    lambda folder, value: write_tensors(str(folder / 'archive.safetensors'), value, 'archive', {}),
    lambda folder: read_archive(str(folder / 'archive.safetensors'), SPEC).arrays(),
  ),
  'genome': Kind(
    lambda: [glora_jax.preset(SPEC, 'lora')],
    lambda folder, value: write_json(
      str(folder / 'genome.json'), glora_jax.genome_to_json(SPEC, value), 'genome'
    ),
    lambda folder: glora_jax.genome_from_json(
      SPEC, read_json(str(folder / 'genome.json'), 'genome')
    ),
  ),
}


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
  """Folders of each kind, as the library writes them."""
  folders = {}
  for name, kind in KINDS.items():
    folders[name] = [tmp_path_factory.mktemp('original') for _ in kind.values()]
    for folder, value in zip(folders[name], kind.values(), strict=True):
      kind.write(folder, value)
  return folders


@pytest.mark.parametrize('name', KINDS)
@cases(0.2)
@given(data=st.data())
def test_a_spoilt_file_is_read_right_or_refused(name, data, originals):
  kind = KINDS[name]
  with new_place() as place:
    number = spoilt_copy(data.draw, data.draw(st.sampled_from(originals[name])), place.given)
    result = judged(lambda: kind.read(place.given), place)
    assert number or result is not REFUSED
    if result is not REFUSED:
      place.current.joinpath('again').mkdir()
      kind.write(place.current / 'again', result)
      assert same(kind.read(place.current / 'again'), result)
