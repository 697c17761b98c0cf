"""The commands that look at data: a contact sheet, and what is ready; wrong fields a sentence."""

import os
import subprocess
import sys

import numpy as np
import pytest
from label_lists import write_images
from PIL import Image
from places import ROOT, digests, get_config

from glora_jax.models import weights
from glora_jax.runs import look
from glora_jax.runs.config import default_config


@pytest.fixture
def config(tmp_path):
  write_images(tmp_path, [f'{name}/{n}.png' for name in ('cat $x_', 'dog') for n in range(5)])
  config = default_config()
  config.task = f'folder:{tmp_path}'
  config.model.image_size = 16
  config.augment.flip = True
  return config


@pytest.mark.parametrize('seed', [3, -3])
def test_a_contact_sheet_shows_what_training_sees(config, tmp_path, monkeypatch, seed):
  sheets = []
  monkeypatch.setattr(look, 'contact_sheet', lambda path, rows, labels: sheets.append(rows))
  config.seed = seed
  look.show(config, str(tmp_path / 'sheet.png'))
  ((resized, *augmented),) = (rows.values() for rows in sheets)
  assert resized.shape == (6, 16, 16, 3)
  for row in augmented:
    np.testing.assert_array_equal(np.sort(row, axis=2), np.sort(resized, axis=2))


def test_without_a_size_it_is_that_of_the_weights_if_they_are_here(config, tmp_path, monkeypatch):
  sizes = []
  monkeypatch.setattr(
    look, 'contact_sheet', lambda path, rows, labels: sizes.append(rows['resized'].shape[1:3])
  )
  config.model.image_size = None
  for name in ('embedded', 'in21k-B/16'):
    config.model.weights = name
    look.show(config, str(tmp_path / 'sheet.png'))
  assert sizes == [(28, 28), (224, 224)]


def test_heads_that_a_file_does_not_say_are_the_configs(config, backbone, tmp_path, monkeypatch):
  sizes = []
  monkeypatch.setattr(
    look, 'contact_sheet', lambda path, rows, labels: sizes.append(rows['resized'].shape[1:3])
  )
  path = tmp_path / 'vit.safetensors'
  weights.save(path, *weights.load(backbone), 'timm')
  config.model.update(weights=str(path), image_size=None, num_heads=2)
  look.show(config, str(tmp_path / 'sheet.png'))
  assert sizes == [(8, 8)]


def test_a_contact_sheet_is_drawn_with_any_names(config, tmp_path):
  look.show(config, str(tmp_path / 'sheet.png'))
  with Image.open(tmp_path / 'sheet.png') as sheet:
    assert sheet.width > 400


def test_the_command_replaces_a_file_only_when_asked_and_an_image_of_the_task_never(tmp_path):
  write_images(tmp_path, [f'{name}/{n}.png' for name in ('cat', 'dog') for n in range(5)])
  os.symlink(tmp_path / 'dog', tmp_path / '.link')
  os.link(tmp_path / 'cat' / '1.png', tmp_path / 'hard.png')
  (tmp_path / 'batch.png').write_bytes(b"a stranger's")
  before = digests(tmp_path)

  def show(*words):
    command = [
      sys.executable,
      '-m',
      'glora_jax.main',
      '--config',
      'own:.,tiny=True',
      '--show',
      *words,
    ]
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env).stderr

  assert 'batch.png exists already; choose another path, or give --overwrite' in show()
  for image in ('hard.png', '.link/0.png'):
    assert 'an input of this command' in show('--overwrite', '--output', image)
  assert digests(tmp_path) == before
  assert 'error' not in show('--overwrite')
  after = digests(tmp_path)
  assert {path.name for path in after if after[path] != before.get(path)} == {'batch.png'}


@pytest.mark.parametrize('name', ['cat/0.png', 'dog/../cat/0.png', 'link.png', 'labels.csv'])
def test_what_a_csv_names_is_never_replaced(config, tmp_path, name):
  images = [f'{name}/{n}.png' for name in ('cat', 'dog') for n in range(5)]
  write_images(tmp_path, images)
  lines = ['path,label', *(f'{image},{image[:3]}' for image in images)]
  (tmp_path / 'labels.csv').write_text('\n'.join(lines))
  os.symlink(tmp_path / 'cat' / '0.png', tmp_path / 'link.png')
  before = digests(tmp_path)
  config.task = f'csv:{tmp_path}/labels.csv'
  with pytest.raises(FileExistsError, match=r'would replace .*, an input of this command'):
    look.show(config, str(tmp_path / name), overwrite=True)
  assert digests(tmp_path) == before


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('model.image_size', 0, 'model.image_size=0 must be at least 1'),
    ('augment.shift', 16, 'shift=16 moves images of 16 x 16 pixels out of sight'),
    ('data.resize', 'fill', "data.resize='fill' is unknown; it is one of squash, crop"),
  ],
)
def test_wrong_fields_are_a_sentence(config, tmp_path, field, value, message):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message):
    look.show(config, str(tmp_path / 'sheet.png'))
  assert not (tmp_path / 'sheet.png').exists()


def test_a_task_that_stands_for_several_is_not_drawn(tmp_path):
  sentence = "task='vtab/all' stands for 19 tasks, .*; give --config.task=vtab/cifar100 for"
  with pytest.raises(ValueError, match=sentence):
    look.show(get_config('vtab', 'all'), str(tmp_path / 'sheet.png'))


def test_the_check_refuses_a_wrong_config_and_counts_otherwise(config, capsys):
  assert look.check(config)
  assert '1 of 1 ready.' in capsys.readouterr().out
  config.data.workers = -1
  with pytest.raises(ValueError, match=r'data\.workers=-1 must be at least 0'):
    look.check(config)


def test_who_leaves_broken_images_out_already_is_not_told_to(config, tmp_path):
  for path in tmp_path.rglob('*.png'):
    path.write_bytes(b'no image')
  config.data.skip_broken = True
  with pytest.raises(
    OSError, match=r'6 of 6 images cannot be decoded: .* and more\. Replace them\.$'
  ):
    look.show(config, str(tmp_path / 'sheet.png'))
