"""The stage that warms a head before a structure is read off the gradient with it."""

from __future__ import annotations

import dataclasses
from typing import Any

from glora_jax.method.genomes import smallest_genome
from glora_jax.runs.run import Place, Run, Stream
from glora_jax.runs.stages.training import TrainingStage, train
from glora_jax.training.head_alone import HeadAlone, step_shape
from glora_jax.training.recipe import Recipe

HEAD_RATE = 2.0  # learning rate of a head alone, over that of the training that follows


def head_recipe(recipe: Recipe, epochs: int) -> Recipe:
  """How a head is warmed for so many epochs before a structure is trained by a recipe.

  A head alone takes twice the learning rate (BitFit's and the linear probe's tuned ones are twice
  LoRA's, `configs/compare_rates.json`).
  """
  return dataclasses.replace(
    recipe,
    epochs=epochs,
    warmup_epochs=min(1, epochs - 1),
    learning_rate=HEAD_RATE * recipe.learning_rate,
  )


def head_learner(run: Run, place: Place, recipe: Recipe) -> HeadAlone | None:
  """The head of a model, to be trained by a recipe on features that its body gives once.

  The body sees the images as the gradient does: as they are stored, and whole. None where the model
  has no such head.
  """
  images = step_shape(run.data(run.train_split).images, recipe)
  return HeadAlone.find(place.adapted, place.variables, run.preprocess, images)


def head_stage(run: Run, place: Place) -> TrainingStage:
  """The training of a head for a few epochs, on features where that can be."""
  recipe = head_recipe(run.settings.recipe_alone, run.settings.allocation.head_epochs)
  return TrainingStage(
    'head',
    recipe,
    Stream.HEAD,
    run.train_split,
    smallest_genome(place.adapted.spec),
    adapted=place.adapted,
    head=head_learner(run, place, recipe),
  )


def warm_head(run: Run, place: Place) -> Any:
  """The variables with a head that was trained alone."""
  trained = train(run, head_stage(run, place), place.variables)
  return {**place.variables, 'params': trained['params']}
