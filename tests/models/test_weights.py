"""Checkpoints from beginning to end: in another process, and the backbone in the package."""

import json
import os
import subprocess

import jax
import numpy as np
from checkpoints import CLASSES, OURS, assert_equal_params, own  # noqa: F401, fixtures
from places import program

from glora_jax.models import weights
from glora_jax.models.vit import describe, expected_params


def test_a_checkpoint_is_the_same_model_here_and_in_a_fresh_process(own, tmp_path):
  path, params = own
  model, loaded, _ = weights.load(path)
  assert_equal_params(loaded, params)
  assert describe(model) == describe(OURS)
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
  np.save(tmp_path / 'images.npy', images)
  command = [*program('load_checkpoint'), path, tmp_path / 'images.npy']
  ran = subprocess.run(command, check=True, capture_output=True, text=True)
  logits, metadata = json.loads(ran.stdout)
  expected = jax.jit(OURS.apply)({'params': params}, images)
  np.testing.assert_array_equal(np.float32(logits), expected)
  assert metadata == {'image_size': 16, 'normalization': 'unit', 'classes': CLASSES}


def test_the_embedded_backbone_is_small_and_right_about_most_of_its_own_test_set():
  """Its accuracy on all 10,000 images is in its metadata and the README, which says the command."""
  assert os.path.getsize(weights.EMBEDDED_FILE) <= 4 * 2**20
  model, params, metadata = weights.load(weights.EMBEDDED_FILE)
  assert metadata['image_size'] == 28
  assert metadata['test_accuracy'] >= 0.87
  assert len(metadata['classes']) == model.num_classes == 10
  assert params['head']['kernel'].shape == expected_params(model, 28)['head/kernel'].shape
