"""What the later stages of a job need, checked before the first of them begins.

Batches and folds become what the training images fill, for every recipe that a job trains by.

Each check needs no more than the config, the number of images in every split, and the shapes of the
model.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from glora_jax import mesh as meshes
from glora_jax.data.task import Task
from glora_jax.limits import MOST_COUNTED
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import check_budget
from glora_jax.method.presets import preset
from glora_jax.models import folder
from glora_jax.runs.config import RunSettings
from glora_jax.runs.run import Run
from glora_jax.runs.sections import GRADIENT, NO_PRESETS, SEARCH, AllocationSettings
from glora_jax.runs.stages.structures import FOLDER, named_genome, shape_of_folds
from glora_jax.search.choice import require_something
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)

DEFAULT_BATCH = Recipe().batch_size
DEFAULT_FOLDS = AllocationSettings().folds


class UsedRecipe(NamedTuple):
  """A recipe that a job trains by.

  Attributes:
    section: its section of the config.
    splits: the splits that are trained on by it.
    paths: number of equal parts, each with a subnet of its own, that a batch is cut into.
  """

  section: str
  splits: tuple[str, ...]
  paths: int = 1


def used_recipes(settings: RunSettings) -> tuple[UsedRecipe, ...]:
  """The recipes that a job trains by."""
  train = 'train' if settings.protocol == 'honest' else 'train+val'
  compares = settings.job == 'compare'
  if not compares and settings.structure != SEARCH:
    return (UsedRecipe('training', (train,)),)
  searches = not compares or SEARCH in settings.compare.methods
  recipes = [UsedRecipe('supernet', (train,), settings.sampling.paths if searches else 1)]
  # A comparison finetunes for no epoch, too, where a run leaves the stage out.
  if searches and settings.protocol == 'honest' and (compares or settings.finetune.epochs):
    recipes.append(UsedRecipe('finetune', tuple(dict.fromkeys(('train', settings.finetune.on)))))
  return tuple(recipes)


def fit_batches(
  settings: RunSettings, counts: Mapping[str, int], mesh: jax.sharding.Mesh | None
) -> RunSettings:
  """The settings with batches and folds that the images fill; defaults shrink where they are few.

  Args:
    settings: the config.
    counts: number of images by split.
    mesh: the devices that batches are dealt to.

  Raises:
    ValueError: see `fit_batch`.
  """
  recipes = used_recipes(settings)
  fitted: dict[str, Any] = {
    used.section: fit_batch(getattr(settings, used.section), used, counts, mesh) for used in recipes
  }
  if settings.has_gradient:
    images = counts[recipes[0].splits[0]]  # which every job trains on
    folds = _fit_folds(settings.allocation.folds, images, 1 if mesh is None else mesh.size)
    fitted['allocation'] = dataclasses.replace(settings.allocation, folds=folds)
  return dataclasses.replace(settings, **fitted)


def _fit_folds(folds: int, images: int, devices: int) -> int:
  """The number of folds, smaller where the default is more than the images fill."""
  most = max(2, images // devices)
  if folds <= most or folds != DEFAULT_FOLDS:
    return folds
  log.info(
    'Using %d folds instead of allocation.folds=%d: there are only %d training images.',
    most,
    folds,
    images,
  )
  return most


def fit_batch(
  recipe: Recipe,
  used: UsedRecipe,
  counts: Mapping[str, int],
  mesh: jax.sharding.Mesh | None = None,
) -> Recipe:
  """A recipe with a batch that the images fill; the default shrinks where they are fewer.

  Args:
    recipe: the recipe.
    used: what it is used for.
    counts: number of images by split.
    mesh: the devices that batches are dealt to.

  Raises:
    ValueError: a batch is larger than the images, cannot be cut into equal paths or dealt to the
      devices, or there are more steps than can be counted.
  """
  sizes = [counts[split] for split in used.splits]
  fitted = _shrunk(used, recipe, min(sizes), 1 if mesh is None else mesh.size)
  part = fitted.batch_size // fitted.accumulate
  if part % used.paths:
    raise ValueError(
      f'sampling.paths={used.paths} must divide the {part} images of a step of the supernet '
      '(supernet.batch_size, and its part by accumulate); give a multiple.'
    )
  meshes.require_divisible(mesh, part)
  steps = fitted.epochs * fitted.steps_per_epoch(max(sizes))
  if steps > MOST_COUNTED:
    raise ValueError(
      f'{used.section}.epochs={fitted.epochs} are {steps:,} steps, more than can be counted; '
      'give fewer.'
    )
  return fitted


def _shrunk(used: UsedRecipe, recipe: Recipe, fewest: int, devices: int) -> Recipe:
  """The recipe, with a smaller batch where the default is larger than the fewest images."""
  if recipe.batch_size <= fewest:
    return recipe
  parts = recipe.accumulate * math.lcm(used.paths, devices)
  largest = fewest // parts * parts
  if recipe.batch_size != DEFAULT_BATCH or not largest:
    raise ValueError(
      f'{used.section}.batch_size={recipe.batch_size} is larger than the {fewest} training images; '
      'lower it.'
    )
  log.info(
    '%s.batch_size=%d is more than the %d training images: a batch has %d.',
    used.section,
    recipe.batch_size,
    fewest,
    largest,
  )
  return dataclasses.replace(recipe, batch_size=largest)


def count_images(task: Task) -> dict[str, int]:
  """The number of images of every split of a task, and of 'train+val'.

  Raises:
    ValueError, OSError: a split cannot be opened.
  """
  counts = {split: len(task.open(split).labels) for split in task.splits}
  return {**counts, 'train+val': counts['train'] + counts['val']}


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
  """
  check_devices(run.settings, are_several=run.mesh is not None)
  check_shapes(run, counts)
  _check_folded(run)


