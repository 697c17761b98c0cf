"""VTAB-1k (Zhai et al. 2019, arXiv 1910.04867): 19 tasks of 800 training and 200 validation images.

The images come from TFDS, as the benchmark's data code (google-research/task_adaptation) defines
them, or from NOAH's folders, which most PyTorch papers use. NOAH saved the images again as JPEG, so
the pixels differ; every result names the source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from glora_jax.checks import shown
from glora_jax.vision.data import tfds
from glora_jax.vision.data.label_files import read_list
from glora_jax.vision.data.task import Source, Task
from glora_jax.vision.data.tfds import Features, LabelFeature, LabelFunction

TRAIN = 'train[:800]'


class VtabTask(NamedTuple):
  """A line of the benchmark's table; all tasks train on `train[:800]`.

  Attributes:
    name: name in the names of tasks.
    group: natural, specialized or structured.
    builder: name in TFDS, with the version that the benchmark asks for.
    val: TFDS split of the 200 validation images.
    test: TFDS split of the test images.
    classes: number of classes.
    label: name of the rule in `LABELS` that turns an example's features into a class.
  """

  name: str
  group: str
  builder: str
  val: str
  test: str
  classes: int
  label: str


_FEWEST_OBJECTS = 3  # of a CLEVR scene
_CLEVR_BOUNDS = (0, 8, 8.5, 9, 9.5, 10, 100)  # bounds of CLEVR's classes
_KITTI_BOUNDS = (-100, 8, 20, 999)  # bounds of KITTI's classes, in metres
_NO_VEHICLE = 1000.0  # depth beyond the last bound
_VEHICLE_TYPES = 3  # KITTI's object types below are car, van and truck


def last_below(value: float, bounds: Sequence[float]) -> int:
  """The largest index whose bound is below the value.

  Example:
    >>> last_below(8.5, (0, 8, 8.5, 9))
    1
  """
  return max(index for index, bound in enumerate(bounds) if bound < value)


def clevr_count(example: Features) -> int:
  """The number of objects, 3 to 10, counted from 0."""
  return len(_objects(example, 'size')) - _FEWEST_OBJECTS


def clevr_distance(example: Features) -> int:
  """The distance of the nearest object to the camera in six bins."""
  return last_below(_objects(example, 'pixel_coords')[:, 2].min(), _CLEVR_BOUNDS)


def kitti_distance(example: Features) -> int:
  """The depth of the nearest vehicle in three bins, or the class of images without vehicles."""
  is_vehicle = _objects(example, 'type') < _VEHICLE_TYPES
  depths = _objects(example, 'location').reshape(-1, 3)[is_vehicle, 2]
  return last_below(np.append(depths, _NO_VEHICLE).min(), _KITTI_BOUNDS)


def dsprites_orientation(example: Features) -> int:
  """The orientation, one of 40, in 16 bins of 40 / 16 = 5 / 2."""
  return 2 * int(example['label_orientation']) // 5


def _objects(example: Features, feature: str) -> np.ndarray:
  return np.asarray(example['objects'][feature])


# The rules of the table's last column, which turn the features of an example into a class.
LABELS: Mapping[str, LabelFunction] = {
  'label': LabelFeature(),
  'clevr_count': clevr_count,
  'clevr_distance': clevr_distance,
  'kitti_distance': kitti_distance,
  'x_position': LabelFeature('label_x_position', bin_size=2),
  'orientation': dsprites_orientation,
  'azimuth': LabelFeature('label_azimuth'),
  'elevation': LabelFeature('label_elevation'),
}

# Name, data set in TFDS with its version, splits of validation and test, classes, label rule: as in
# the benchmark's code.
_TABLE = """
natural
cifar100           cifar100:3.*.*          train[45000:45200]   test           100 label
caltech101         caltech101:3.*.*        train[2754:2954]     test           102 label
dtd                dtd:3.*.*               validation[:200]     test            47 label
oxford_flowers102  oxford_flowers102:2.*.* validation[:200]     test           102 label
oxford_iiit_pet    oxford_iiit_pet:3.*.*   train[2944:3144]     test            37 label
svhn               svhn_cropped:3.0.0      train[65931:66131]   test            10 label
sun397             sun397/tfds:4.*.*       validation[:200]     test           397 label

specialized
patch_camelyon     patch_camelyon:2.*.*    validation[:200]     test             2 label
eurosat            eurosat/rgb:2.*.*       train[16200:16400]   train[21600:]   10 label
resisc45           resisc45:3.*.*          train[18900:19100]   train[25200:]   45 label
diabetic_retinopathy diabetic_retinopathy_detection/btgraham-300:3.*.* validation[:200] test 5 label

