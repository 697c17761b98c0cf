"""What a run's own images ask for when they are shifted: a prior for a structure from a gradient.

Which layers pay is mostly the backbone's doing. Which way an image was shifted can be asked of any
images, and its gradient is clear where a hard task's is noise.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data.pipeline import Split
from glora_jax.data.shifts import shifted
from glora_jax.runs.run import Place, Run
from glora_jax.runs.stages.allocation import read_off_gradient
from glora_jax.runs.stages.heads import head_recipe
from glora_jax.search.allocated import Allocation
from glora_jax.search.fold_gradients import Ahead
from glora_jax.training.batches import ImageStream
from glora_jax.training.head_alone import warm_head

log = logging.getLogger(__name__)

MOST_IMAGES = 4096  # a task that has more needs no other's gradient


def shifts_of(run: Run, rng: np.random.Generator) -> Split | None:
  """Some of the run's training images, shifted; None where they do not lie on the device."""
  images, labels = run.data(run.train_split)
  if isinstance(images, ImageStream):
    log.info('The training images are streamed; their gradient has no prior.')
    return None
  most = max(MOST_IMAGES, run.settings.recipe_alone.batch_size)
  chosen = np.sort(rng.permutation(len(labels))[:most])
  found = shifted(np.asarray(images)[chosen], rng, run.task.num_classes)
  return Split(*meshes.hold(run.mesh, tuple(found)))


def allocate_shifts(
  run: Run, place: Place, *, budget: int | None, key: jax.Array, ahead: Ahead | None = None
) -> Allocation | None:
  """What shifts of the images ask for, with a head that tells them apart.

  Args:
    run: the run.
    place: the model and its variables before any training.
    budget: that of the structure; what a prior gives depends on none.
    key: random key.
    ahead: what `start_compiling` returned.

  Returns:
    The allocation, which `glora_jax.allocate` takes as prior; None where there is none.
  """
  head_key, shift_key, key = jax.random.split(key, 3)
  split = shifts_of(run, np.random.default_rng(np.asarray(jax.random.key_data(shift_key))))
  if split is None:
    return None
  recipe = head_recipe(run.settings.recipe_alone, run.settings.allocation.head_epochs)
  options = {'preprocess': run.preprocess, 'mesh': run.mesh, 'progress': meshes.primary()}
  variables = warm_head(place.adapted, place.variables, *split, recipe, head_key, **options)
  warm = Place(place.adapted, variables)
  return read_off_gradient(run, warm, budget=budget, key=key, ahead=ahead, split=split)


def prior_of(run: Run, place: Place, **options: Any) -> Callable[[], Allocation | None] | None:
  """What `allocate` takes as prior, as the config says, found once; see `allocate_shifts`."""
  if run.settings.allocation.prior is None:
    return None
  return functools.cache(functools.partial(allocate_shifts, run, place, **options))
