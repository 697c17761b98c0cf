"""The paper's search at equal steps: a supernet, evolution within the budget, then finetuning.

As `configs/compare.py` has it: rank 4, half of the supernet's steps train its largest subnet, a
quarter of all epochs is the found subnet's alone, at half the learning rate. What the search costs
beside its training is not counted against it.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.embedded_task import SEARCH
from benchmarks.structures import laboratory as lab
from benchmarks.structures.jobs import Job
from glora_jax.search.evolution import evolve

RANKS = (4,)
FINETUNING_SHARE = 4  # of the epochs one in so many
FINETUNING_RATE = 0.5  # of the supernet's


class Found(NamedTuple):
  """A subnet that was searched and finetuned.

  Attributes:
    genome: int8 [layer, 5], in the space of `RANKS`.
    variables: those of that space.
    seconds: of supernet, search and finetuning.
  """

  genome: np.ndarray
  variables: Any
  seconds: tuple[float, ...]


def search(job: Job) -> Found:
  """Trains a job's supernet on its training images, and searches it by the validation images."""
  times = [time.perf_counter()]
  setting = lab.setting(job.task, job.seed, ranks=RANKS)
  data, adapted = lab.splits(job.task, job.seed), setting.adapted
  finetuning = job.epochs // FINETUNING_SHARE
  epochs = job.epochs - finetuning
  trainable, frozen = adapted.split(setting.variables)
  keys = jax.random.split(lab.Purposes.from_seed(job.seed).order, 3)

  steps = lab.supernet_program(setting.model, epochs)
  state = lab.start_state(trainable, epochs, job.rate)
  trainable = lab.fit(steps, trainable, state, frozen, setting.train, epochs, keys[0])
  times.append(time.perf_counter())

  scorer = lab.scorer(setting.model)
  supernet = adapted.join(trainable, frozen)

  def score(genomes):
    right, losses = scorer(supernet, genomes, *data['val'])
    return np.asarray(right).sum(1), np.asarray(losses).sum(1)

  archive = evolve(adapted.spec, score, keys[1], SEARCH, budget=job.budget, progress=False)
  genome = archive.best(SEARCH.fitness)
  times.append(time.perf_counter())

  steps = lab.program(setting.model, finetuning)
  state = lab.start_state(trainable, finetuning, FINETUNING_RATE * job.rate)
  fixed = {**frozen, 'genome': jnp.asarray(genome)}
  trainable = lab.fit(steps, trainable, state, fixed, setting.train, finetuning, keys[2])
  variables = adapted.join(trainable, frozen)
  times.append(time.perf_counter())
  return Found(genome, variables, tuple(np.diff(times).tolist()))
