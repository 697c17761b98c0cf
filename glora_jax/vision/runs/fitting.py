"""Settings that fit the images and files at hand."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import jax

from glora_jax import mesh as meshes
from glora_jax.checks import MOST_COUNTED
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data.task import Task
from glora_jax.vision.runs.settings import SEARCH, RunSettings

log = logging.getLogger(__name__)
_FEW_STEPS = 4  # of an epoch


def choose_prior(settings: RunSettings) -> RunSettings:
  """The settings, with shifted images as prior if there are no scores of other tasks."""
  if settings.allocation.prior != 'transfer' or settings.transfer is not None:
    return settings
  allocation = dataclasses.replace(settings.allocation, prior='shifts')
  return dataclasses.replace(settings, allocation=allocation)


def count_images(task: Task) -> dict[str, int]:
  """The number of images of every split of a task, and of 'train+val'.

  Raises:
    ValueError, OSError: a split cannot be opened.
  """
  counts = {split: len(task.open(split).labels) for split in task.splits}
  return {**counts, 'train+val': counts['train'] + counts['val']}


def tell_few_steps(settings: RunSettings, counts: Mapping[str, int]) -> str:
  """A sentence on an epoch of very few steps, with the batch size that makes more; else ''.

  Args:
    settings: the config.
    counts: see `count_images`.

  Example:
    >>> settings = RunSettings(task='digits')
    >>> tell_few_steps(settings, {'train': 95})
    '95 training images in batches of 64: 1 step an epoch, 31 images left out of each; \
--config.training.batch_size=16 makes 5.'
    >>> tell_few_steps(settings, {'train': 800})
    ''
  """
  images = counts[settings.final_split]
  size = min(settings.training.batch_size, images)
  steps, left = divmod(images, size)
  if steps >= min(_FEW_STEPS, images):
    return ''
  smaller = 2 ** (max(1, images // _FEW_STEPS).bit_length() - 1)
  return (
    f'{images} training images in batches of {size}: {steps} step{"s" * (steps > 1)} an epoch'
    f'{f", {left} images left out of each" * bool(left)}; '
    f'--config.training.batch_size={smaller} makes {images // smaller}.'
  )


def note_batches(
  task: Task, given: RunSettings, fitted: RunSettings, counts: Mapping[str, int]
) -> Task:
  """The task with notes on batches that had to shrink, and on few steps, which are logged as well.

  Args:
    task: the task.
    given: the config.
    fitted: the settings that `fit_batches` made of it, which logged the former.
    counts: see `count_images`.
  """
  notes, asked, used = [], given.training.batch_size, fitted.training.batch_size
  if used < asked:
    notes = [f'training.batch_size={asked} is more than the training images; {used} was used.']
  if note := tell_few_steps(fitted, counts):
    log.warning('%s: %s', task.name, note)
    notes.append(note)
  return dataclasses.replace(task, notes=(*task.notes, *notes))


def fit_batches(
  settings: RunSettings,
  splits: Sequence[str],
  counts: Mapping[str, int],
  mesh: jax.sharding.Mesh | None,
) -> RunSettings:
  """The settings with batches that are no larger than the images allow.

  Args:
    settings: the config.
    splits: the splits that are trained on.
    counts: number of images by split.
    mesh: the devices that batches are split over.

  Raises:
    ValueError: a batch is larger than the images, cannot be cut into equal paths or split over
      the devices, or there are more steps than can be counted.
  """
  recipe = settings.training
  sizes = [counts[split] for split in splits]
  has_supernet = settings.structure == SEARCH
  paths = settings.sampling.paths if has_supernet else 1
  size, fewest, devices = recipe.batch_size, min(sizes), 1 if mesh is None else mesh.size
  if size > fewest:
    parts = recipe.accumulate * paths * devices
    largest = fewest // parts * parts
    if not largest:
      raise ValueError(
        f'training.batch_size={size} is larger than the {fewest} training images; lower it.'
      )
    log.warning(
      'training.batch_size=%d is more than the %d training images; using %d.',
      size,
      fewest,
      largest,
    )
    recipe = dataclasses.replace(recipe, batch_size=largest)
  part = recipe.batch_size // recipe.accumulate
  meshes.require_divisible(mesh, part)
  if (part := part // devices) % paths:
    raise ValueError(
      f'sampling.paths={paths} must divide the {part} images of a supernet step on each device '
      '(training.batch_size, split by accumulate and devices); change one of the two.'
    )
  fitted = dataclasses.replace(settings, training=recipe)
  recipes: dict[str, Recipe] = {'training': recipe}
  if has_supernet and settings.finetunes:
    recipes['finetune'] = fitted.finetuning
  for name, each in recipes.items():
    steps = each.epochs * each.steps_per_epoch(max(sizes))
    if steps > MOST_COUNTED:
      raise ValueError(
        f'{name}.epochs={each.epochs} means {steps:,} steps, more than can be counted; lower it.'
      )
  return fitted
