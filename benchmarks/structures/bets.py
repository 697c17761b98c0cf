"""Further ways to a structure within the same number of training steps, and a race among a few."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.structures import laboratory as lab
from benchmarks.structures import methods, path_values, shrinking
from benchmarks.structures.jobs import Job
from glora_jax.method.genomes import count_params
from glora_jax.training.batches import batch_indices

RUNGS = ((4, 1), (2, 2))  # so many structures are trained for so many epochs more
LOST_EPOCHS = 5  # that the race's losers have trained
POOL = ('gradient', 'lora:2@attn', 'lora:1', 'random(0)')


def race(job: Job, setting: methods.Setting) -> methods.Structure:
  """The structure of a few that learns fastest; the worse half is left at the end of each rung.

  All see the same batches; what counts is their mean loss over the last half of a rung, each batch
  before the update that uses it. The winner starts anew, with the epochs that the losers left.
  """
  runners = []
  for name in POOL:
    found = methods.structure(job._replace(method=name), lab.setting)
    if count_params(setting.adapted.spec, found.genome) <= job.budget:
      runners.append(_Runner(job, setting, found))
  first = 0
  for number, epochs in RUNGS:
    runners = runners[:number]
    losses = [runner.run(first, epochs) for runner in runners]
    runners = [runners[index] for index in better_half(losses)]
    first += epochs
  found = runners[0].found
  return methods.Structure(found.genome, found.variables, found.notes, LOST_EPOCHS)


class _Runner:
  """A structure in training."""

  def __init__(self, job: Job, setting: methods.Setting, found: methods.Structure) -> None:
    self.setting, self.found = setting, found
    trainable, self.frozen = setting.adapted.split(found.variables)
    self.frozen = {**self.frozen, 'genome': jnp.asarray(found.genome)}
    self.trainable = jax.tree.map(jnp.array, trainable)
    self.opt_state = lab.start_state(trainable, job.epochs, job.rate)
    self.epochs = job.epochs

  def run(self, first: int, epochs: int) -> list[float]:
    """Trains on, and returns the losses of the steps."""
    images, labels = self.setting.train
    order_key, step_key = jax.random.split(self.setting.key)
    per_epoch = len(labels) // lab.BATCH_SIZE
    start, stop = first * per_epoch, (first + epochs) * per_epoch
    indices = batch_indices(order_key, start, stop, len(labels), lab.BATCH_SIZE)
    steps = lab.program(self.setting.num_classes, self.epochs)
    self.trainable, self.opt_state, _, metrics = steps(
      self.trainable, self.opt_state, start, self.frozen, images, labels, indices, step_key
    )
    return np.asarray(metrics['loss']).tolist()


def better_half(losses: Sequence[Sequence[float]]) -> list[int]:
  """Indices of the runs whose mean loss over the last half of their steps is smaller."""
  means = [float(np.mean(run[len(run) // 2 :])) for run in losses]
  return sorted(np.argsort(means, kind='stable')[: max(1, len(means) // 2)].tolist())


BETS: dict[str, Callable[[Job, methods.Setting], methods.Structure]] = {
  'path': path_values.find,
  'shrinking': shrinking.find,
  'race': race,
}
