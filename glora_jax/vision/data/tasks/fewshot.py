"""A few images of each class: few-shot classification and domain generalization (GLoRA 4.2, 4.3).

Few-shot: five fine-grained data sets with 1, 2, 4, 8 or 16 images of each class. Domain
generalization: 16 images of each class of ImageNet, tested on ImageNet and on the shifted sets V2,
Sketch, A and R. The last two have 200 of the 1,000 classes, and answers are chosen among these.

The images come from NOAH's lists, as in the papers, or from TFDS. TFDS does not have the lists, so
there the images of a class are drawn here, with the seed; it also lacks FGVC-Aircraft.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from glora_jax.checks import shown
from glora_jax.vision.data import tfds
from glora_jax.vision.data.label_files import read_list
from glora_jax.vision.data.splits import drawn
from glora_jax.vision.data.task import Examples, Joined, Source, Task, is_count

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2)
GENERALIZATION_SHOTS = 16
MOST_VAL_SHOTS = 4  # as CoOp (arXiv 2109.01134) and the papers after it


class TestSet(NamedTuple):
  """A shifted test set.

  Attributes:
    name: name of the split.
    builder: name in TFDS, with the version.
    folder: name of NOAH's folder.
    lacks_classes: whether it has only a part of the classes.
  """

  name: str
  builder: str
  folder: str
  lacks_classes: bool = False


class DataSet(NamedTuple):
  """A data set of the benchmarks.

  Attributes:
    builder: name in TFDS; None if TFDS lacks it.
    num_classes: number of classes.
    folder: name of NOAH's folder.
    test: TFDS split that is tested on.
    pool: TFDS splits that the images of 'train' and 'val' are drawn from.
    lists: names of NOAH's lists of 'val' and 'test'.
    shifted: further test sets.
  """

  builder: str | None
  num_classes: int
  folder: str
  test: str = 'test'
  pool: tuple[str, ...] = ('train',)
  lists: tuple[str, str] = ('val_meta.list', 'test_meta.list')
  shifted: tuple[TestSet, ...] = ()


DATA_SETS = {
  'food101': DataSet('food101', 101, 'food-101', test='validation'),
  'stanford_cars': DataSet('cars196', 196, 'stanford_cars'),
  'oxford_flowers102': DataSet(  # its two parts have ten images of a class each
    'oxford_flowers102', 102, 'oxford_flowers', pool=('train', 'validation')
  ),
  'fgvc_aircraft': DataSet(None, 100, 'fgvc_aircraft'),
  'oxford_pets': DataSet('oxford_iiit_pet', 37, 'oxford_pets'),
}
NAMES = tuple(DATA_SETS)
IMAGENET = DataSet(
  'imagenet2012:5.*.*',
  1000,
  'imagenet',
  test='validation',
  lists=('unofficial_val_list_4_shot16seed0', 'val_meta.list'),
  shifted=(
    TestSet('v2', 'imagenet_v2/matched-frequency:3.*.*', 'imagenetv2'),
    TestSet('sketch', 'imagenet_sketch:1.*.*', 'imagenet-sketch'),
    TestSet('a', 'imagenet_a:0.*.*', 'imagenet-adversarial', lacks_classes=True),
    TestSet('r', 'imagenet_r:0.*.*', 'imagenet-rendition', lacks_classes=True),
  ),
)


def task(text: str, source: Source) -> Task:
  """The few-shot task of 'food101/4/0', from TFDS or from NOAH's lists.

  Raises:
    ValueError: an unknown data set, number of shots or seed, or a source without this data set.
    FileNotFoundError: NOAH's folder does not exist.
  """
  name, *numbers = text.split('/')
  if name not in DATA_SETS or len(numbers) != 2 or not all(map(is_count, numbers)):
    raise ValueError(
      f"{shown('fewshot/' + text)} is not a few-shot task; 'fewshot/food101/4/0' is one: data set "
      f'({", ".join(NAMES)}), shots, seed.'
    )
  shots, seed = map(int, numbers)
  if shots < 1:
    raise ValueError(
      f'fewshot/{text}: {shots} shots leave nothing to train on; '
      f'the papers use {", ".join(map(str, SHOTS))}.'
    )
  return _task(f'fewshot/{name}/{shots}/{seed}', DATA_SETS[name], shots, seed, source)


def generalization(text: str, source: Source) -> Task:
  """The domain generalization of a seed, '0', from TFDS or from NOAH's lists.

  Raises:
    ValueError: an unknown seed or source, or a version, which its data sets do not share.
    FileNotFoundError: NOAH's folder does not exist.
  """
  if not is_count(text):
    raise ValueError(
      f'{shown("generalization/" + text)} is not a task; '
      "'generalization/0' is one, with the seed of the 16 images per class."
    )
  name = f'generalization/{int(text)}'
  if source.version is not None:
    raise ValueError(
      f'data.version={shown(source.version)} cannot apply to all data sets of {name}; leave it out.'
    )
  return _task(name, IMAGENET, GENERALIZATION_SHOTS, int(text), source)


def _task(name: str, data_set: DataSet, shots: int, seed: int, source: Source) -> Task:
  """A task with a number of images of each class."""
  number, shifted = data_set.num_classes, data_set.shifted
  masked = tuple(test_set.name for test_set in shifted if test_set.lacks_classes)
  root = source.folder('lists', name, "the data sets' folders")
  splits: dict[str, Callable[[], Examples]]
  if root is not None:
    folder, (val, test) = os.path.join(root, data_set.folder), data_set.lists
    if not os.path.isdir(folder):
      raise FileNotFoundError(
        f'There is no folder {folder}; '
        'it is part of the few-shot data of https://github.com/ZhangYuanhan-AI/NOAH.'
      )
    splits = {
      'train': _list(folder, f'train_meta.list.num_shot_{shots}.seed_{seed}', number),
      'val': _list(folder, val, number),
      'test': _list(folder, test, number),
      **{x.name: _list(os.path.join(root, x.folder), test, number) for x in shifted},
    }
    classes = tuple(map(str, range(number)))
    return Task(name, classes, splits, f"NOAH's lists in {folder}", masked=masked)
  if data_set.builder is None:
    raise ValueError(
      f"TFDS has no data set for {name}; use NOAH's lists: data.source='lists' and data.root."
    )
  builder = tfds.find_builder(data_set.builder, source.dir, source.version)
  others = {x.name: tfds.find_builder(x.builder, source.dir) for x in shifted}

  def pool() -> Examples:
    return Joined([tfds.read(builder, split) for split in data_set.pool])

  val_shots = min(shots, MOST_VAL_SHOTS)
  splits = {
    'train': partial(drawn, pool, shots, seed),
    'val': partial(drawn, pool, val_shots, seed, skip=shots),
    'test': partial(tfds.read, builder, data_set.test),
    **{split: partial(tfds.read, other, 'test') for split, other in others.items()},
  }
  note = (
    f'The {shots} images per class were drawn by glora_jax with seed {seed}; they differ from '
    f"NOAH's lists. Validation: {val_shots} further training images per class."
  )
  classes = tfds.class_names(builder, number)
  builders = [builder, *others.values()]
  return tfds.task_of(builders, name, classes, splits, notes=(note,), masked=masked)


def _list(folder: str, name: str, num_classes: int) -> Callable[[], Examples]:
  """Reads a list of NOAH, whose images are in a separate folder or next to the list."""
  lists_in, images_in = (
    path if os.path.isdir(path) else folder
    for path in (os.path.join(folder, inside) for inside in ('annotations', 'images'))
  )
  return partial(read_list, os.path.join(lists_in, name), (folder, images_in), num_classes)
