"""What tests of the application share: a ViT, the official one's values, images, one tiny run."""

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest
import tiny_runs
from PIL import Image
from trees import randomized

from glora_jax.vision.data import image
from glora_jax.vision.models import weights
from glora_jax.vision.models.vit import ViT
from glora_jax.vision.runs import experiment


@pytest.fixture(scope='session')
def golden_vit():
  """A ViT of the official implementation: see `official.load_vit`."""
  return official.load_vit()


@pytest.fixture(scope='session')
def backbone(tmp_path_factory):
  """A tiny ViT of 8 x 8 images as a checkpoint file."""
  model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
  params = randomized(shapes['params'], scale=0.2)
  path = tmp_path_factory.mktemp('backbone') / 'tiny.safetensors'
  weights.save(path, model, params, {'image_size': 8, 'normalization': 'unit'})
  return str(path)


@pytest.fixture(scope='session')
def photos(tmp_path_factory):
  """Seven images in a folder and its subfolders, none of them square, and what is none."""
  folder = tmp_path_factory.mktemp('data') / 'photos'
  rng = np.random.default_rng(0)
  (folder / 'inside' / 'deeper').mkdir(parents=True)
  inside = ('inside/a.png', 'inside/b.gif', 'inside/deeper/x.bmp')
  for number, name in enumerate(('b.png', 'a.JPG', 'c.webp', *inside, 'z.tif')):
    colour = rng.choice([0, 255], 3) // 4 * 3
    pixels = colour + rng.integers(0, 64, (3, 2 + number, 3), np.uint8)
    Image.fromarray(pixels.astype(np.uint8)).resize((30 + 9 * number, 21)).save(folder / name)
  for name in ('notes.txt', '.hidden.png'):
    (folder / name).write_text('no image')
  return folder


@pytest.fixture(scope='session')
def run_config(backbone):
  """The config of a run that is over in seconds."""
  return tiny_runs.make_config(backbone)


@pytest.fixture(scope='session')
def finished_run(run_config, tmp_path_factory):
  """(workdir, result) of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('run') / 'finished'
  return workdir, experiment.run(run_config, str(workdir))


@pytest.fixture
def read(monkeypatch):
  """The images that are read, by the last two parts of their paths."""
  paths, decode = [], image.decode

  def note(path, **draft):
    paths.append('/'.join(path.split('/')[-2:]))
    return decode(path, **draft)

  monkeypatch.setattr(image, 'decode', note)
  return paths
