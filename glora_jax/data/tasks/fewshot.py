"""Few-shot fine-grained classification (GLoRA section 4.2).

Five data sets with 1, 2, 4, 8 or 16 images a class, three seeds. From the lists that NOAH made, as
the papers do; or from TFDS, where the images of a class are drawn by us, with the seed, since the
lists are not part of it, and where FGVC-Aircraft is missing.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from glora_jax.data import tfds
from glora_jax.data.label_files import ListedSplit
from glora_jax.data.splits import JoinedSplits, Shots
from glora_jax.data.task import Source, Task, is_count
from glora_jax.data.tfds import TfdsSplit
from glora_jax.limits import shown

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2)
MOST_VAL_SHOTS = 4  # as CoOp (arXiv 2109.01134) and the papers after it


class DataSet(NamedTuple):
  """A data set of the benchmark.

  Attributes:
    name: name in the names of tasks.
    builder: name in TFDS; None where TFDS lacks it.
    num_classes: number of classes.
    test: TFDS split that is tested on.
    folder: name of NOAH's folder.
    pool: TFDS splits that the images of 'train' and 'val' are drawn from.
  """

  name: str
  builder: str | None
  num_classes: int
  test: str
  folder: str
  pool: tuple[str, ...] = ('train',)


DATA_SETS = (
  DataSet('food101', 'food101', 101, test='validation', folder='food-101'),
  DataSet('stanford_cars', 'cars196', 196, test='test', folder='stanford_cars'),
  DataSet(
    'oxford_flowers102',
    'oxford_flowers102',
    102,
    test='test',
    folder='oxford_flowers',
    pool=('train', 'validation'),  # each has ten images a class
  ),
  DataSet('fgvc_aircraft', None, 100, test='test', folder='fgvc_aircraft'),
  DataSet('oxford_pets', 'oxford_iiit_pet', 37, test='test', folder='oxford_pets'),
)
NAMES = tuple(data_set.name for data_set in DATA_SETS)


class FewShotTask(NamedTuple):
  """A task of the benchmark.

  Attributes:
    data_set: where its images come from.
    shots: training images of every class.
    seed: decides which images are trained on.
  """

  data_set: DataSet
  shots: int
  seed: int

  @property
  def name(self) -> str:
    """The name of the task, as 'fewshot/food101/4/0'."""
    return f'fewshot/{self.data_set.name}/{self.shots}/{self.seed}'


def parse(text: str) -> FewShotTask:
  """The task that 'food101/4/0' stands for.

  Raises:
    ValueError: no such data set, number of shots, or seed.

  Example:
    >>> parse('food101/4/0').data_set.num_classes
    101
  """
  name, *numbers = text.split('/')
  data_set = next((data_set for data_set in DATA_SETS if data_set.name == name), None)
  if data_set is None or len(numbers) != 2 or not all(map(is_count, numbers)):
    raise ValueError(
      f"{shown('fewshot/' + text)} is no few-shot task; 'fewshot/food101/4/0' is one: "
      f'data set ({", ".join(NAMES)}), shots, seed.'
    )
  shots, seed = map(int, numbers)
  if shots < 1:
    raise ValueError(
      f'fewshot/{text}: {shots} shots leave nothing to train on; '
      f'the papers take {", ".join(map(str, SHOTS))}.'
    )
  return FewShotTask(data_set, shots, seed)


def task(text: str, source: Source) -> Task:
  """The task of 'food101/4/0', from TFDS or from NOAH's lists.

  Raises:
    ValueError: no such task (see `parse`), or a source that has not this data set.
    FileNotFoundError: NOAH's folder is not there.
  """
  parsed = parse(text)
  if source.kind(('tfds', 'lists'), 'few-shot tasks') == 'lists':
    return _from_lists(parsed, source)
  return _from_tfds(parsed, source)


def _from_tfds(parsed: FewShotTask, source: Source) -> Task:
  data_set, shots, seed = parsed
  if data_set.builder is None:
    raise ValueError(
      f'TFDS has no data set for {data_set.name}; '
      "take NOAH's lists: data.source='lists' and data.root."
    )
  builder = tfds.find_builder(data_set.builder, source.dir, source.version)
  pool = JoinedSplits(tuple(TfdsSplit(builder, split) for split in data_set.pool))
  splits = {
    'train': Shots(pool, shots, seed),
    'val': Shots(pool, min(shots, MOST_VAL_SHOTS), seed, skip=shots),
    'test': TfdsSplit(builder, data_set.test),
  }
  note = (
    f'The {shots} images a class were drawn by glora_jax with seed {seed}; '
    "they are not those of NOAH's lists."
  )
  classes = tfds.class_names(builder, data_set.num_classes)
  return tfds.task_of([builder], parsed.name, classes, splits, notes=(note,), group='fewshot')


def _from_lists(parsed: FewShotTask, source: Source) -> Task:
  data_set = parsed.data_set
  folder = os.path.join(source.folder("the data sets' folders"), data_set.folder)
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'There is no folder {folder}; '
      'it comes with the few-shot data of https://github.com/ZhangYuanhan-AI/NOAH.'
    )
  lists = _subfolder_if_there(folder, 'annotations')
  roots = (folder, _subfolder_if_there(folder, 'images'))
  names = {
    'train': f'train_meta.list.num_shot_{parsed.shots}.seed_{parsed.seed}',
    'val': 'val_meta.list',
    'test': 'test_meta.list',
  }
  splits = {
    split: ListedSplit(os.path.join(lists, name), roots, data_set.num_classes)
    for split, name in names.items()
  }
  classes = tuple(map(str, range(data_set.num_classes)))
  return Task(parsed.name, classes, splits, f"NOAH's lists in {folder}", group='fewshot')


def _subfolder_if_there(folder: str, name: str) -> str:
  subfolder = os.path.join(folder, name)
  return subfolder if os.path.isdir(subfolder) else folder
