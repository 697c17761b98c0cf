"""Plain checkpoints of the ViT: round trips in another process, the backbone in the package, damaged files."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import randomized

from glora_jax import tree
from glora_jax.models import weights
from glora_jax.models.vit import ViT, describe

MODEL = ViT(5, patch_size=8, width=12, depth=2, num_heads=2, layer_scale=0.1, pool='gap')
IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


@pytest.fixture
def saved(tmp_path):
  params = randomized(MODEL.init(jax.random.key(1), IMAGES)['params'])
  path = tmp_path / 'model.safetensors'
  weights.save(
    path,
    MODEL,
    params,
    {'image_size': 16, 'normalization': 'unit', 'classes': ['a', 'b', 'c', 'd', 'e']},
  )
  return path, params


def test_a_checkpoint_gives_the_same_logits_in_a_fresh_process(saved, tmp_path):
  path, params = saved
  np.save(tmp_path / 'images.npy', IMAGES)
  code = (
    'import sys, json, numpy as np\nfrom glora_jax.models import weights\n'
    'model, params, metadata = weights.load(sys.argv[1])\n'
    "print(json.dumps([np.asarray(model.apply({'params': params}, np.load(sys.argv[2]))).tolist(), metadata]))"
  )
  run = subprocess.run(
    [sys.executable, '-c', code, path, tmp_path / 'images.npy'],
    check=True,
    capture_output=True,
    text=True,
  )
  logits, metadata = json.loads(run.stdout)
  np.testing.assert_array_equal(np.float32(logits), MODEL.apply({'params': params}, IMAGES))
  assert metadata == {
    'image_size': 16,
    'normalization': 'unit',
    'classes': ['a', 'b', 'c', 'd', 'e'],
  }


def test_tensors_round_trip_bit_for_bit(saved):
  path, params = saved
  model, loaded, _ = weights.load(path)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert describe(model) == weights.describe(MODEL)


@pytest.mark.parametrize(
  'metadata',
  ['{}', 'nothing', '[]', '{"kind": "adapter"}', '{"kind": "vit", "model": {"depth": "x"}}'],
)
def test_files_that_only_look_like_ours_are_refused(tmp_path, metadata):
  safetensors.numpy.save_file(
    {'a': np.zeros(3)}, tmp_path / 'odd.safetensors', {'glora_jax': metadata}
  )
  with pytest.raises(ValueError, match='is no vit file that glora_jax wrote'):
    weights.load(tmp_path / 'odd.safetensors')


def test_folders_are_searched_for_one_checkpoint(saved, tmp_path):
  path, params = saved
  _, loaded, _ = weights.load(path.parent)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(FileNotFoundError, match='There is no checkpoint in the folder'):
    weights.load(tmp_path / 'empty')
  for name in ('a.npz', 'b.npz'):
    (tmp_path / 'empty' / name).touch()
  with pytest.raises(ValueError, match=r'holds several checkpoints \(a\.npz, b\.npz\)'):
    weights.load(tmp_path / 'empty')
  for name in ('a.npz', 'b.npz'):
    (tmp_path / 'empty' / name).unlink()
  (tmp_path / 'empty' / 'model-00001-of-00002.safetensors').touch()
  with pytest.raises(ValueError, match='in several parts'):
    weights.load(tmp_path / 'empty')


def test_a_new_head_is_zero_and_takes_the_place_of_pre_logits(saved):
  model = MODEL.clone(pre_logits=9)
  params = randomized(model.init(jax.random.key(1), IMAGES)['params'])
  refitted, new, metadata = weights.refit(
    model, params, {'image_size': 16, 'classes': ['a'] * 5}, num_classes=3
  )
  assert (refitted.num_classes, refitted.pre_logits, 'classes' in metadata) == (3, None, False)
  np.testing.assert_array_equal(refitted.apply({'params': new}, IMAGES), np.zeros((2, 3)))
  assert 'pre_logits' in params  # what was given is left alone


def test_another_image_size_and_patch_size_go_together(saved):
  path, _ = saved
  model, params, metadata = weights.refit(*weights.load(path), image_size=24, patch_size=12)
  assert (model.patch_size, metadata['image_size'], params['pos_embed'].shape) == (
    12,
    24,
    (1, 5, 12),
  )
  assert model.apply({'params': params}, jnp.zeros((1, 24, 24, 3))).shape == (1, 5)
  with pytest.raises(ValueError, match='image_size=25 is not a multiple of the patch size 8'):
    weights.refit(*weights.load(path), image_size=25)


def test_all_wrong_tensors_are_named(saved):
  path, params = saved
  params = jax.tree.map(np.asarray, params)
  params['head']['extra'] = params['head'].pop('bias')
  params['norm']['scale'] = np.ones(13, np.float32)
  weights.save(path, MODEL, params, {'image_size': 16})
  with pytest.raises(
    ValueError,
    match=r'missing: head/bias; unexpected: head/extra; misshaped: norm/scale is \(13,\) and should be \(12,\)',
  ):
    weights.load(path)


def test_the_embedded_backbone_is_small_and_right_about_most_of_its_own_test_set():
  """Its accuracy on all 10,000 images is in its metadata and in the README, from the command that made it."""
  assert os.path.getsize(weights.EMBEDDED_FILE) <= 4 * 2**20
  model, params, metadata = weights.load(weights.EMBEDDED_FILE)
  assert metadata['image_size'] == 28
  assert metadata['test_accuracy'] >= 0.87
  assert len(metadata['classes']) == model.num_classes == 10
  assert model.apply({'params': params}, jnp.zeros((1, 28, 28, 3))).shape == (1, 10)


def test_fingerprints_see_every_change():
  params = {'a': {'b': np.arange(6.0)}, 'c': np.zeros(2)}
  prints = {
    tree.fingerprint(p)
    for p in (
      params,
      {'a': {'b': np.arange(6.0)[::-1]}, 'c': np.zeros(2)},
      {'a': {'b': np.arange(6.0).reshape(2, 3)}, 'c': np.zeros(2)},
      {'a': {'x': np.arange(6.0)}, 'c': np.zeros(2)},
      {'a': {'b': np.arange(6.0).astype(np.float32)}, 'c': np.zeros(2)},
    )
  }
  assert len(prints) == 5
  assert tree.fingerprint({'c': np.zeros(2), 'a': {'b': np.arange(6.0)}}) in prints


def test_an_older_checkpoint_in_the_folder_is_not_left_to_be_read(tmp_path):
  model = MODEL.clone(layer_scale=None, class_token=False)
  params = randomized(model.init(jax.random.key(1), IMAGES)['params'])
  weights.save(tmp_path / 'out', model, params, {'image_size': 16}, 'big_vision')
  with pytest.raises(ValueError, match=r'holds another checkpoint already \(model\.npz\)'):
    weights.save(tmp_path / 'out', model, params, {'image_size': 16}, 'timm')
  weights.save(tmp_path / 'out', model, params, {'image_size': 16}, 'big_vision_scan')
  with pytest.raises(ValueError, match=r'should end in \.safetensors'):
    weights.save(tmp_path / 'model.npz', model, params, {'image_size': 16})


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'num_heads': -4}, 'num_heads=-4 must be a whole number above 0'),
    ({'no_such': 1}, 'no_such: the ViT has no such field'),
    ({'image_size': 56}, r'knows its image_size itself; weights\.refit'),
  ],
)
def test_wrong_fields_are_explained(saved, fields, message):
  with pytest.raises(ValueError, match=message):
    weights.load(saved[0], **fields)
