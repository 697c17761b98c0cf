"""Folders with a checkpoint."""

import pytest

from glora_jax.models.folder import locate


def make(folder, *names):
  for name in names:
    (folder / name).touch()
  return folder


@pytest.mark.parametrize(
  'names, expected',
  [
    (['weights.npz'], 'weights.npz'),
    (['model.safetensors', 'pytorch_model.bin'], 'model.safetensors'),
    (['pytorch_model.bin', 'training_args.bin'], 'pytorch_model.bin'),
  ],
)
def test_the_one_checkpoint_in_a_folder_is_found(tmp_path, names, expected):
  assert locate(make(tmp_path, *names, 'config.json')) == str(tmp_path / expected)
  assert locate(tmp_path / expected) == str(tmp_path / expected)


def test_the_folder_of_a_run_means_its_folded_model(tmp_path):
  (tmp_path / 'folded').mkdir()
  make(tmp_path, 'adapter.safetensors', 'images.npz', 'folded/model.safetensors')
  assert locate(tmp_path) == str(tmp_path / 'folded' / 'model.safetensors')
  make(tmp_path, 'model.npz')
  assert locate(tmp_path) == str(tmp_path / 'model.npz')


def test_a_folder_of_the_name_without_a_checkpoint_is_nothing(tmp_path):
  (tmp_path / 'folded').mkdir()
  assert locate(make(tmp_path, 'vit.npz')) == str(tmp_path / 'vit.npz')
