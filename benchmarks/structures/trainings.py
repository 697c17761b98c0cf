"""One job: a structure found, trained alone on a task's images, and tested."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.structures import methods
from benchmarks.structures.jobs import Job
from benchmarks.structures.laboratory import BATCH_SIZE, Setting, backbone, key_of, setting
from benchmarks.structures.statistics import pack
from benchmarks.structures.tasks import load_pool
from glora_jax.training.fit import fit
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe

STEPS_PER_DISPATCH = 48
TEST_BATCH = 500


def recipe(job: Job) -> Recipe:
  """How a structure is trained."""
  return Recipe(
    epochs=job.epochs,
    warmup_epochs=min(3, job.epochs),
    batch_size=BATCH_SIZE,
    learning_rate=job.rate,
    initial_learning_rate=0.0,
    final_learning_rate=1e-3 * job.rate,
  )


@functools.cache
def answers(num_classes: int) -> Callable[[Any, jax.Array], jax.Array]:
  """The compiled plain model: classes of images."""
  base = backbone(num_classes)

  @jax.jit
  def classes(params: Any, images: jax.Array) -> jax.Array:
    return base.adapted.model.apply({'params': params}, base.preprocess(images)).argmax(-1)

  return classes


def train(job: Job) -> dict[str, Any]:
  """The trained parameters of a job's structure, and its right answers; JSON types."""
  where = setting(job.task, job.seed)
  genome, variables = methods.structure(where, job.method, job.budget)
  fixed = where.base.adapted.fix(genome)
  state = fit(
    fixed,
    variables,
    classification(where.base.preprocess, train=True),
    where.splits['train'],
    recipe(job),
    key=key_of(job.seed, 'order'),
    steps_per_dispatch=STEPS_PER_DISPATCH,
    progress=False,
  )
  params = fixed.fold(state.variables)
  return {'params': fixed.count_params(), 'answers': pack(right_answers(job, where, params))}


def right_answers(job: Job, where: Setting, params: Any) -> np.ndarray:
  """Which test images plain parameters get right, bool [image]."""
  images, labels = where.splits['test']
  classify = answers(load_pool(job.task).num_classes)
  starts = range(0, len(labels), TEST_BATCH)
  found = [classify(params, images[start : start + TEST_BATCH]) for start in starts]
  return np.concatenate(found) == np.asarray(labels)