structured
clevr_count        clevr:3.*.*             train[63000:63200]   validation       8 clevr_count
clevr_dist         clevr:3.*.*             train[63000:63200]   validation       6 clevr_distance
dmlab              dmlab:2.0.1             validation[:200]     test             6 label
kitti              kitti:3.1.0             validation[:200]     test             4 kitti_distance
dsprites_loc       dsprites:2.*.*          train[589824:590024] train[663552:]  16 x_position
dsprites_ori       dsprites:2.*.*          train[589824:590024] train[663552:]  16 orientation
smallnorb_azi      smallnorb:2.*.*         test[:200]           test[50%:]      18 azimuth
smallnorb_ele      smallnorb:2.*.*         test[:200]           test[50%:]       9 elevation
"""


# Of those tasks whose classes have no names in TFDS, or others.
_CLASSES = {
  'clevr_count': tuple(f'{number} objects' for number in range(3, 11)),
  'clevr_dist': ('below 8', '8 to 8.5', '8.5 to 9', '9 to 9.5', '9.5 to 10', 'above 10'),
  'kitti': ('vehicle below 8 m', 'vehicle 8 to 20 m', 'vehicle above 20 m', 'no vehicle'),
  'dsprites_loc': tuple(f'x bin {number}' for number in range(16)),
  'dsprites_ori': tuple(f'orientation bin {number}' for number in range(16)),
  'smallnorb_azi': tuple(f'azimuth {angle} degrees' for angle in range(0, 360, 20)),
  'smallnorb_ele': tuple(f'elevation {angle} degrees' for angle in range(30, 75, 5)),
}
_SCALES = {'dsprites_loc': 255, 'dsprites_ori': 255}  # from stored values to pixels
# Names in copies of NOAH's folder that differ from those of the tasks.
_FOLDERS = {
  'cifar100': ('cifar', 'cifar100'),
  'oxford_iiit_pet': ('oxford_iiit_pet', 'oxford_pet'),
}


def _read_table() -> Iterator[VtabTask]:
  group = ''
  for line in filter(None, _TABLE.splitlines()):
    name, *cells = line.split()
    if not cells:
      group = name
      continue
    builder, val, test, classes, label = cells
    yield VtabTask(name, group, builder, val, test, int(classes), label)


TASKS = tuple(_read_table())
NAMES = tuple(vtab_task.name for vtab_task in TASKS)


def find(name: str) -> VtabTask:
  """The task of a name.

  Raises:
    ValueError: there is no task of this name.

  Example:
    >>> find('kitti').group
    'structured'
  """
  if name not in NAMES:
    raise ValueError(f'VTAB-1k has no task {shown(name)}; its tasks are {", ".join(NAMES)}.')
  return TASKS[NAMES.index(name)]


def task(name: str, source: Source) -> Task:
  """The task of a name, from TFDS or from NOAH's folder.

  Raises:
    ValueError: there is no task or source of this name.
    FileNotFoundError: NOAH's folder does not exist.
  """
  root = source.folder('noah', 'VTAB-1k', "vtab-1k's task folders")
  _, _, full_name, val, test, num_classes, label = find(name)
  builder = tfds.find_builder(full_name, source.dir, source.version)
  classes = _CLASSES.get(name) or tfds.class_names(builder, num_classes)
  if root is not None:
    bases = (root, os.path.join(root, 'vtab-1k'))
    candidates = [
      os.path.join(base, folder) for base in bases for folder in _FOLDERS.get(name, (name,))
    ]
    folder = next(filter(os.path.isdir, candidates), None)
    if folder is None:
      raise FileNotFoundError(
        f'There is no folder {candidates[0]}; '
        'it is part of the vtab-1k archive of https://github.com/ZhangYuanhan-AI/NOAH.'
      )
    lists = {'train': 'train800.txt', 'val': 'val200.txt', 'test': 'test.txt'}
    splits = {
      split: partial(read_list, os.path.join(folder, list_name), (folder,), len(classes))
      for split, list_name in lists.items()
    }
    return Task(f'vtab/{name}', classes, splits, f"NOAH's folder {folder}")
  expressions = {'train': TRAIN, 'val': val, 'test': test}
  splits = {
    split: partial(tfds.read, builder, expression, LABELS[label], _SCALES.get(name, 1))
    for split, expression in expressions.items()
  }
  notes = ()
  if not builder.version.match(source.version or full_name.partition(':')[2]):
    notes = (
      f'TFDS {builder.info.full_name} replaces {full_name}: its examples have another order, so '
      "the 800 training examples are not the benchmark's.",
    )
  return tfds.task_of([builder], f'vtab/{name}', classes, splits, notes=notes)
