"""Pretraining: what cannot be is refused before it begins, and what it writes is a checkpoint."""

import os

import numpy as np
import pytest
from places import get_config

from glora_jax.models import weights
from glora_jax.runs import disk_room, pretrain
from glora_jax.runs.workdir import claim


@pytest.fixture
def config(monkeypatch):
  """A pretraining of a moment, on images of 8 x 8 pixels."""
  rng = np.random.default_rng(0)
  data = {
    split: (rng.integers(0, 256, (number, 8, 8, 3), np.uint8), np.arange(number, dtype=np.int32))
    for split, number in (('train', 10), ('test', 4))
  }
  monkeypatch.setattr(pretrain.fashion_mnist, 'fashion_mnist', lambda folder: data)
  config = pretrain.default_config()
  config.image_size = 8
  config.model.update(patch_size=4, width=8, depth=1, num_heads=2)
  config.training.update(epochs=1, warmup_epochs=0, batch_size=5)
  return config


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'image_size': 28}, r'image_size=28 is not that of the images in .*, \(8, 8\); give theirs'),
    ({'model.patch_size': 3}, 'height and width multiples of patch_size=3'),
    ({'model.num_heads': 3}, 'width=8 is not a multiple of num_heads=3'),
    ({'shift': 8}, 'shift=8 moves images of 8 x 8 pixels out of sight'),
    ({'training.batch_size': 11}, 'training.batch_size=11 is larger than the 10 training images'),
    ({'training.epochs': 2**31 - 1}, 'training.epochs=2147483647 are 4,294,967,294 steps'),
    ({'model.width': 2**20}, r'cannot hold what will be written: at least .* \(No space left on'),
  ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(config, tmp_path, fields, message):
  config.update_from_flattened_dict(fields)
  with pytest.raises((ValueError, OSError), match=message):
    pretrain.run(config, str(tmp_path / 'run'))
  assert not os.listdir(tmp_path)


def test_a_backbone_is_written_once_and_loads(config, tmp_path, monkeypatch):
  workdir = str(tmp_path / 'run')
  with claim(workdir), pytest.raises(ValueError, match=f'in use by process {os.getpid()} on '):
    pretrain.run(config, workdir)
  result = pretrain.run(config, workdir)
  assert result['steps'] == 2
  model, _, metadata = weights.load(os.path.join(workdir, pretrain.BACKBONE))
  assert (model.width, metadata['test_accuracy']) == (8, result['test_accuracy'])
  with pytest.raises(ValueError, match=r'backbone.safetensors is there already; move it away'):
    pretrain.run(config, workdir)
  monkeypatch.setattr(disk_room, '_free', lambda path: 10)
  with pytest.raises(OSError, match='No space left on device'):
    pretrain.run(config, str(tmp_path / 'other'))


def test_the_result_of_another_job_is_not_written_over(config, tmp_path):
  (tmp_path / 'result.json').write_text('{}')
  with pytest.raises(ValueError, match=r'result.json is there already; move it away, or choose'):
    pretrain.run(config, str(tmp_path))
  assert os.listdir(tmp_path) == ['result.json']


def test_the_config_has_the_defaults_that_it_writes_out():
  assert get_config('pretrain').to_dict() == pretrain.default_config().to_dict()


def test_a_home_in_the_folder_of_the_images_is_filled_in(config, monkeypatch, tmp_path):
  folders = []
  images = pretrain.fashion_mnist.fashion_mnist('')
  monkeypatch.setattr(
    pretrain.fashion_mnist, 'fashion_mnist', lambda folder: folders.append(folder) or images
  )
  monkeypatch.setenv('HOME', '/home/me')
  config.update(data='~/fashion', shift=8)
  with pytest.raises(ValueError, match='shift=8 moves images'):
    pretrain.run(config, str(tmp_path / 'run'))
  assert folders == ['/home/me/fashion']
