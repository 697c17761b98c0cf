"""One job: a structure found, trained alone on a task's images, and tested."""

import base64
import functools
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.structures import laboratory as lab
from benchmarks.structures import methods, searched
from benchmarks.structures.backbones import Model
from benchmarks.structures.jobs import Job
from benchmarks.structures.methods import SEARCH
from glora_jax.method.genomes import count_params

ANSWERS_BELOW = 1000  # seeds whose answers are kept, image by image


def run(job: Job) -> dict[str, Any]:
  """Trains and tests one structure; JSON types."""
  if job.method == SEARCH:
    return run_search(job)
  start = time.perf_counter()
  setting_of = functools.partial(lab.setting, backbone_name=job.backbone)
  setting = setting_of(job.task, job.seed)
  warm = time.perf_counter()
  found = methods.structure(job, setting_of)
  ready = time.perf_counter()
  variables = train(job, setting, found)
  trained = time.perf_counter()
  seconds = (warm - start, ready - warm, trained - ready)
  return {
    'params': int(count_params(setting.adapted.spec, found.genome)),
    **score(job, setting.model, variables, found.genome),
    'seconds': [round(each, 1) for each in seconds],
    **found.notes,
  }


def run_search(job: Job) -> dict[str, Any]:
  """Trains a supernet, searches it, and tests what was found; JSON types."""
  found = searched.search(job)
  setting = lab.setting(job.task, job.seed, ranks=searched.RANKS)
  return {
    'params': int(count_params(setting.adapted.spec, found.genome)),
    **score(job, setting.model, found.variables, found.genome),
    'seconds': [round(each, 1) for each in found.seconds],
    'genome': found.genome.tolist(),
  }


def train(job: Job, setting: methods.Setting, found: methods.Structure) -> Any:
  """The variables of a structure after its training."""
  name = methods.Name.parse(job.method)
  adapted, epochs = setting.adapted, job.epochs
  trainable, frozen = adapted.split(found.variables)
  factors = methods.rate_factors(name, setting.adapted, trainable, found.genome)
  bound = methods.max_grad_norm(name)
  trained = lab.fit(
    lab.program(setting.model, epochs, methods.dropout(name), bound),
    trainable,
    lab.start_state(trainable, epochs, job.rate, factors, bound),
    {**frozen, 'genome': jnp.asarray(found.genome)},
    setting.train,
    epochs,
    lab.Purposes.from_seed(job.seed).order,
  )
  return adapted.join(trained, frozen)


def score(job: Job, model: Model, variables: Any, genome: np.ndarray) -> dict[str, Any]:
  """Accuracy and mean loss by split, and of seeds of a table which test images were right."""
  data = lab.splits(job.task, job.seed, model.backbone)
  scorer = lab.scorer(model)
  result: dict[str, Any] = {}
  for split in ('train', 'val', 'test'):
    right, losses = map(np.asarray, scorer(variables, genome[None], *data[split]))
    result[split] = [round(float(right.mean()), 5), round(float(losses.mean()), 5)]
  if job.seed < ANSWERS_BELOW:
    result['answers'] = base64.b85encode(np.packbits(right[0]).tobytes()).decode()
  return result
