"""Batches and folds that the training images fill, for every recipe that a job trains by."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from glora_jax import mesh as meshes
from glora_jax.limits import MOST_COUNTED
from glora_jax.runs.config import RunSettings
from glora_jax.runs.sections import SEARCH, AllocationSettings
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
