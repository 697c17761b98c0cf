"""One job: a structure found, trained alone on a task's images, and tested.

Or the paper's search at equal steps: a supernet, evolution within the budget, then finetuning. As
`configs/compare.py` has it: rank 4, half of the supernet's steps train its largest subnet, a
quarter of all epochs is the found subnet's alone, at half the learning rate. What the search costs
beside its training is not counted against it.
"""

import base64
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.embedded_task import SEARCH
from benchmarks.structures import laboratory as lab
from benchmarks.structures import methods
from benchmarks.structures.jobs import Job
from glora_jax.method.genomes import count_params
from glora_jax.search.evolution import evolve

ANSWERS_BELOW = 1000  # seeds whose answers are kept, image by image
RANKS = (4,)  # of the supernet
FINETUNING_SHARE = 4  # of the epochs one in so many
FINETUNING_RATE = 0.5  # of the supernet's


def run(job: Job) -> dict[str, Any]:
  """Trains and tests one structure; JSON types."""
  times = [time.perf_counter()]
  if job.method == methods.SEARCH:
    setting = lab.setting(job.task, job.seed, ranks=RANKS)
    genome, variables = search(job, setting, times)
    notes = {'genome': genome.tolist()}
  else:
    setting = lab.setting(job.task, job.seed, backbone_name=job.backbone)
    times.append(time.perf_counter())
    genome, variables, notes = methods.structure(job)
    times.append(time.perf_counter())
    variables = train(job, setting, genome, variables)
  times.append(time.perf_counter())
  return {
    'params': int(count_params(setting.adapted.spec, genome)),
    **score(job, setting.model, variables, genome),
    'seconds': [round(each, 1) for each in np.diff(times).tolist()],
    **notes,
  }


def search(job: Job, setting: lab.Setting, times: list[float]) -> tuple[np.ndarray, Any]:
  """A job's subnet, int8 [layer, 5], searched by the validation images; and its variables.

  Args:
    job: the job.
    setting: with `RANKS` on offer.
    times: gets those at which the supernet is trained, and searched.
  """
  adapted, finetuning = setting.adapted, job.epochs // FINETUNING_SHARE
  epochs = job.epochs - finetuning
  trainable, frozen = adapted.split(setting.variables)
  keys = jax.random.split(lab.key_of(job.seed, 'order'), 3)

  steps = lab.supernet_program(setting.model, epochs)
  state = lab.start_state(trainable, epochs, job.rate)
  trainable = lab.fit(steps, trainable, state, frozen, setting.train, epochs, keys[0])
  times.append(time.perf_counter())

  supernet, scorer = adapted.join(trainable, frozen), lab.scorer(setting.model)
  validation = lab.splits(job.task, job.seed)['val']

  def score(genomes):
    right, losses = scorer(supernet, genomes, *validation)
    return np.asarray(right).sum(1), np.asarray(losses).sum(1)

  archive = evolve(adapted.spec, score, keys[1], SEARCH, budget=job.budget, progress=False)
  genome = archive.best(SEARCH.fitness)
  times.append(time.perf_counter())

  steps = lab.program(setting.model, finetuning)
  state = lab.start_state(trainable, finetuning, FINETUNING_RATE * job.rate)
  fixed = {**frozen, 'genome': jnp.asarray(genome)}
  trainable = lab.fit(steps, trainable, state, fixed, setting.train, finetuning, keys[2])
  return genome, adapted.join(trainable, frozen)


def train(job: Job, setting: lab.Setting, genome: np.ndarray, variables: Any) -> Any:
  """The variables of a structure after its training."""
  name = methods.Name.parse(job.method)
  dropout = methods.DROPOUT if 'dropout' in name.options else 0.0
  bound = methods.MAX_GRAD_NORM if 'bounded' in name.options else 0.0
  trainable, frozen = setting.adapted.split(variables)
  factors = methods.rate_factors(name, setting.adapted, trainable, genome)
  trained = lab.fit(
    lab.program(setting.model, job.epochs, dropout, bound),
    trainable,
    lab.start_state(trainable, job.epochs, job.rate, factors, bound),
    {**frozen, 'genome': jnp.asarray(genome)},
    setting.train,
    job.epochs,
    lab.key_of(job.seed, 'order'),
  )
  return setting.adapted.join(trained, frozen)


def score(job: Job, model: lab.Model, variables: Any, genome: np.ndarray) -> dict[str, Any]:
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
