"""Room on the disk for what a run or a suite will write at least, asked before it begins."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data import pipeline
from glora_jax.method.supports import COLLECTION
from glora_jax.runs.run import Run
from glora_jax.runs.sections import SEARCH
from glora_jax.training.checkpoints import MOST_KEPT

log = logging.getLogger(__name__)

STATES_OF_ADAM = 3  # parameters and both moments
COMPRESSED = 0.8  # share of a training state's bytes that its files have at least
MEGABYTE = 10**6


def least_bytes(run: Run) -> int:
  """What a run will at least write into its workdir: training states, adapter, plain model."""
  trainable, frozen = run.adapted.split(run.variables)
  state = STATES_OF_ADAM * MOST_KEPT * COMPRESSED
  base = bytes_of({name: value for name, value in frozen.items() if name == 'params'})
  heads = bytes_of(trainable['params'])
  if run.settings.job == 'compare':
    return heads * len(run.settings.compare.methods)
  if run.settings.structure != SEARCH:
    return int(2 * state * heads + heads + base)
  return int(state * (bytes_of(trainable[COLLECTION]) + 2 * heads) + heads + base)


def bytes_to_write(run: Run) -> int:
  """What a run will at least write into its workdir, beside what that holds already."""
  written = sum(
    os.lstat(os.path.join(parent, name)).st_size  # a link may lead nowhere
    for parent, _, names in os.walk(run.workdir)
    for name in names
  )
  return max(0, least_bytes(run) - written)


def images_to_cache(run: Run) -> dict[str, int]:
  """Bytes of the decoded images that a run will keep on the disk and that are not there, by path.

  Args:
    run: the run, whose images have been opened.
  """
  data, size = run.settings.data, run.metadata['image_size']
  if data.cache is None:
    return {}
  needed = {}
  for split in (run.train_split, run.search_split, 'test'):
    examples = run.task.open(split)
    path = pipeline.cached_path(examples, size, rule=data.resize, cache=data.cache)
    if run.is_resident(len(examples.labels)) and not os.path.exists(path):
      needed[path] = len(examples.labels) * size * size * 3
  return needed


def check_workdir(workdir: str, needed: int) -> None:
  """Says how much will be written at least, and checks that there is room for it.

  Args:
    workdir: folder of a run or a suite.
    needed: bytes.

  Raises:
    OSError: there is too little.
  """
  free = _free(workdir)
  if meshes.primary():
    log.info('%s: at least %s will be written, %s are free.', workdir, _shown(needed), _shown(free))
  if needed > free:
    raise OSError(
      f'{workdir} cannot hold what will be written: at least {_shown(needed)}, and {_shown(free)} '
      'are free (No space left on device). Make room, or choose another --workdir.'
    )


def check_cache(cache: str | None, images: Mapping[str, int]) -> None:
  """Checks that there is room for decoded images.

  Args:
    cache: folder that they are kept in; None where they are not.
    images: bytes by path.

  Raises:
    OSError: there is too little.
  """
  if cache is None:
    return
  needed, free = sum(images.values()), _free(os.path.expanduser(cache))
  if needed > free:
    raise OSError(
      f'data.cache={cache!r} cannot hold the decoded images: {_shown(needed)}, and {_shown(free)} '
      'are free (No space left on device). Make room, give another folder, or None for no cache.'
    )


def _free(path: str) -> int:
  """The bytes that are free where a path is, or will be."""
  path = os.path.abspath(path)
  while not os.path.exists(path):
    path = os.path.dirname(path)
  return shutil.disk_usage(path).free


def bytes_of(tree: Any) -> int:
  """The bytes of all arrays of a tree, or of their shapes."""
  return sum(
    math.prod(np.shape(leaf)) * getattr(leaf, 'dtype', np.dtype('int32')).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _shown(number: int) -> str:
  return f'{number / MEGABYTE:,.1f} MB'
