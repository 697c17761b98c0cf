"""The commands that look at data: a contact sheet, and what is ready; wrong fields a sentence."""

import os
import subprocess
import sys

import numpy as np
import pytest
from comparing import assert_refused
from label_lists import write_images
from PIL import Image
from places import ROOT, digests

from glora_jax.vision.data import tfds
from glora_jax.vision.models import weights
from glora_jax.vision.runs import look
from glora_jax.vision.runs.backbone import metadata_here
from glora_jax.vision.runs.config import check_config, default_config
from glora_jax.vision.runs.settings import ModelSettings

IMAGES = [f'{name}/{n}.png' for name in ('cat $x_', 'dog') for n in range(5)]


@pytest.fixture
def config(tmp_path):
  write_images(tmp_path, IMAGES)
  config = default_config()
  config.task = f'folder:{tmp_path}'
  config.model.image_size = 16
  config.augment.flip = True
  return config


def test_a_contact_sheet_shows_what_training_sees(config, tmp_path, monkeypatch):
  sheets = []
  monkeypatch.setattr(look, 'contact_sheet', lambda path, rows, labels: sheets.append(rows))
  config.seed = -3
  look.show(config, str(tmp_path / 'sheet.png'))
  ((resized, *augmented),) = (rows.values() for rows in sheets)
  assert resized.shape == (6, 16, 16, 3)
  for row in augmented:
    np.testing.assert_array_equal(np.sort(row, axis=2), np.sort(resized, axis=2))


def test_the_size_of_weights_that_are_here_is_known(backbone, tmp_path):
  """Heads that a file does not say are the config's."""
  saved = str(tmp_path / 'vit.safetensors')
  weights.save(saved, *weights.load(backbone), 'timm')
  for name, heads, size in (('embedded', None, 28), ('in21k-B/16', None, None), (saved, 2, 8)):
    assert metadata_here(ModelSettings(weights=name, num_heads=heads)).get('image_size') == size


def test_the_command_replaces_a_file_only_when_asked(tmp_path):
  write_images(tmp_path, IMAGES)
  (tmp_path / 'batch.png').write_bytes(b"a stranger's")
  command = [sys.executable, '-m', 'glora_jax.main', '--config', 'own:.,tiny=True', '--show']
  options = {'cwd': tmp_path, 'env': {**os.environ, 'PYTHONPATH': str(ROOT)}}
  for words, is_refused in (([], True), (['--overwrite'], False)):
    ran = subprocess.run([*command, *words], capture_output=True, text=True, **options)
    assert ('batch.png already exists' in ran.stderr) == is_refused == (ran.returncode == 1)


@pytest.mark.parametrize('name', [f'dog/../{IMAGES[0]}', 'labels.csv'])
def test_what_a_csv_names_is_never_replaced(config, tmp_path, name):
  """The sheet is drawn with any names of classes."""
  lines = ['path,label', *(f'{image},{image.split("/")[0]}' for image in IMAGES)]
  (tmp_path / 'labels.csv').write_text('\n'.join(lines))
  sheet = tmp_path / 'sheet.png'
  sheet.write_bytes(b"a stranger's")
  before = digests(tmp_path)
  config.task = f'csv:{tmp_path}/labels.csv'
  config.model.update(image_size=None, weights='in21k-B/16')
  settings = check_config(config)
  with pytest.raises(FileExistsError, match=r'would replace .*, an input'):
    look.show(settings, str(tmp_path / name), overwrite=True)
  assert digests(tmp_path) == before
  look.show(settings, str(sheet), overwrite=True)
  with Image.open(sheet) as picture:
    assert picture.width > 400
  changed = {path for path, digest in digests(tmp_path).items() if before[path] != digest}
  assert {path.name for path in changed} == {'sheet.png'}


def test_a_look_at_weights_downloads_none_and_names_a_wrong_path(
  config, tmp_path_factory, monkeypatch, capsys
):
  monkeypatch.setenv('GLORA_JAX_CACHE', str(tmp_path_factory.mktemp('cache')))
  for name, said in (('embedded', 'in the package'), ('dinov2-S/14', 'not downloaded yet')):
    config.model.weights = name
    assert look.check(config)
    assert f'weights {name}: {said}' in capsys.readouterr().out
  config.model.weights = 'dinov2'
  settings = check_config(config)
  assert_refused("model.weights='dinov2' is not a file", look.check, settings, kind=OSError)


@pytest.mark.parametrize('skip_broken', [False, True])
def test_images_that_cannot_be_decoded_are_not_ready(skip_broken, config, tmp_path, capsys):
  assert look.check(check_config(config))
  printed = capsys.readouterr().out
  assert '1 of 1 ready.' in printed
  assert 'note: 6 training images in batches of 6: 1 step an epoch; ' in printed
  (tmp_path / IMAGES[0]).write_bytes(b'broken')
  config.data.skip_broken = skip_broken
  before = digests(tmp_path)
  assert look.check(check_config(config)) == skip_broken
  printed = capsys.readouterr().out
  assert (IMAGES[0] in printed) != skip_broken
  count = '5 images, 2 of 2 classes, 2 to 3 each' if skip_broken else '6 images, 2 of 2 classes'
  assert count in printed
  assert digests(tmp_path) == before


def test_a_suite_is_looked_at_without_preparing_anything(config, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(tfds, 'prepare', lambda builder: pytest.fail('prepared'))
  config.task, config.data.dir = 'vtab/all', str(tmp_path)
  assert not look.check(check_config(config))
  printed = capsys.readouterr().out
  assert '0 of 19 ready.' in printed
  assert 'resisc45/3.0.0 needs a manual download into' in printed
  assert printed.count("are not the benchmark's") == 2  # oxford_iiit_pet and svhn
