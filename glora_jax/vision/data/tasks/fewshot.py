"""Few-shot fine-grained classification (GLoRA section 4.2).

Five data sets with 1, 2, 4, 8 or 16 images a class, three seeds. From the lists that NOAH made, as
the papers do; or from TFDS, where the images of a class are drawn by us, with the seed, since the
lists are not part of it, and where FGVC-Aircraft is missing.
"""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

from glora_jax.checks import shown
from glora_jax.vision.data import tfds
from glora_jax.vision.data.label_files import read_list
from glora_jax.vision.data.splits import drawn
from glora_jax.vision.data.task import Examples, Joined, Source, Task, is_count

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2)
MOST_VAL_SHOTS = 4  # as CoOp (arXiv 2109.01134) and the papers after it


class DataSet(NamedTuple):
  """A data set of the benchmark.

  Attributes:
    builder: name in TFDS; None where TFDS lacks it.
    num_classes: number of classes.
    folder: name of NOAH's folder.
    test: TFDS split that is tested on.
    pool: TFDS splits that the images of 'train' and 'val' are drawn from.
  """

  builder: str | None
  num_classes: int
  folder: str
  test: str = 'test'
  pool: tuple[str, ...] = ('train',)


DATA_SETS = {
  'food101': DataSet('food101', 101, 'food-101', test='validation'),
  'stanford_cars': DataSet('cars196', 196, 'stanford_cars'),
  'oxford_flowers102': DataSet(  # whose two parts have ten images a class each
    'oxford_flowers102', 102, 'oxford_flowers', pool=('train', 'validation')
  ),
  'fgvc_aircraft': DataSet(None, 100, 'fgvc_aircraft'),
  'oxford_pets': DataSet('oxford_iiit_pet', 37, 'oxford_pets'),
}
NAMES = tuple(DATA_SETS)


def task(text: str, source: Source) -> Task:
  """The task of 'food101/4/0', from TFDS or from NOAH's lists.

  Raises:
    ValueError: no such data set, number of shots or seed, or a source that has not this data set.
    FileNotFoundError: NOAH's folder is not there.
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
      f'the papers take {", ".join(map(str, SHOTS))}.'
    )
  full_name, data_set = f'fewshot/{name}/{shots}/{seed}', DATA_SETS[name]
  root = source.folder('lists', 'few-shot tasks', "the data sets' folders")
  if root is not None:
    folder = os.path.join(root, data_set.folder)
    return _from_lists(full_name, folder, data_set.num_classes, shots, seed)
  if data_set.builder is None:
    raise ValueError(
      f"TFDS has no data set for {name}; take NOAH's lists: data.source='lists' and data.root."
    )
  builder = tfds.find_builder(data_set.builder, source.dir, source.version)

  def pool() -> Examples:
    return Joined([tfds.read(builder, split) for split in data_set.pool])

  splits = {
    'train': partial(drawn, pool, shots, seed),
    'val': partial(drawn, pool, min(shots, MOST_VAL_SHOTS), seed, skip=shots),
    'test': partial(tfds.read, builder, data_set.test),
  }
  note = (
    f'The {shots} images per class were drawn by glora_jax with seed {seed}; they differ from '
    "NOAH's lists."
  )
  classes = tfds.class_names(builder, data_set.num_classes)
  return tfds.task_of([builder], full_name, classes, splits, notes=(note,))


def _from_lists(name: str, folder: str, num_classes: int, shots: int, seed: int) -> Task:
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'There is no folder {folder}; '
      'it comes with the few-shot data of https://github.com/ZhangYuanhan-AI/NOAH.'
    )
  lists_in, images_in = (
    path if os.path.isdir(path) else folder
    for path in (os.path.join(folder, name) for name in ('annotations', 'images'))
  )
  lists = {
    'train': f'train_meta.list.num_shot_{shots}.seed_{seed}',
    'val': 'val_meta.list',
    'test': 'test_meta.list',
  }
  splits = {
    split: partial(read_list, os.path.join(lists_in, path), (folder, images_in), num_classes)
    for split, path in lists.items()
  }
  classes = tuple(map(str, range(num_classes)))
  return Task(name, classes, splits, f"NOAH's lists in {folder}")
