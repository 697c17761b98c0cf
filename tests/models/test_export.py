"""Exported models, here and in a process without this package."""

import subprocess

import jax
import numpy as np
from places import FIXTURES, program

from glora_jax.data.normalization import normalize
from glora_jax.models import weights
from glora_jax.models.export import export, load_exported, save_exported


def test_exported_models_run_in_a_fresh_process_without_this_package(tmp_path):
  model, params, metadata = weights.load(FIXTURES / 'timm_vit')
  path = tmp_path / 'model.jax_export'
  save_exported(path, export(model, params, metadata['image_size'], metadata['normalization']))
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  np.save(tmp_path / 'images.npy', images)
  command = [*program('call_exported'), path, tmp_path / 'images.npy', tmp_path / 'logits.npy']
  ran = subprocess.run(command, check=True, capture_output=True, text=True)
  assert ran.stdout.strip() == 'uint8[batch,32,32,3]'
  expected = jax.jit(model.apply)({'params': params}, normalize(images, metadata['normalization']))
  np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), expected, atol=1e-5)
  np.testing.assert_allclose(load_exported(path).call(images[:1]), expected[:1], atol=1e-5)
