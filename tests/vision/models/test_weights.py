"""Checkpoints from beginning to end: written, refitted, exported, and read in another process."""

import os
import subprocess

import jax
import numpy as np
import pytest
from checkpoints import CLASSES, OURS, assert_equal_params, own, params_of  # noqa: F401, a fixture
from comparing import assert_refused
from numpy.testing import assert_allclose, assert_array_equal
from places import FIXTURES, program

from glora_jax import convert
from glora_jax.vision.data.normalization import normalize
from glora_jax.vision.models import weights
from glora_jax.vision.models.classifier import Classifier, find_images
from glora_jax.vision.models.resize import resize_pos_embed


def test_the_embedded_backbone_is_small_and_right_about_most_of_its_own_test_set():
  """Its accuracy on all 10,000 images is in its metadata and the README, which says the command."""
  assert os.path.getsize(weights.EMBEDDED_FILE) <= 4 * 2**20
  model, _, metadata = weights.load(weights.EMBEDDED_FILE)
  assert metadata['image_size'] == 28
  assert metadata['test_accuracy'] >= 0.87
  assert len(metadata['classes']) == model.num_classes == 10


def test_a_new_head_is_zero_and_takes_the_place_of_pre_logits():
  model = OURS.clone(pre_logits=9)
  params = params_of(model)
  metadata = {'image_size': 16, 'classes': ['a'] * 5}
  refitted, new, metadata = weights.refit(model, params, metadata, num_classes=3)
  assert (refitted.num_classes, refitted.pre_logits, 'classes' in metadata) == (3, None, False)
  assert 'pre_logits' not in new
  assert new['head']['kernel'].shape == (12, 3)
  assert not np.any(new['head']['kernel'])
  assert 'pre_logits' in params  # what was given is left alone


def test_an_older_checkpoint_in_the_folder_is_not_left_to_be_read(own, tmp_path):
  (tmp_path / 'model.npz').touch()
  named = 'already holds another checkpoint (model.npz)'
  assert_refused(named, weights.save, tmp_path, *weights.load(own[0]))
  (tmp_path / 'model.npz').unlink()
  for format in ('timm', None):
    weights.save(tmp_path, *weights.load(own[0]), format)
  assert 'source' not in weights.load(tmp_path).metadata


def test_exported_models_run_in_a_fresh_process_without_this_package(tmp_path, capsys):
  model, params, metadata = weights.load(FIXTURES / 'timm_vit')
  path, pixels, logits = (tmp_path / name for name in ('model.jax_export', 'in.npy', 'out.npy'))
  convert.main([str(FIXTURES / 'timm_vit'), str(path)])
  printed = capsys.readouterr().out
  assert 'uint8[batch,32,32,3] -> float32[batch,5] on cpu, cuda, tpu' in printed
  for number in (3, 1):
    images = np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), np.uint8)
    np.save(pixels, images)
    subprocess.run([*program('vision/programs/call_exported'), path, pixels, logits], check=True)
    inputs = normalize(images, metadata['normalization'])
    expected = jax.jit(model.apply)({'params': params}, inputs)
    assert_allclose(np.load(logits), expected, atol=1e-5)


@pytest.mark.parametrize('interpolation', ['bicubic_antialias', 'bicubic', 'linear_corners'])
def test_the_same_grid_changes_nothing_and_rows_are_no_columns(interpolation):
  old = np.random.default_rng(0).normal(size=(1, 13, 2)).astype(np.float32)
  assert_array_equal(resize_pos_embed(old, (3, 4), (3, 4), interpolation), old)
  ramp = np.arange(3, dtype=np.float32).repeat(4)[None, :, None]  # grows from row to row
  wide = resize_pos_embed(ramp, (3, 4), (3, 8), interpolation).reshape(3, 8)
  assert_allclose(wide, np.arange(3)[:, None] * np.ones((1, 8)), atol=1e-5)


def test_folders_are_searched_in_the_order_of_names_and_paths_stay_in_theirs(photos):
  inside = [f'{photos}/inside/{name}' for name in ('a.png', 'b.gif', 'deeper/x.bmp')]
  above = [f'{photos}/{name}' for name in ('a.JPG', 'b.png', 'c.webp')]
  assert find_images([str(photos)]) == [*above, *inside, f'{photos}/z.tif']
  assert find_images([f'{photos}/z.tif', f'{photos}/inside']) == [f'{photos}/z.tif', *inside]


def test_the_size_of_batches_changes_no_answer(backbone, photos):
  images = find_images([str(photos)])
  classifier = Classifier(backbone)
  together = dict(classifier(images))
  assert list(together) == images
  assert len({probabilities.tobytes() for probabilities in together.values()}) == len(images)
  for size in (1, 3):
    for path, probabilities in classifier(images, batch_size=size):
      assert_allclose(probabilities, together[path], atol=1e-6)
