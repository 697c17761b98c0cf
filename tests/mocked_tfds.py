"""The benchmarks' data sets as TFDS would give them: examples that are a function of data set, split and position, and honour slices."""

import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from glora_jax.data import tfds as tfds_lib
from glora_jax.data.tasks import vtab

# Sizes of the stored splits, as TFDS's catalogue gives them.
SIZES = {
  'cifar100': {'train': 50000, 'test': 10000},
  'caltech101': {'train': 3059, 'test': 6084},
  'dtd': {'train': 1880, 'validation': 1880, 'test': 1880},
  'oxford_flowers102': {'train': 1020, 'validation': 1020, 'test': 6149},
  'oxford_iiit_pet': {'train': 3680, 'test': 3669},
  'svhn_cropped': {'train': 73257, 'test': 26032},
  'sun397': {'train': 76128, 'validation': 10875, 'test': 21750},
  'patch_camelyon': {'train': 262144, 'validation': 32768, 'test': 32768},
  'eurosat': {'train': 27000},
  'resisc45': {'train': 31500},
  'diabetic_retinopathy_detection': {'train': 35126, 'validation': 10906, 'test': 42670},
  'clevr': {'train': 70000, 'validation': 15000, 'test': 15000},
  'dmlab': {'train': 65550, 'validation': 22628, 'test': 22735},
  'kitti': {'train': 6347, 'validation': 423, 'test': 711},
  'dsprites': {'train': 737280},
  'smallnorb': {'train': 24300, 'test': 24300},
  'food101': {'train': 2020, 'validation': 202},
  'cars196': {'train': 3920, 'test': 392},  # shortened, for speed
  'imagenet2012': {'train': 21000, 'validation': 1000},
  'imagenet_v2': {'test': 1000},
  'imagenet_sketch': {'test': 1000},
  'imagenet_a': {'test': 300},
  'imagenet_r': {'test': 300},
}


def resolve(dataset, expression):
  """(split, range of stored positions) of a TFDS split expression."""
  name, start, stop = re.fullmatch(r'(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?', expression).groups()
  size = SIZES[dataset][name]
  position = lambda text, default: (
    default if text is None else size * int(text[:-1]) // 100 if text.endswith('%') else int(text)
  )
  return name, range(position(start, 0), position(stop, size))


class Mocked:
  """What `as_data_source` gives: examples that are a function of data set, split and stored position."""

  def __init__(self, dataset, split, positions, encoded):
    self.dataset, self.split, self.positions, self.encoded = dataset, split, positions, encoded

  def __len__(self):
    return len(self.positions)

  def __getitem__(self, index):
    position = self.positions[int(index)]
    return example(self.dataset, self.split, position, self.encoded)


def pixels(split, position, channels=3):
  image = np.zeros((6, 8, channels), np.uint8)
  image[..., 0] = position % 251
  image[0, 0, -1] = len(split)
  return image


def example(dataset, split, position, encoded=True):
  image = pixels(split, position)
  if dataset in ('dsprites', 'smallnorb'):
    image = image[..., :1] % (2 if dataset == 'dsprites' else 251)
  if encoded:
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, 'png')
    image = buffer.getvalue()
  found = {'image': image}
  if dataset == 'clevr':
    count = 3 + position % 8
    found['objects'] = {
      'size': np.zeros(count, np.int64),
      'pixel_coords': np.full((count, 3), 7.9 + position % 5 * 0.5, np.float32),
    }
  elif dataset == 'kitti':
    types = np.arange(position % 4) + position % 3  # none at all, vehicles, others
    found['objects'] = {
      'type': types,
      'location': np.array(
        [[0, 0, 5.0 + 7 * position % 40 + n] for n in range(len(types))]
      ).reshape(-1, 3),
    }
  elif dataset == 'dsprites':
    found.update(label_x_position=position % 32, label_orientation=position % 40)
  elif dataset == 'smallnorb':
    found.update(label_azimuth=position % 18, label_elevation=position % 9)
  else:
    classes = {'imagenet_a': 200, 'imagenet_r': 200}.get(dataset) or CLASSES[dataset]
    found['label'] = (
      position
      * (5 if dataset.startswith('imagenet_') and classes == 200 else 1)
      % (1000 if classes == 200 else classes)
    )
  return found


CLASSES = {
  record.builder.split(':')[0].split('/')[0]: record.classes
  for record in vtab.RECORDS
  if isinstance(record.classes, int)
}
CLASSES.update(
  {
    'food101': 101,
    'cars196': 196,
    'imagenet2012': 1000,
    'imagenet_v2': 1000,
    'imagenet_sketch': 1000,
  }
)


def as_data_source(self, split, decoders=None, **_):
  dataset = self.name
  name, positions = resolve(dataset, split)
  return Mocked(dataset, name, positions, bool(decoders))


@pytest.fixture
def mocked(monkeypatch):
  monkeypatch.setattr(tfds_lib, 'prepare', lambda builder: None)
  with tfds.testing.mock_data(as_data_source_fn=as_data_source):
    yield
