"""What the later stages of a job need, checked before the first of them begins.

Each check needs no more than the config, the number of images in every split, and the shapes of the
model.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

import jax

from glora_jax import mesh as meshes
from glora_jax.data import pipeline
from glora_jax.data.task import Task
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import check_budget
from glora_jax.method.presets import preset
from glora_jax.method.supports import COLLECTION
from glora_jax.models import folder
from glora_jax.runs.config import RunSettings
from glora_jax.runs.run import Run
from glora_jax.runs.sections import GRADIENT, NO_PRESETS, SEARCH
from glora_jax.runs.stages.allocation import shape_of_folds
from glora_jax.runs.structures import FOLDER, named_genome
from glora_jax.search.choice import require_something
from glora_jax.training.checkpoints import MOST_KEPT

log = logging.getLogger(__name__)

STATES_OF_ADAM = 3  # parameters and both moments
COMPRESSED = 0.8  # share of a training state's bytes that its files have at least
MEGABYTE = 10**6


def count_images(task: Task) -> dict[str, int]:
  """The number of images of every split of a task, and of 'train+val'.

  Raises:
    ValueError, OSError: a split cannot be opened.
  """
  counts = {split: len(task.open(split).labels) for split in task.splits}
  return {**counts, 'train+val': counts['train'] + counts['val']}


def check_images(settings: RunSettings, image_size: int) -> None:
  """Checks that images of a size can be augmented and kept as a config says.

  Args:
    settings: the config.
    image_size: side of the images.

  Raises:
    ValueError: augmentation would leave nothing of them.
    OSError: the folder for decoded images cannot be written.
  """
  settings.augment.check_size(image_size)
  if settings.data.cache is not None:
    pipeline.require_writable(settings.data.cache)


def check_ranks(adapted: Adapted) -> None:
  """Checks that LoRA ranks on offer are not beyond the size of every layer.

  Raises:
    ValueError: a rank is larger than the smaller side of each layer.
  """
  largest = max((min(layer.in_features, layer.out_features) for layer in adapted.spec), default=0)
  ranks = sorted({rank for layer in adapted.spec for rank in layer.space.ranks})
  if beyond := [rank for rank in ranks if rank > largest]:
    raise ValueError(
      f'space.ranks has {beyond[0]}, and no layer of the model is larger than {largest} in both '
      'directions; lower it.'
    )


def check_stages(run: Run, counts: Mapping[str, int]) -> None:
  """Checks what the stages of a run need of its model and images.

  Args:
    run: the run, prepared.
    counts: number of images by split.

  Raises:
    ValueError: a comparison on several devices, a preset or structure that the model cannot have, a
      budget that fits no unit, too few images, images that are streamed where they must be
      resident, or a folder that holds another checkpoint.
    FileNotFoundError: a structure's file is not there.
    OSError: there is too little room on the disk.
  """
  if run.settings.job == 'compare' and run.mesh is not None:
    raise ValueError(
      'A comparison trains side by side on one device; give --config.mesh.devices=one.'
    )
  check_rows(run, counts)
  _check_structure(run)
  if run.settings.has_gradient:
    _check_gradient(run, counts)
  _check_residency(run, counts)
  _check_folded(run)
  check_disk(run)


def _budgets(settings: RunSettings) -> tuple[int | None, ...]:
  """The budgets of what is chosen within one."""
  compares = settings.job == 'compare'
  return tuple(settings.compare.budgets) if compares else (check_budget(settings.budget),)


def rows(settings: RunSettings) -> tuple[str, ...]:
  """What is trained beside the winner, or compared, by name."""
  return tuple(settings.compare.methods if settings.job == 'compare' else settings.presets)


def check_rows(run: Run, counts: Mapping[str, int]) -> None:
  """Checks that the model can have the presets that the config names.

  Args:
    run: the run, prepared.
    counts: number of images by split; it does not matter.

  Raises:
    ValueError: it cannot.
  """
  del counts
  budget = min((budget for budget in _budgets(run.settings) if budget is not None), default=None)
  for name in rows(run.settings):
    if name not in NO_PRESETS:
      preset(run.place(name).adapted.spec, name, budget)


def _check_structure(run: Run) -> None:
  """Raises ValueError or FileNotFoundError where the structure that is given cannot be had."""
  name = run.settings.structure
  is_written = os.path.exists(run.path(FOLDER, 'genome.json'))
  if name not in NO_PRESETS and not is_written:
    named_genome(run.place(name).adapted.spec, name, check_budget(run.settings.budget))


def _check_gradient(run: Run, counts: Mapping[str, int]) -> None:
  """Raises ValueError where there is nothing to buy, or a fold would have no images."""
  settings = run.settings
  for budget in _budgets(settings):
    require_something(run.place(GRADIENT).adapted.spec, budget)
  shape_of_folds(
    counts[run.train_split],
    settings.allocation.folds,
    settings.recipe_alone.batch_size,
    1 if run.mesh is None else run.mesh.size,
  )


def _check_residency(run: Run, counts: Mapping[str, int]) -> None:
  """Raises ValueError where images are streamed that a stage wants on the device."""
  settings = run.settings
  compares = settings.job == 'compare'
  searches = SEARCH in settings.compare.methods if compares else settings.structure == SEARCH
  if compares and not run.is_resident(counts['train']):
    raise ValueError(
      f'A comparison trains on resident images, and data.max_resident={settings.data.max_resident} '
      f'streams the {counts["train"]} training images; raise it.'
    )
  if (
    searches and settings.search.mode == 'guided' and not run.is_resident(counts[run.search_split])
  ):
    raise ValueError(
      "search.mode='guided' takes the gradient on resident images; raise data.max_resident, or "
      'take another mode.'
    )


def _check_folded(run: Run) -> None:
  """Raises ValueError where the folder of the folded model holds another checkpoint."""
  path = run.path('folded')
  if run.settings.job == 'compare' or not os.path.isdir(path):
    return
  source = run.metadata.get('source')
  container = 'safetensors' if source is None else source.container
  folder.require_no_other(path, folder.FILE_NAMES[container])


def least_bytes(run: Run) -> int:
  """What a run will at least write into its workdir: training states, adapter, plain model."""
  trainable, frozen = run.adapted.split(run.variables)
  state = STATES_OF_ADAM * MOST_KEPT * COMPRESSED
  base = _bytes({name: value for name, value in frozen.items() if name == 'params'})
  heads = _bytes(trainable['params'])
  if run.settings.job == 'compare':
    return heads * len(run.settings.compare.methods)
  if run.settings.structure != SEARCH:
    return int(2 * state * heads + heads + base)
  return int(state * (_bytes(trainable[COLLECTION]) + 2 * heads) + heads + base)


def check_disk(run: Run) -> None:
  """Says how much a run will write at least, and checks that there is room for it.

  What the workdir holds already is not written again.

  Raises:
    OSError: there is too little.
  """
  needed = least_bytes(run)
  written = sum(
    os.path.getsize(os.path.join(parent, name))
    for parent, _, names in os.walk(run.workdir)
    for name in names
  )
  free = shutil.disk_usage(_existing(run.workdir)).free
  if meshes.primary():
    log.info(
      '%s: at least %s will be written, %s are free.', run.workdir, _shown(needed), _shown(free)
    )
  if needed - written > free:
    raise OSError(
      f'{run.workdir} cannot hold what the run will write: at least {_shown(needed)}, of which '
      f'{_shown(written)} are there, and {_shown(free)} are free (No space left on device). Make '
      'room, or choose another --workdir.'
    )


def check_cache(run: Run) -> None:
  """Checks that there is room for the decoded images that are kept on disk, and not there yet.

  Args:
    run: the run, whose images have been opened.

  Raises:
    OSError: there is too little.
  """
  data, size = run.settings.data, run.metadata['image_size']
  if data.cache is None:
    return
  splits = {run.train_split, run.search_split, 'test'}
  opened = {split: run.task.open(split) for split in splits}
  needed = sum(
    len(examples.labels) * size * size * 3
    for examples in opened.values()
    if run.is_resident(len(examples.labels))
    and not os.path.exists(pipeline.cached_path(examples, size, rule=data.resize, cache=data.cache))
  )
  free = shutil.disk_usage(_existing(os.path.expanduser(data.cache))).free
  if needed > free:
    raise OSError(
      f'data.cache={data.cache!r} cannot hold the decoded images: {_shown(needed)}, and '
      f'{_shown(free)} are free (No space left on device). Make room, give another folder, or None '
      'for no cache.'
    )


def _existing(path: str) -> str:
  """A path, or the first folder above it that is there."""
  path = os.path.abspath(path)
  while not os.path.exists(path):
    path = os.path.dirname(path)
  return path


def _bytes(tree: Any) -> int:
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _shown(number: int) -> str:
  return f'{number / MEGABYTE:,.1f} MB'
