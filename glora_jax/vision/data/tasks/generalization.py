"""Domain generalization (GLoRA section 4.3): ImageNet to train on, shifted sets to test on.

16 images of each class are trained on; the shifted test sets are V2, Sketch, A and R. ImageNet-A
and -R have 200 of the 1,000 classes: answers there are taken among the classes that occur.
"""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

from glora_jax.checks import shown
from glora_jax.vision.data import tfds
from glora_jax.vision.data.label_files import read_list
from glora_jax.vision.data.splits import drawn
from glora_jax.vision.data.task import Source, Task, is_count

SHOTS = 16
VAL_SHOTS = 4
SEEDS = (0, 1, 2)
NUM_CLASSES = 1000


class TestSet(NamedTuple):
  """A test set.

  Attributes:
    name: name of the split; 'test' is ImageNet's own.
    builder: name in TFDS, with the version.
    split: TFDS split.
    folder: name of NOAH's folder.
    lacks_classes: whether it has only a part of the classes.
  """

  name: str
  builder: str
  split: str
  folder: str
  lacks_classes: bool = False


TESTS = (
  TestSet('test', 'imagenet2012:5.*.*', 'validation', 'imagenet'),
  TestSet('v2', 'imagenet_v2/matched-frequency:3.*.*', 'test', 'imagenetv2'),
  TestSet('sketch', 'imagenet_sketch:1.*.*', 'test', 'imagenet-sketch'),
  TestSet('a', 'imagenet_a:0.*.*', 'test', 'imagenet-adversarial', lacks_classes=True),
  TestSet('r', 'imagenet_r:0.*.*', 'test', 'imagenet-rendition', lacks_classes=True),
)


def task(text: str, source: Source) -> Task:
  """The task of a seed, '0', from TFDS or from NOAH's lists.

  Raises:
    ValueError: no such seed or source, or a version, which its data sets do not share.
  """
  if not is_count(text):
    raise ValueError(
      f'{shown("generalization/" + text)} is not a task; '
      "'generalization/0' is one, with the seed of the 16 images per class."
    )
  seed, name = int(text), f'generalization/{int(text)}'
  masked = tuple(test_set.name for test_set in TESTS if test_set.lacks_classes)
  root = source.folder('lists', 'domain generalization', 'imagenet, imagenetv2 and so on')
  if root is not None:
    lists = {
      'train': ('imagenet', f'train_meta.list.num_shot_{SHOTS}.seed_{seed}'),
      'val': ('imagenet', 'unofficial_val_list_4_shot16seed0'),
      **{test_set.name: (test_set.folder, 'val_meta.list') for test_set in TESTS},
    }
    splits = {
      split: partial(
        read_list,
        os.path.join(root, folder, 'annotations', path),
        (os.path.join(root, folder, 'images'),),
        NUM_CLASSES,
      )
      for split, (folder, path) in lists.items()
    }
    classes = tuple(map(str, range(NUM_CLASSES)))
    return Task(name, classes, splits, f"NOAH's lists in {root}", masked=masked)
  if source.version is not None:
    raise ValueError(
      f'data.version={shown(source.version)} cannot apply to all {len(TESTS)} data sets of {name}; '
      'leave it out.'
    )
  builders = {test_set.name: tfds.find_builder(test_set.builder, source.dir) for test_set in TESTS}
  pool = partial(tfds.read, builders['test'], 'train')
  splits = {
    'train': partial(drawn, pool, SHOTS, seed),
    'val': partial(drawn, pool, VAL_SHOTS, seed, skip=SHOTS),
    **{x.name: partial(tfds.read, builders[x.name], x.split) for x in TESTS},
  }
  note = (
    f'The {SHOTS} images per class were drawn by glora_jax with seed {seed}; they differ from '
    f"NOAH's lists. Validation: {VAL_SHOTS} further training images per class."
  )
  classes = tfds.class_names(builders['test'], NUM_CLASSES)
  return tfds.task_of(list(builders.values()), name, classes, splits, notes=(note,), masked=masked)