def check_devices(settings: RunSettings, *, are_several: bool) -> None:
  """Raises ValueError where a comparison has several devices."""
  if settings.job == 'compare' and are_several:
    raise ValueError(
      'A comparison trains side by side on one device; give --config.mesh.devices=one.'
    )


def check_shapes(run: Run, counts: Mapping[str, int]) -> None:
  """Checks what the stages of a run need of its model's shapes and the number of its images.

  Args:
    run: the run; of its variables shapes are enough, and it need not have a workdir.
    counts: number of images by split.

  Raises:
    ValueError, FileNotFoundError: see `check_stages`.
  """
  settings = run.settings
  for name in rows(settings):
    if name not in NO_PRESETS:
      preset(run.place(name).adapted.spec, name)
  name = settings.structure
  is_written = bool(run.workdir) and os.path.exists(run.path(FOLDER, 'genome.json'))
  if name not in NO_PRESETS and not is_written:
    named_genome(run.place(name).adapted.spec, name, check_budget(settings.budget))
  if settings.has_gradient:
    _check_gradient(run, counts)
  if settings.job == 'compare' and not run.is_resident(counts['train']):
    raise ValueError(
      f'A comparison trains on resident images, and data.max_resident={settings.data.max_resident} '
      f'streams the {counts["train"]} training images; raise it.'
    )


def rows(settings: RunSettings) -> tuple[str, ...]:
  """What is trained beside the winner, or compared, by name."""
  return tuple(settings.compare.methods if settings.job == 'compare' else settings.presets)


def _check_gradient(run: Run, counts: Mapping[str, int]) -> None:
  """Raises ValueError where there is nothing to buy, or a fold would have no images."""
  settings = run.settings
  compares = settings.job == 'compare'
  for budget in settings.compare.budgets if compares else (check_budget(settings.budget),):
    require_something(run.place(GRADIENT).adapted.spec, budget)
  shape_of_folds(
    counts[run.train_split],
    settings.allocation.folds,
    settings.recipe_alone.batch_size,
    1 if run.mesh is None else run.mesh.size,
  )


def _check_folded(run: Run) -> None:
  """Raises ValueError where the folder of the folded model holds another checkpoint."""
  path = run.path('folded')
  if run.settings.job == 'compare' or not os.path.isdir(path):
    return
  source = run.metadata.get('source')
  container = 'safetensors' if source is None else source.container
  folder.require_no_other(path, folder.FILE_NAMES[container])
