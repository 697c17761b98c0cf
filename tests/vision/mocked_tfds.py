"""The benchmarks' data sets as TFDS would give them, without their images.

Examples are a function of data set, split and position, and splits honour slices.
"""

import dataclasses
import functools
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from label_lists import encoded
from PIL import Image

from glora_jax.vision.data import tfds as tfds_lib
from glora_jax.vision.data.tasks import vtab

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
  # Shortened, for speed.
  'food101': {'train': 2020, 'validation': 202},
  'cars196': {'train': 3920, 'test': 392},
  'imagenet2012': {'train': 21000, 'validation': 1000},
  'imagenet_v2': {'test': 1000},
  'imagenet_sketch': {'test': 1000},
  'imagenet_a': {'test': 300},
  'imagenet_r': {'test': 300},
}


def dataset_of(vtab_task):
  """The name of a VTAB task's data set, without configuration and version."""
  return vtab_task.builder.split(':')[0].split('/')[0]


CLASSES = {dataset_of(vtab_task): vtab_task.classes for vtab_task in vtab.TASKS}
CLASSES.update(food101=101, cars196=196, imagenet2012=1000, imagenet_v2=1000, imagenet_sketch=1000)


def resolve(dataset, expression):
  """(split, range of stored positions) of a TFDS split expression."""
  infos = {name: types.SimpleNamespace(num_examples=size) for name, size in SIZES[dataset].items()}
  [part] = tfds.core.ReadInstruction.from_spec(expression).to_absolute(infos)
  return part.splitname, range(part.from_ or 0, part.to or SIZES[dataset][part.splitname])


@dataclasses.dataclass
class Mocked:
  """What `as_data_source` gives: examples by index."""

  dataset: str
  split: str
  positions: range

  def __len__(self):
    return len(self.positions)

  def __getitem__(self, index):
    position = self.positions[int(index)]
    image = grey_image(stored_value(self.dataset, self.split, position))
    return {'image': image, **label_features(self.dataset, position)}

  def __getitems__(self, indices):
    return [self[index] for index in indices]


def stored_value(dataset, split, position):
  """The value of all pixels of an image, as it is stored."""
  return (position + len(split)) % (2 if dataset == 'dsprites' else 251)


@functools.cache
def grey_image(value):
  return encoded(Image.new('L', (6, 8), value))


def label_features(dataset, position):
  """The features that the label of an example is made of."""
  match dataset:
    case 'clevr':
      count = 3 + position % 8
      nearest = 7.9 + position % 5 * 0.5
      coordinates = np.full((count, 3), nearest, np.float32)
      return {'objects': {'size': np.zeros(count, np.int64), 'pixel_coords': coordinates}}
    case 'kitti':
      types = np.arange(position % 4) + position % 3  # none at all, vehicles, others
      depths = [5.0 + 7 * position % 40 + n for n in range(len(types))]
      locations = np.array([[0, 0, depth] for depth in depths]).reshape(-1, 3)
      return {'objects': {'type': types, 'location': locations}}
    case 'dsprites':
      return {'label_x_position': position % 32, 'label_orientation': position % 40}
    case 'smallnorb':
      return {'label_azimuth': position % 18, 'label_elevation': position % 9}
    case 'imagenet_a' | 'imagenet_r':  # every fifth class of ImageNet
      return {'label': position * 5 % 1000}
    case _:
      return {'label': position % CLASSES[dataset]}


def as_data_source(self, split, **_):
  """Takes the place of the method of every builder."""
  name, positions = resolve(self.name, split)
  return Mocked(self.name, name, positions)


@pytest.fixture
def mocked(monkeypatch):
  monkeypatch.setattr(tfds_lib, 'prepare', lambda builder: None)
  with tfds.testing.mock_data(as_data_source_fn=as_data_source):
    yield
