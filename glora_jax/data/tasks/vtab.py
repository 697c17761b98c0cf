"""VTAB-1k (Zhai et al. 2019, arXiv 1910.04867): 19 tasks of 800 training and 200 validation images.

From TFDS as the benchmark's own data code (google-research/task_adaptation) defines them, or from the folders that NOAH made and most
PyTorch papers use, whose images were saved again as JPEG: pixels differ, and every result says which it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glora_jax.data import tfds
from glora_jax.data.examples import Examples
from glora_jax.data.label_files import read_list
from glora_jax.data.task import Source, Task

TRAIN = 'train[:800]'
GROUPS = ('natural', 'specialized', 'structured')


def last_below(value: float, thresholds: Sequence[float]) -> int:
  """The largest index whose threshold is below the value."""
  return max(index for index, threshold in enumerate(thresholds) if threshold < value)


def _objects(example: Mapping[str, Any], key: str) -> np.ndarray:
  return np.asarray(example['objects'][key])


def clevr_count(example):
  return len(_objects(example, 'size')) - 3


def clevr_distance(example):
  return last_below(_objects(example, 'pixel_coords')[:, 2].min(), (0, 8, 8.5, 9, 9.5, 10, 100))


def kitti_distance(example):
  """Of the nearest vehicle; 1000 stands for none, so that it is a class of its own."""
  vehicles = _objects(example, 'type') < 3
  depths = np.append(_objects(example, 'location').reshape(-1, 3)[vehicles, 2], 1000.0)
  return last_below(depths.min(), (-100, 8, 20, 999))


def dsprites_orientation(example):
  """40 orientations in 16 bins of 40 / 16 = 5 / 2."""
  return 2 * int(example['label_orientation']) // 5


def _key(name, divide=1):
  return lambda example: int(example[name]) // divide


class Record(NamedTuple):
  """A row of the benchmark.

  Attributes:
    name: as papers call it.
    group: natural, specialized or structured.
    builder: of TFDS, with the version the benchmark asks for.
    label: TFDS example -> class.
    classes: how many, or their names where TFDS has none.
    val, test: split expressions; `train` is `train[:800]` everywhere.
    num_test: images of the test split.
    folder: NOAH's name of it.
    scale: that stored values are multiplied with to be pixels.
  """

  name: str
  group: str
  builder: str
  label: Callable[[Mapping[str, Any]], int]
  classes: int | tuple[str, ...]
  val: str
  test: str
  num_test: int
  folder: str
  scale: int = 1


_COUNTS = tuple(f'{n} objects' for n in range(3, 11))
_NEAR = ('below 8', '8 to 8.5', '8.5 to 9', '9 to 9.5', '9.5 to 10', 'above 10')
_VEHICLES = ('vehicle below 8 m', 'vehicle 8 to 20 m', 'vehicle above 20 m', 'no vehicle')
_X, _ANGLES = (
  tuple(f'x bin {n}' for n in range(16)),
  tuple(f'orientation bin {n}' for n in range(16)),
)
_AZIMUTHS, _ELEVATIONS = (
  tuple(f'azimuth {20 * n} degrees' for n in range(18)),
  tuple(f'elevation {30 + 5 * n} degrees' for n in range(9)),
)
_DSPRITES = 'train[589824:590024]', 'train[663552:]', 73728
_CLEVR, _NORB = ('train[63000:63200]', 'validation', 15000), ('test[:200]', 'test[50%:]', 12150)

RECORDS = (
  Record(
    'cifar100',
    'natural',
    'cifar100:3.*.*',
    _key('label'),
    100,
    'train[45000:45200]',
    'test',
    10000,
    'cifar',
  ),
  Record(
    'caltech101',
    'natural',
    'caltech101:3.*.*',
    _key('label'),
    102,
    'train[2754:2954]',
    'test',
    6084,
    'caltech101',
  ),
  Record('dtd', 'natural', 'dtd:3.*.*', _key('label'), 47, 'validation[:200]', 'test', 1880, 'dtd'),
  Record(
    'oxford_flowers102',
    'natural',
    'oxford_flowers102:2.*.*',
    _key('label'),
    102,
    'validation[:200]',
    'test',
    6149,
    'oxford_flowers102',
  ),
  Record(
    'oxford_iiit_pet',
    'natural',
    'oxford_iiit_pet:3.*.*',
    _key('label'),
    37,
    'train[2944:3144]',
    'test',
    3669,
    'oxford_iiit_pet',
  ),
  Record(
    'svhn',
    'natural',
    'svhn_cropped:3.0.0',
    _key('label'),
    10,
    'train[65931:66131]',
    'test',
    26032,
    'svhn',
  ),
  Record(
    'sun397',
    'natural',
    'sun397/tfds:4.*.*',
    _key('label'),
    397,
    'validation[:200]',
    'test',
    21750,
    'sun397',
  ),
  Record(
    'patch_camelyon',
    'specialized',
    'patch_camelyon:2.*.*',
    _key('label'),
    2,
    'validation[:200]',
    'test',
    32768,
    'patch_camelyon',
  ),
  Record(
    'eurosat',
    'specialized',
    'eurosat/rgb:2.*.*',
    _key('label'),
    10,
    'train[16200:16400]',
    'train[21600:]',
    5400,
    'eurosat',
  ),
  Record(
    'resisc45',
    'specialized',
    'resisc45:3.*.*',
    _key('label'),
    45,
    'train[18900:19100]',
    'train[25200:]',
    6300,
    'resisc45',
  ),
  Record(
    'diabetic_retinopathy',
    'specialized',
    'diabetic_retinopathy_detection/btgraham-300:3.*.*',
    _key('label'),
    5,
    'validation[:200]',
    'test',
    42670,
    'diabetic_retinopathy',
  ),
  Record('clevr_count', 'structured', 'clevr:3.*.*', clevr_count, _COUNTS, *_CLEVR, 'clevr_count'),
  Record('clevr_dist', 'structured', 'clevr:3.*.*', clevr_distance, _NEAR, *_CLEVR, 'clevr_dist'),
  Record(
    'dmlab',
    'structured',
    'dmlab:2.0.1',
    _key('label'),
    6,
    'validation[:200]',
    'test',
    22735,
    'dmlab',
  ),
  Record(
    'kitti',
    'structured',
    'kitti:3.1.0',
    kitti_distance,
    _VEHICLES,
    'validation[:200]',
    'test',
    711,
    'kitti',
  ),
  Record(
    'dsprites_loc',
    'structured',
    'dsprites:2.*.*',
    _key('label_x_position', 2),
    _X,
    *_DSPRITES,
    'dsprites_loc',
    255,
  ),
  Record(
    'dsprites_ori',
    'structured',
    'dsprites:2.*.*',
    dsprites_orientation,
    _ANGLES,
    *_DSPRITES,
    'dsprites_ori',
    255,
  ),
  Record(
    'smallnorb_azi',
    'structured',
    'smallnorb:2.*.*',
    _key('label_azimuth'),
    _AZIMUTHS,
    *_NORB,
    'smallnorb_azi',
  ),
  Record(
    'smallnorb_ele',
    'structured',
    'smallnorb:2.*.*',
    _key('label_elevation'),
    _ELEVATIONS,
    *_NORB,
    'smallnorb_ele',
  ),
)
OTHER_FOLDERS = {
  'cifar': 'cifar100',
  'oxford_iiit_pet': 'oxford_pet',
}  # as some copies of NOAH's folders call them


def names() -> tuple[str, ...]:
  return tuple(record.name for record in RECORDS)


def record(name: str) -> Record:
  """The record of a task.

  Raises:
    ValueError: no such task.
  """
  for one in RECORDS:
    if one.name == name:
      return one
  raise ValueError(f"VTAB-1k has no task '{name}'; its tasks are {', '.join(names())}.")


def task(name: str, source: Source) -> Task:
  """The task of a name, from TFDS or from NOAH's folder.

  Raises:
    ValueError, FileNotFoundError: no such task or source; NOAH's folder is not there.
  """
  if (source.source or 'tfds') == 'tfds':
    return _from_tfds(record(name), source)
  if source.source == 'noah':
    return _from_noah(record(name), source)
  raise ValueError(f"data.source='{source.source}' is unknown for VTAB-1k; it is 'tfds' or 'noah'.")


def _class_names(one: Record, builder) -> tuple[str, ...]:
  if not isinstance(one.classes, int):
    return one.classes
  known = builder.info.features['label'].names if 'label' in builder.info.features else None
  return (
    tuple(known) if known and len(known) == one.classes else tuple(map(str, range(one.classes)))
  )


def _from_tfds(one, source):
  builder = tfds.find_builder(one.builder, source.dir, source.version)

  def image(example):
    found = example['image']
    return found * np.uint8(one.scale) if isinstance(found, np.ndarray) else found

  def open_split(split):
    def opened() -> Examples:
      tfds.prepare(builder)
      keys = (
        () if one.scale != 1 else ('image',)
      )  # stored values that are no pixels yet are decoded by TFDS
      return tfds.read(builder, split, image, one.label, keys)

    return opened

  asked = (source.version or one.builder.partition(':')[2]).split('*')[0]
  notes = (
    ()
    if str(builder.version).startswith(asked)
    else (
      f'TFDS {builder.info.full_name} serves in place of {one.builder}: the order of its examples, and so the 800 that are trained on, is '
      "not the benchmark's.",
    )
  )
  splits = {'train': open_split(TRAIN), 'val': open_split(one.val), 'test': open_split(one.test)}
  return Task(
    f'vtab/{one.name}',
    _class_names(one, builder),
    splits,
    f'TFDS {builder.info.full_name}',
    notes,
    one.group,
    missing=tfds.missing(builder),
  )


def _from_noah(one, source):
  if source.root is None:
    raise ValueError(
      "data.source='noah' needs data.root, the folder that holds vtab-1k's task folders."
    )
  root = os.path.expanduser(source.root)
  candidates = [
    os.path.join(base, name)
    for base in (root, os.path.join(root, 'vtab-1k'))
    for name in (one.folder, one.name, OTHER_FOLDERS.get(one.folder))
    if name
  ]
  found = next((path for path in candidates if os.path.isdir(path)), None)
  if found is None:
    raise FileNotFoundError(
      f'There is no folder {candidates[0]}; it comes with the vtab-1k archive of https://github.com/ZhangYuanhan-AI/NOAH.'
    )
  classes = _class_names(one, tfds.find_builder(one.builder, source.dir))
  opened = lambda file: lambda: read_list(os.path.join(found, file), found, len(classes))
  splits = {
    'train': opened('train800.txt'),
    'val': opened('val200.txt'),
    'test': opened('test.txt'),
  }
  return Task(f'vtab/{one.name}', classes, splits, f"NOAH's folder {found}", group=one.group)
