"""Every config starts: with `tiny=True`, in seconds."""

import mocked_tfds
import pytest
from few_shot_lists import write_few_shot_lists
from label_lists import write_images
from mocked_tfds import mocked  # noqa: F401, a fixture
from places import CONFIGS, get_config

from glora_jax.data.tasks import generalization
from glora_jax.runs import comparison, experiment
from glora_jax.runs.workdir import Stopped

NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))


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
  if name == 'own':
    write_images(folder, [f'{name}/{n}.png' for name in ('dark', 'light') for n in range(8)])
  if name == 'fewshot':
    write_few_shot_lists(folder / 'oxford_pets')
  if name == 'generalization':
    write_generalization(folder)
  config = get_config(name, f'{before}{lists},tiny=True')
  config.data.dir = str(folder / 'tfds')
  return config


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

  def stop():
    """Whether there is a training state, which is named by its step."""
    return any(path.name.isdigit() for path in workdir.rglob('*') if path.is_dir())

  run = comparison.run if name == 'compare' else experiment.run
  with pytest.raises(Stopped):
    run(config, str(workdir), stop)
  assert stop()
