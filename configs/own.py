"""Your own images: a folder with one subfolder per class, a CSV of paths and labels, or TFDS.

  python -m glora_jax.main --config configs/own.py:photos/
  python -m glora_jax.main --config configs/own.py:labels.csv,weights=dinov2-S/14,budget=100000
  python -m glora_jax.main --config configs/own.py:beans,structure=lora:4
  python -m glora_jax.main --config configs/own.py:photos/,tiny=True

Images without a split into train, val and test are split stratified, always the same way;
`images.csv` in the workdir lists the split of each image. Without `weights`, the small backbone of
the package is used, which has only seen gray images of 28 x 28 pixels: good for a trial, not for
results. A published DINOv2 gets images of 224 x 224 pixels unless `model.image_size` is given.

The structure is allocated from one gradient; without `budget`, it has as many parameters as the
knee of its curve. With pretrained weights this gained nothing clear over a LoRA or BitFit, so pass
`structure=lora:8@attn` or `structure=bitfit` there (docs/howto/choose_a_structure.md).
`structure=search` trains and searches a supernet, and `structure=NAME` trains a preset. `rank` is
the largest LoRA rank to choose from; for a search, the only one.

Accuracy and time depend on the images. notebooks/own_images.ipynb shows a run with its figures, and
benchmarks/RESULTS.md compares such structures with fixed ones.
"""

import os
import re

from glora_jax.vision.runs.config import default_config, parse_arguments, shrink

MOST_RANK = 1024
_WITH_CONFIGURATION = re.compile(r'\w+/[^/]+')  # a TFDS data set, 'imagenette/160px-v2'
ARGUMENTS = {
  'weights': 'embedded',
  'structure': 'gradient',
  'rank': int,
  'budget': int,
  'epochs': 100,
  'tiny': False,
}


def get_config(arguments=''):
  """The config; `arguments` is a folder, a CSV or a TFDS data set, and any of `ARGUMENTS`."""
  images, given = parse_arguments(arguments, ARGUMENTS)
  images = os.path.expanduser(images)
  replaced = [name for name in ('weights', 'epochs') if given[name] != ARGUMENTS[name]]
  if given['tiny'] and replaced:
    raise ValueError(f'tiny=True sets {replaced[0]}; leave {replaced[0]}= or tiny=True out.')
  config = default_config()
  config.task = f'{kind_of(images)}:{images}'
  config.budget = given['budget']
  config.model.weights = given['weights']
  if 'dinov2' in given['weights'] and not os.path.exists(given['weights']):
    config.model.image_size = 224  # 518, as published, is five times as many patches
  config.structure = given['structure']
  if given['rank'] is not None:
    if not 1 <= given['rank'] <= MOST_RANK:
      raise ValueError(f'rank={given["rank"]} must be from 1 to {MOST_RANK}.')
    searches = config.structure == 'search'
    config.space.ranks = (given['rank'],) if searches else tuple(range(1, given['rank'] + 1))
    config.allocation.max_rank = max(config.allocation.max_rank, given['rank'])
  config.augment.flip = True
  rate = 8e-3 if given['weights'] == 'embedded' else 1e-3
  config.training.update(epochs=given['epochs'], warmup=0.1, learning_rate=rate)
  config.search.update(population=50, generations=10)
  epochs = max(1, given['epochs'] // 4)
  config.finetune.update(epochs=epochs, warmup=0.0, learning_rate=rate / 2)
  return shrink(config) if given['tiny'] else config


def kind_of(images):
  """The kind of the images: 'folder', 'csv' or 'tfds'."""
  if not images:
    raise ValueError(
      'own needs images; give --config own:FOLDER, own:LABELS.csv, or own:NAME of a TFDS data set.'
    )
  if os.path.isdir(images):
    return 'folder'
  if images.lower().endswith('.csv'):
    return 'csv'
  is_path = os.sep in images and not _WITH_CONFIGURATION.fullmatch(images)
  if is_path or os.path.exists(images):
    is_file = os.path.exists(images)
    found = f"'{images}' is a file" if is_file else f"There is no folder '{images}'"
    raise FileNotFoundError(
      f'{found}; after own: give a folder, a CSV, or the name of a TFDS data set.'
    )
  return 'tfds'
