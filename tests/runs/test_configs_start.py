"""Every config is a record of what it reaches, and starts: with `tiny=True`, in seconds."""

import ast
import re

import mocked_tfds
import numpy as np
import pytest
from mocked_tfds import mocked  # noqa: F401, a fixture
from PIL import Image
from places import CONFIGS, get_config

from glora_jax.data.tasks import generalization
from glora_jax.runs import comparison, experiment
from glora_jax.runs.config import check_config
from glora_jax.runs.workdir import Stopped

NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))


def docstring(name):
  return ast.get_docstring(ast.parse((CONFIGS / f'{name}.py').read_text()))


def write_images(folder, names):
  """Writes an image for every name; its number is its grey value."""
  for number, name in enumerate(names):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((30, 30, 3), 10 * number, np.uint8)).save(path)


def write_photos(folder):
  """Eight images of each of two classes."""
  write_images(folder, [f'{name}/{n}.png' for name in ('dark', 'light') for n in range(8)])


def write_few_shot(folder):
  """The lists of one image a class."""
  write_images(folder / 'oxford_pets', [f'{split}{n}.png' for split in 'tvw' for n in range(2)])
  lists = {'train_meta.list.num_shot_1.seed_0': 't', 'val_meta.list': 'v', 'test_meta.list': 'w'}
  for name, split in lists.items():
    (folder / 'oxford_pets' / name).write_text(f'{split}0.png 0\n{split}1.png 1\n')


def write_generalization(folder):
  """The lists of two classes."""
  for test_set in generalization.TESTS:
    place = folder / test_set.folder
    write_images(place / 'images', ['x/0.png', 'x/1.png'])
    (place / 'annotations').mkdir()
    (place / 'annotations' / 'val_meta.list').write_text('x/0.png 7\nx/1.png 12\n')
  for name in ('train_meta.list.num_shot_16.seed_0', 'unofficial_val_list_4_shot16seed0'):
    (folder / 'imagenet' / 'annotations' / name).write_text('x/0.png 7\nx/1.png 12\n')


def make_config(name, folder):
  """The tiny config of a name, whose data is small and lies in a folder."""
  arguments = {'own': f'{folder}', 'vtab': 'oxford_flowers102', 'fewshot': 'oxford_pets,shots=1'}
  before = arguments.get(name, '0' if name == 'generalization' else '')
  lists = f',source=lists,root={folder}' if name in ('fewshot', 'generalization') else ''
  writers = {
    'own': write_photos,
    'fewshot': write_few_shot,
    'generalization': write_generalization,
  }
  if name in writers:
    writers[name](folder)
  config = get_config(name, f'{before}{lists},tiny=True')
  config.data.dir = str(folder / 'tfds')
  return config


@pytest.mark.parametrize('name', NAMES)
def test_a_config_says_its_command_and_what_it_reaches(name):
  text = docstring(name)
  assert f'python -m glora_jax.main --config configs/{name}.py' in text
  assert re.search(rf'configs/{name}.py:\S*tiny=True', text)
  assert re.search(r'\nReached|Not run: |What it reaches', text)
  assert re.search(r'Time: |nothing is known of its\ntime|how long it takes', text)


@pytest.mark.parametrize('name', NAMES)
def test_a_tiny_config_is_one_and_small(name, tmp_path):
  config = make_config(name, tmp_path)
  settings = check_config(config)
  assert max(settings.supernet.epochs, settings.training.epochs) <= 4
  assert settings.model.weights == 'embedded'
  full = get_config(name, *((str(tmp_path),) if name == 'own' else ()))
  assert settings.structure == full.structure


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_a_tiny_config_starts(name, tmp_path, request, monkeypatch):
  """Up to the first steps."""
  if name == 'vtab':
    request.getfixturevalue('mocked')
    sizes = {**mocked_tfds.SIZES['oxford_flowers102'], 'test': 60}
    monkeypatch.setitem(mocked_tfds.SIZES, 'oxford_flowers102', sizes)
  data, workdir = tmp_path / 'data', tmp_path / 'run'
  data.mkdir()
  config = make_config(name, data)
  config.checkpoint_epochs = 1
  metrics = workdir / 'metrics.jsonl'
  trained = workdir / 'trained'

  def stop():
    has_steps = metrics.exists() and len(metrics.read_text().splitlines()) > 1
    return has_steps or (trained.exists() and any(trained.iterdir()))

  run = comparison.run if name == 'compare' else experiment.run
  with pytest.raises(Stopped):
    run(config, str(workdir), stop)
  assert stop()
