"""Other people's checkpoints without their libraries.

Files in the exact layout of the published ones, and small models with the logits that timm and
transformers gave (`tests/peers/make_fixtures.py`).
"""

import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import (
  CLASSES,
  FAMILIES,
  assert_equal_files,
  assert_equal_params,
  logits_of,
  params_of,
)
from comparing import assert_refused
from numpy.testing import assert_allclose, assert_array_equal
from places import FIXTURES
from trees import normal

from glora_jax.vision.models import weights
from glora_jax.vision.models.formats.table import WRITTEN
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.runs.backbone import load_backbone
from glora_jax.vision.runs.settings import ModelSettings

IMAGES = normal(2, 24, 24, 3)


def test_fixtures_are_present():
  assert len(FAMILIES) == 11


@pytest.mark.parametrize('folder', FAMILIES, ids=lambda path: path.name)
def test_their_file_gives_their_logits_and_is_written_back_bit_for_bit(folder, tmp_path):
  expected = dict(np.load(folder / 'expected.npz'))
  loaded = model, params, metadata = weights.load(folder)
  assert_allclose(logits_of(model, params, expected['images']), expected['logits'], atol=1e-4)
  if 'large_images' in expected:
    images = expected['large_images']
    large, resized, _ = weights.refit(*loaded, image_size=images.shape[1])
    assert_allclose(logits_of(large, resized, images), expected['large_logits'], atol=1e-4)
  facts = {'normalization': [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]}
  facts |= {'classes': CLASSES} if model.num_classes else {}
  back = tmp_path / 'back'
  weights.save(back, model, params, metadata | facts, metadata['source'])
  assert_equal_files(folder / 'model.safetensors', back / 'model.safetensors')
  config = json.loads((back / 'config.json').read_text())
  del config['glora_jax']  # as their code reads it
  (back / 'config.json').write_text(json.dumps(config))
  again, same, known = weights.load(back)
  assert again == model
  assert_equal_params(same, params)
  assert {fact: known[fact] for fact in facts} == facts


FLAX = {path.stem: path for path in FIXTURES.glob('*.npz')}


def flax_file(name):
  """(images, logits, tensors by name) of a file of parameters with its model's answer."""
  tensors = dict(np.load(FLAX[name]))
  return tensors.pop('images'), tensors.pop('logits'), tensors


@pytest.mark.parametrize('name', FLAX)
def test_npz_files_give_the_logits_of_their_code(name):
  size = {'image_size': 24} if name == 'sincos' else {}  # which it must be told
  model, params, metadata = weights.load(FLAX[name], **size)
  assert (model.num_heads, model.width, model.depth) == (3, 12, 2)
  assert (model.patch_size, model.mlp_dim, metadata['image_size']) == (8, 20, 24)
  images, logits, _ = flax_file(name)
  assert_allclose(logits_of(model, params, images), logits, atol=1e-5)


def test_npz_files_of_16_bits_become_those_of_32_bits(tmp_path):
  tensors = flax_file('big_vision')[2]
  np.savez(tmp_path / 'half.npz', **jax.tree.map(lambda x: x.astype(jnp.bfloat16), tensors))
  expected = jax.tree.map(
    lambda x: x.astype(jnp.bfloat16).astype(np.float32), weights.load(FLAX['big_vision']).params
  )
  assert_equal_params(weights.load(tmp_path / 'half.npz').params, expected)


def test_parameters_are_found_in_the_middle_of_a_training_state(tmp_path):
  images, logits, tensors = flax_file('big_vision')
  state = {'opt/0/count': np.int32(3)}
  for name, value in tensors.items():
    name = name.removeprefix('params/')
    state |= {f'opt/0/1/{name}': np.zeros_like(value), f'opt/target/{name}': value}  # moments first
  np.savez(tmp_path / 'state.npz', **state)
  model, loaded, _ = weights.load(tmp_path / 'state.npz')
  assert_allclose(logits_of(model, loaded, images), logits, atol=1e-5)


def test_a_run_starts_with_a_format_that_is_only_read_and_ours_is_written(tmp_path):
  model, params, metadata = load_backbone(ModelSettings(), str(FLAX['big_vision']), 7)
  assert (model.num_classes, params['head']['bias'].shape) == (7, (7,))
  weights.save(tmp_path / 'out', model, params, metadata, metadata['source'])
  _, again, metadata = weights.load(tmp_path / 'out')
  assert 'source' not in metadata
  assert_equal_params(again, params)


def test_a_file_of_two_towers_is_refused(tmp_path):
  names = [
    name.replace('params/', f'params/{tower}/')
    for tower in ('img', 'txt')
    for name in flax_file('big_vision')[2]
  ]
  np.savez(tmp_path / 'lit.npz', **dict.fromkeys(names, np.zeros(2)))
  assert_refused('params/img/, params/txt/', weights.load, tmp_path / 'lit.npz')


@pytest.mark.parametrize('image_size', [(16, 24), (40, 24)])
def test_computed_positions_are_computed_again_and_those_of_an_oblong_are_part_of_a_square(
  image_size,
):
  checkpoint = weights.load(FLAX['sincos'], image_size=24)
  _, square, _ = weights.refit(*checkpoint, image_size=40)
  assert_equal_params(square, weights.load(FLAX['sincos'], image_size=40).params)
  _, params, _ = weights.refit(*checkpoint, image_size=image_size)
  rows, columns = image_size[0] // 8, image_size[1] // 8
  expected = square['pos_embed'].reshape(5, 5, 12)[:rows, :columns].reshape(1, -1, 12)
  assert_array_equal(params['pos_embed'], expected)


MODELS = st.fixed_dictionaries(
  {
    'pool': st.sampled_from(['token', 'gap', 'token+gap']),
    'class_token': st.booleans(),
    'norm_after_pool': st.booleans(),
    'layer_scale': st.sampled_from([None, 1.0]),
    'pre_logits': st.sampled_from([None, 7]),
    'num_classes': st.sampled_from([0, 3]),
    'pre_norm': st.booleans(),
  }
)


@hypothesis.given(MODELS, st.sampled_from(sorted(WRITTEN)))
@hypothesis.settings(max_examples=30, deadline=None)
def test_any_model_in_any_format_computes_the_same_or_is_refused(tmp_path_factory, fields, format):
  hypothesis.assume(fields['class_token'] or fields['pool'] == 'gap')
  model = ViT(patch_size=8, width=12, depth=2, num_heads=3, mlp_dim=24, **fields)
  params = params_of(model, 24)
  folder = tmp_path_factory.mktemp('any')
  try:
    weights.save(folder, model, params, {'image_size': 24, 'normalization': 'unit'}, format)
  except ValueError as error:
    if 'choose another format' not in str(error):
      raise
    return
  loaded, converted, metadata = weights.load(folder)
  assert metadata['source'].name == format
  assert metadata['normalization'] == 'unit'
  assert_allclose(logits_of(loaded, converted, IMAGES), logits_of(model, params, IMAGES), atol=1e-4)
