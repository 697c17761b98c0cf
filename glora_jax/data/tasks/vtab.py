"""VTAB-1k (Zhai et al. 2019, arXiv 1910.04867): 19 tasks of 800 training and 200 validation images.

From TFDS as the benchmark's own data code (google-research/task_adaptation) defines them, or from
the folders that NOAH made and most PyTorch papers use, whose images were saved again as JPEG:
pixels differ, and every result says which it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from glora_jax.data import tfds
from glora_jax.data.label_files import ListedSplit
from glora_jax.data.task import Source, Task
from glora_jax.data.tfds import Builder, Example, LabelFeature, LabelFunction, TfdsSplit
from glora_jax.limits import shown

Group = Literal['natural', 'specialized', 'structured']
GROUPS: tuple[Group, ...] = ('natural', 'specialized', 'structured')
TRAIN = 'train[:800]'


class StoredSplits(NamedTuple):
  """The TFDS splits that a task validates and tests on; all tasks train on `train[:800]`.

  Attributes:
    val: split expression of the 200 validation images.
    test: split expression of the test images.
    num_test: number of the test images.
  """

  val: str
  test: str
  num_test: int


class VtabTask(NamedTuple):
  """A task of the benchmark.

  Attributes:
    name: name in the names of tasks.
    group: natural, specialized or structured.
    builder: name in TFDS, with the version that the benchmark asks for.
    splits: what is validated and tested on.
    classes: names of the classes, or how many there are where TFDS has their names.
    label: function from the features of an example to its class.
    folders: names that copies of NOAH's folder have; empty where it is the name of the task.
    scale: factor from stored values to pixels.
  """

  name: str
  group: Group
  builder: str
  splits: StoredSplits
  classes: int | tuple[str, ...]
  label: LabelFunction = LabelFeature()
  folders: tuple[str, ...] = ()
  scale: int = 1

  @property
  def num_classes(self) -> int:
    """The number of classes."""
    return self.classes if isinstance(self.classes, int) else len(self.classes)


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


def clevr_count(example: Example) -> int:
  """The number of objects, 3 to 10, counted from 0."""
  return len(_objects(example, 'size')) - _FEWEST_OBJECTS


def clevr_distance(example: Example) -> int:
  """The distance of the nearest object to the camera in six bins."""
  return last_below(_objects(example, 'pixel_coords')[:, 2].min(), _CLEVR_BOUNDS)


def kitti_distance(example: Example) -> int:
  """The depth of the nearest vehicle in three bins, or the class of images without vehicles."""
  is_vehicle = _objects(example, 'type') < _VEHICLE_TYPES
  depths = _objects(example, 'location').reshape(-1, 3)[is_vehicle, 2]
  return last_below(np.append(depths, _NO_VEHICLE).min(), _KITTI_BOUNDS)


def dsprites_orientation(example: Example) -> int:
  """The orientation, one of 40, in 16 bins of 40 / 16 = 5 / 2."""
  return 2 * int(example['label_orientation']) // 5


def _objects(example: Example, feature: str) -> np.ndarray:
  return np.asarray(example['objects'][feature])


def _numbered(pattern: str, numbers: range) -> tuple[str, ...]:
  return tuple(pattern.format(number) for number in numbers)


_CLEVR = StoredSplits('train[63000:63200]', 'validation', 15000)
_DSPRITES = StoredSplits('train[589824:590024]', 'train[663552:]', 73728)
_NORB = StoredSplits('test[:200]', 'test[50%:]', 12150)

_COUNTS = _numbered('{} objects', range(3, 11))
_DISTANCES = ('below 8', '8 to 8.5', '8.5 to 9', '9 to 9.5', '9.5 to 10', 'above 10')
_VEHICLES = ('vehicle below 8 m', 'vehicle 8 to 20 m', 'vehicle above 20 m', 'no vehicle')
_POSITIONS = _numbered('x bin {}', range(16))
_ORIENTATIONS = _numbered('orientation bin {}', range(16))
_AZIMUTHS = _numbered('azimuth {} degrees', range(0, 360, 20))
_ELEVATIONS = _numbered('elevation {} degrees', range(30, 75, 5))

TASKS = (
  VtabTask(
    'cifar100',
    'natural',
    builder='cifar100:3.*.*',
    splits=StoredSplits('train[45000:45200]', 'test', 10000),
    classes=100,
    folders=('cifar', 'cifar100'),
  ),
  VtabTask(
    'caltech101',
    'natural',
    builder='caltech101:3.*.*',
    splits=StoredSplits('train[2754:2954]', 'test', 6084),
    classes=102,
  ),
  VtabTask(
    'dtd',
    'natural',
    builder='dtd:3.*.*',
    splits=StoredSplits('validation[:200]', 'test', 1880),
    classes=47,
  ),
  VtabTask(
    'oxford_flowers102',
    'natural',
    builder='oxford_flowers102:2.*.*',
    splits=StoredSplits('validation[:200]', 'test', 6149),
    classes=102,
  ),
  VtabTask(
    'oxford_iiit_pet',
    'natural',
    builder='oxford_iiit_pet:3.*.*',
    splits=StoredSplits('train[2944:3144]', 'test', 3669),
    classes=37,
    folders=('oxford_iiit_pet', 'oxford_pet'),
  ),
  VtabTask(
    'svhn',
    'natural',
    builder='svhn_cropped:3.0.0',
    splits=StoredSplits('train[65931:66131]', 'test', 26032),
    classes=10,
  ),
  VtabTask(
    'sun397',
    'natural',
    builder='sun397/tfds:4.*.*',
    splits=StoredSplits('validation[:200]', 'test', 21750),
    classes=397,
  ),
  VtabTask(
    'patch_camelyon',
    'specialized',
    builder='patch_camelyon:2.*.*',
    splits=StoredSplits('validation[:200]', 'test', 32768),
    classes=2,
  ),
  VtabTask(
    'eurosat',
    'specialized',
    builder='eurosat/rgb:2.*.*',
    splits=StoredSplits('train[16200:16400]', 'train[21600:]', 5400),
    classes=10,
  ),
  VtabTask(
    'resisc45',
    'specialized',
    builder='resisc45:3.*.*',
    splits=StoredSplits('train[18900:19100]', 'train[25200:]', 6300),
    classes=45,
  ),
  VtabTask(
    'diabetic_retinopathy',
    'specialized',
    builder='diabetic_retinopathy_detection/btgraham-300:3.*.*',
    splits=StoredSplits('validation[:200]', 'test', 42670),
    classes=5,
  ),
  VtabTask(
    'clevr_count',
    'structured',
    builder='clevr:3.*.*',
    splits=_CLEVR,
    classes=_COUNTS,
    label=clevr_count,
  ),
  VtabTask(
    'clevr_dist',
    'structured',
    builder='clevr:3.*.*',
    splits=_CLEVR,
    classes=_DISTANCES,
    label=clevr_distance,
  ),
  VtabTask(
    'dmlab',
    'structured',
    builder='dmlab:2.0.1',
    splits=StoredSplits('validation[:200]', 'test', 22735),
    classes=6,
  ),
  VtabTask(
    'kitti',
    'structured',
    builder='kitti:3.1.0',
    splits=StoredSplits('validation[:200]', 'test', 711),
    classes=_VEHICLES,
    label=kitti_distance,
  ),
  VtabTask(
    'dsprites_loc',
    'structured',
    builder='dsprites:2.*.*',
    splits=_DSPRITES,
    classes=_POSITIONS,
    label=LabelFeature('label_x_position', bin_size=2),
    scale=255,
  ),
  VtabTask(
    'dsprites_ori',
    'structured',
    builder='dsprites:2.*.*',
    splits=_DSPRITES,
    classes=_ORIENTATIONS,
    label=dsprites_orientation,
    scale=255,
  ),
  VtabTask(
    'smallnorb_azi',
    'structured',
    builder='smallnorb:2.*.*',
    splits=_NORB,
    classes=_AZIMUTHS,
    label=LabelFeature('label_azimuth'),
  ),
  VtabTask(
    'smallnorb_ele',
    'structured',
    builder='smallnorb:2.*.*',
    splits=_NORB,
    classes=_ELEVATIONS,
    label=LabelFeature('label_elevation'),
  ),
)
NAMES = tuple(vtab_task.name for vtab_task in TASKS)

_NOAH_LISTS = {'train': 'train800.txt', 'val': 'val200.txt', 'test': 'test.txt'}


def find(name: str) -> VtabTask:
  """The task of a name.

  Raises:
    ValueError: no such task.

  Example:
    >>> find('kitti').classes[-1]
    'no vehicle'
  """
  for vtab_task in TASKS:
    if vtab_task.name == name:
      return vtab_task
  raise ValueError(f'VTAB-1k has no task {shown(name)}; its tasks are {", ".join(NAMES)}.')


def task(name: str, source: Source) -> Task:
  """The task of a name, from TFDS or from NOAH's folder.

  Raises:
    ValueError: no such task or source.
    FileNotFoundError: NOAH's folder is not there.
  """
  if source.kind(('tfds', 'noah'), 'VTAB-1k') == 'noah':
    return _from_noah(find(name), source)
  return _from_tfds(find(name), source)


def _class_names(vtab_task: VtabTask, builder: Builder) -> tuple[str, ...]:
  if isinstance(vtab_task.classes, int):
    return tfds.class_names(builder, vtab_task.classes)
  return vtab_task.classes


def _from_tfds(vtab_task: VtabTask, source: Source) -> Task:
  builder = tfds.find_builder(vtab_task.builder, source.dir, source.version)
  expressions = {'train': TRAIN, 'val': vtab_task.splits.val, 'test': vtab_task.splits.test}
  splits = {
    split: TfdsSplit(builder, expression, vtab_task.label, vtab_task.scale)
    for split, expression in expressions.items()
  }
  notes = ()
  wanted_version = source.version or vtab_task.builder.partition(':')[2]
  if not builder.version.match(wanted_version):
    notes = (
      f'TFDS {builder.info.full_name} serves in place of {vtab_task.builder}: the order of its '
      "examples, and so the 800 that are trained on, is not the benchmark's.",
    )
  classes = _class_names(vtab_task, builder)
  name = f'vtab/{vtab_task.name}'
  return tfds.task_of([builder], name, classes, splits, notes=notes, group=vtab_task.group)


def _from_noah(vtab_task: VtabTask, source: Source) -> Task:
  root = source.folder("vtab-1k's task folders")
  candidates = [
    os.path.join(base, name)
    for base in (root, os.path.join(root, 'vtab-1k'))
    for name in vtab_task.folders or (vtab_task.name,)
  ]
  folder = next((path for path in candidates if os.path.isdir(path)), None)
  if folder is None:
    raise FileNotFoundError(
      f'There is no folder {candidates[0]}; '
      'it comes with the vtab-1k archive of https://github.com/ZhangYuanhan-AI/NOAH.'
    )
  classes = _class_names(vtab_task, tfds.find_builder(vtab_task.builder, source.dir))
  splits = {
    split: ListedSplit(os.path.join(folder, name), (folder,), len(classes))
    for split, name in _NOAH_LISTS.items()
  }
  name = f'vtab/{vtab_task.name}'
  return Task(name, classes, splits, f"NOAH's folder {folder}", group=vtab_task.group)
