"""Domain generalization: 16 images of each ImageNet class to train on, then ImageNet, V2, Sketch, A and R (GLoRA section 4.3).

ImageNet-A and -R have 200 of the 1,000 classes: answers there are taken among the classes that occur.
"""

from __future__ import annotations

import os

from glora_jax.data import tfds
from glora_jax.data.examples import Part
from glora_jax.data.label_files import read_list
from glora_jax.data.splits import shots
from glora_jax.data.task import Source, Task

SHOTS, VAL_SHOTS, SEEDS = 16, 4, (0, 1, 2)
# Test set, builder and split of TFDS, list of NOAH's layout and its images; A and R lack classes.
TESTS = (
  (
    'test',
    'imagenet2012:5.*.*',
    'validation',
    'imagenet/annotations/val_meta.list',
    'imagenet/images',
  ),
  (
    'v2',
    'imagenet_v2/matched-frequency:3.*.*',
    'test',
    'imagenetv2/annotations/val_meta.list',
    'imagenetv2/images',
  ),
  (
    'sketch',
    'imagenet_sketch:1.*.*',
    'test',
    'imagenet-sketch/annotations/val_meta.list',
    'imagenet-sketch/images',
  ),
  (
    'a',
    'imagenet_a:0.*.*',
    'test',
    'imagenet-adversarial/annotations/val_meta.list',
    'imagenet-adversarial/images',
  ),
  (
    'r',
    'imagenet_r:0.*.*',
    'test',
    'imagenet-rendition/annotations/val_meta.list',
    'imagenet-rendition/images',
  ),
)
MASKED = ('a', 'r')
NUM_CLASSES = 1000


def task(text: str, source: Source) -> Task:
  """The task of a seed, '0', from TFDS or from lists.

  Raises:
    ValueError: no such seed or source.
  """
  if not text.isdigit():
    raise ValueError(
      f"'generalization/{text}' is no task; 'generalization/0' is one, with the seed of the 16 images a class."
    )
  if source.source == 'lists':
    return _from_lists(int(text), source)
  if source.source not in (None, 'tfds'):
    raise ValueError(
      f"data.source='{source.source}' is unknown for domain generalization; it is 'tfds' or 'lists'."
    )
  return _from_tfds(int(text), source)


def _from_tfds(seed, source):
  found = {name: tfds.find_builder(builder, source.dir) for name, builder, *_ in TESTS}

  def whole(name, split):
    tfds.prepare(found[name])
    return tfds.read(
      found[name], split, lambda example: example['image'], lambda example: int(example['label'])
    )

  def drawn(per_class, skip):
    def opened():
      pool = whole('test', 'train')
      return Part(pool, shots(pool.labels, per_class, seed, skip))

    return opened

  splits = {'train': drawn(SHOTS, 0), 'val': drawn(VAL_SHOTS, SHOTS)}
  splits.update(
    {name: lambda name=name, split=split: whole(name, split) for name, _, split, *_ in TESTS}
  )
  names = tuple(found['test'].info.features['label'].names or map(str, range(NUM_CLASSES)))
  origin = ', '.join(f'TFDS {builder.info.full_name}' for builder in found.values())
  notes = (
    f"The {SHOTS} images a class were drawn by glora_jax with seed {seed}; they are not those of NOAH's lists. Validation: "
    f'{VAL_SHOTS} further training images a class.',
  )
  return Task(
    f'generalization/{seed}',
    names,
    splits,
    origin,
    notes,
    'generalization',
    MASKED,
    tfds.missing(*found.values()),
  )


def _from_lists(seed, source):
  if source.root is None:
    raise ValueError(
      "data.source='lists' needs data.root, the folder that holds imagenet, imagenetv2 and so on."
    )
  root = os.path.expanduser(source.root)
  opened = lambda path, images: (
    lambda: read_list(os.path.join(root, path), os.path.join(root, images), NUM_CLASSES)
  )
  splits = {
    'train': opened(
      f'imagenet/annotations/train_meta.list.num_shot_{SHOTS}.seed_{seed}', 'imagenet/images'
    ),
    'val': opened('imagenet/annotations/unofficial_val_list_4_shot16seed0', 'imagenet/images'),
  }
  splits.update({name: opened(path, images) for name, _, _, path, images in TESTS})
  classes = tuple(map(str, range(NUM_CLASSES)))
  return Task(
    f'generalization/{seed}',
    classes,
    splits,
    f"NOAH's lists in {root}",
    group='generalization',
    masked=MASKED,
  )
