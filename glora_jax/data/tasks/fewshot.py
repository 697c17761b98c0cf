"""Few-shot fine-grained classification: five data sets with 1, 2, 4, 8 or 16 images a class, three seeds (GLoRA section 4.2).

From the lists that NOAH made, as the papers do; or from TFDS, where the images of a class are drawn by us, with the seed, since the
lists are not part of it, and where FGVC-Aircraft is missing.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from glora_jax.data import tfds
from glora_jax.data.examples import Part
from glora_jax.data.label_files import read_list
from glora_jax.data.splits import shots
from glora_jax.data.task import Source, Task

SHOTS, SEEDS = (1, 2, 4, 8, 16), (0, 1, 2)


class Record(NamedTuple):
  """A data set: name, builder of TFDS (None: it has none), classes, TFDS split of the test, NOAH's folder."""

  name: str
  builder: str | None
  classes: int
  test: str
  folder: str


RECORDS = (
  Record('food101', 'food101', 101, 'validation', 'food-101'),
  Record('stanford_cars', 'cars196', 196, 'test', 'stanford_cars'),
  Record('oxford_flowers102', 'oxford_flowers102', 102, 'test', 'oxford_flowers'),
  Record('fgvc_aircraft', None, 100, 'test', 'fgvc_aircraft'),
  Record('oxford_pets', 'oxford_iiit_pet', 37, 'test', 'oxford_pets'),
)
NAMES = tuple(record.name for record in RECORDS)


def parse(text: str) -> tuple[Record, int, int]:
  """(record, shots, seed) of 'food101/4/0'.

  Raises:
    ValueError: no such data set, number of shots, or seed.
  """
  parts = text.split('/')
  record = next((one for one in RECORDS if one.name == parts[0]), None)
  if record is None or len(parts) != 3 or not all(part.isdigit() for part in parts[1:]):
    raise ValueError(
      f"'fewshot/{text}' is no few-shot task; 'fewshot/food101/4/0' is one: data set ({', '.join(NAMES)}), shots, seed."
    )
  number, seed = map(int, parts[1:])
  if number < 1:
    raise ValueError(
      f'fewshot/{text}: {number} shots leave nothing to train on; the papers take {", ".join(map(str, SHOTS))}.'
    )
  return record, number, seed


def task(text: str, source: Source) -> Task:
  """The task of 'food101/4/0', from TFDS or from NOAH's lists.

  Raises:
    ValueError, FileNotFoundError: see `parse`; a source that has not this data set.
  """
  record, number, seed = parse(text)
  if source.source == 'lists':
    return _from_lists(text, record, number, seed, source)
  if source.source not in (None, 'tfds'):
    raise ValueError(
      f"data.source='{source.source}' is unknown for few-shot tasks; it is 'tfds' or 'lists'."
    )
  if record.builder is None:
    raise ValueError(
      f"TFDS has no data set for {record.name}; take NOAH's lists: data.source='lists' and data.root."
    )
  return _from_tfds(text, record, number, seed, source)


def _from_tfds(text, record, number, seed, source):
  builder = tfds.find_builder(record.builder, source.dir, source.version)
  label = lambda example: int(example['label'])
  image = lambda example: example['image']

  def whole(split):
    tfds.prepare(builder)
    return tfds.read(builder, split, image, label)

  def drawn(per_class, skip=0):
    def opened():
      pool = whole('train')
      return Part(pool, shots(pool.labels, per_class, seed, skip))

    return opened

  # As CoOp (arXiv 2109.01134) and the papers after it: at most four validation images a class.
  splits = {
    'train': drawn(number),
    'val': drawn(min(number, 4), skip=number),
    'test': lambda: whole(record.test),
  }
  notes = (
    f"The {number} images a class were drawn by glora_jax with seed {seed}; they are not those of NOAH's lists.",
  )
  names = tuple(builder.info.features['label'].names or map(str, range(record.classes)))
  return Task(
    f'fewshot/{text}',
    names,
    splits,
    f'TFDS {builder.info.full_name}',
    notes,
    'fewshot',
    missing=tfds.missing(builder),
  )


def _from_lists(text, record, number, seed, source):
  if source.root is None:
    raise ValueError(
      "data.source='lists' needs data.root, the folder that holds the data sets' folders."
    )
  folder = os.path.join(os.path.expanduser(source.root), record.folder)
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'There is no folder {folder}; it comes with the few-shot data of https://github.com/ZhangYuanhan-AI/NOAH.'
    )
  lists = next(
    (path for path in (os.path.join(folder, 'annotations'), folder) if os.path.isdir(path)), folder
  )
  images = next((path for path in (os.path.join(folder, 'images'),) if os.path.isdir(path)), folder)
  opened = lambda name: (
    lambda: read_list(os.path.join(lists, name), _root(lists, name, folder, images), record.classes)
  )
  splits = {
    'train': opened(f'train_meta.list.num_shot_{number}.seed_{seed}'),
    'val': opened('val_meta.list'),
    'test': opened('test_meta.list'),
  }
  return Task(
    f'fewshot/{text}',
    tuple(map(str, range(record.classes))),
    splits,
    f"NOAH's lists in {folder}",
    group='fewshot',
  )


def _root(lists, name, folder, images):
  """Paths in the lists are relative to the data set's folder or to its `images`; the first line tells."""
  path = os.path.join(lists, name)
  if os.path.isfile(path):
    with open(path) as file:
      first = file.readline().rpartition(' ')[0]
    if not os.path.exists(os.path.join(folder, first)):
      return images
  return folder
