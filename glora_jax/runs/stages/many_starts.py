"""Trainings side by side: one learner from many starts, kept in a file of the workdir."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.files import write_arrays
from glora_jax.method import genomes
from glora_jax.method.adapted import Adapted
from glora_jax.records import Array, read_array_record
from glora_jax.runs.run import Run, Stream, stream_key
from glora_jax.runs.stages.training import loss_of_supernet
from glora_jax.runs.workdir import Stopped
from glora_jax.training.head_alone import HeadAlone
from glora_jax.training.loop import LossFn, fit
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)


class Trial(NamedTuple):
  """A method is trained once for each trial."""

  seed: int
  learning_rate: float


class FullFineTuning(Adapted):
  """All of the base trained and no support: the smallest structure, split otherwise."""

  @classmethod
  def of(cls, adapted: Adapted) -> FullFineTuning:
    """Full fine-tuning of an adapted backbone."""
    return cls(**vars(adapted.fix(genomes.smallest_genome(adapted.spec))))

  def split(
    self, variables: Any, *, supports: bool = True
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): all parameters in float32, and all else."""
    del supports
    params = jax.tree.map(lambda x: x.astype(jnp.float32), variables['params'])
    others = {name: value for name, value in variables.items() if name != 'params'}
    return {'params': params}, others

  def join(self, trainable: Any, frozen: Any) -> dict[str, Any]:
    """The inverse of `split`."""
    return {**frozen, **trainable}

  def count_params(self, genome: Any = None) -> int:
    """Number of trained parameters, heads not counted."""
    del genome
    return sum(
      shape.size for path, shape in self.param_shapes.items() if path not in self.head_paths
    )


def loss_of_finetuning(run: Run, learner: FullFineTuning) -> LossFn:
  """The loss of full fine-tuning, with the augmentation of all others."""
  return make_loss(learner, run.augmented, **run.loss_options)


@dataclasses.dataclass(frozen=True)
class Batch:
  """Trainings of one learner side by side; the sequences have an item for each.

  Attributes:
    name: path of the result within the workdir, without its ending.
    learner: what is trained.
    recipe: how to train, but for the learning rate.
    starts: variables to start from.
    keys: random keys.
    learning_rates: the largest learning rates; a schedule is the recipe's, scaled to it.
  """

  name: str
  learner: Adapted
  recipe: Recipe
  starts: Sequence[Any]
  keys: Sequence[jax.Array]
  learning_rates: Sequence[float]


class TrainedBatch(NamedTuple):
  """What became of a batch; the lists have an item for each training.

  Attributes:
    variables: the variables; where a training diverged, those of its last good state.
    seconds_each: the time of one.
    diverged: whether the loss or its gradient was not finite, and the training stopped before.
  """

  variables: list[Any]
  seconds_each: float
  diverged: list[bool]


def train_batch(run: Run, batch: Batch) -> TrainedBatch:
  """Trains a batch, or reads what an earlier call with its name trained.

  Raises:
    Stopped: the run was asked to stop before it.
  """
  path = run.path(f'{batch.name}.npz')
  loss_fn, trainable, frozen = _halves(run, batch)
  number = len(batch.starts)
  if not os.path.exists(path):
    if run.stop():
      raise Stopped(f'before {batch.name}', run.workdir)
    log.info('%s: %d runs of %d epochs', batch.name, number, batch.recipe.epochs)
    start = time.perf_counter()
    images, labels = _examples(run, batch)
    state = fit(
      loss_fn,
      trainable,
      frozen,
      images,
      labels,
      batch.recipe,
      jnp.stack(list(batch.keys)),
      rates=np.divide(batch.learning_rates, batch.recipe.learning_rate),
      title=batch.name,
    )
    last = batch.recipe.epochs * batch.recipe.steps_per_epoch(len(labels))
    diverged = state.step < last
    trained = {str(each): _of_run(state.trainable, each) for each in range(number)}
    seconds = (time.perf_counter() - start) / number
    flat = flax.traverse_util.flatten_dict(trained, sep='/')
    arrays = {name: np.asarray(value) for name, value in flat.items()}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    about = {'seconds': np.array(seconds), 'diverged': diverged}
    write_arrays(path, {**arrays, **about}, 'trained')
  templates = flax.traverse_util.flatten_dict(
    {str(each): _of_run(trainable, each) for each in range(number)}, sep='/'
  )
  arrays = _read(path, templates)
  seconds = float(arrays.pop('seconds'))
  diverged = arrays.pop('diverged').tolist()
  trained = flax.traverse_util.unflatten_dict(arrays, sep='/')
  variables = [batch.learner.join(trained[str(each)], frozen) for each in range(number)]
  return TrainedBatch(variables, seconds, diverged)


def _of_run(tree: Any, number: int) -> Any:
  """A run's part of arrays [run, ...]."""
  return jax.tree.map(lambda leaf: leaf[number], tree)


def _read(path: str, templates: dict[str, Any]) -> dict[str, np.ndarray]:
  """What a batch has trained, and its seconds.

  Raises:
    ValueError: the file is damaged, of a later version, or of another model.
  """
  number = len({name.partition('/')[0] for name in templates})
  # A training that diverged has left numbers that are not finite.
  trained = {
    name: Array('f', tuple(template.shape), finite=False) for name, template in templates.items()
  }
  expected = {'seconds': Array('f'), 'diverged': Array('b', (number,)), **trained}
  return read_array_record(path, 'trained', expected)


def _examples(run: Run, batch: Batch) -> tuple[Any, Any]:
  """What is trained on: images, or what a head alone reads of them, and labels."""
  images, labels = run.data('train')
  if isinstance(batch.learner, HeadAlone):
    images = batch.learner.features(batch.starts[0], images, labels, run.mesh)
  return images, labels


def from_pretrained(
  run: Run, name: str, learner: Adapted, recipe: Recipe, trials: Sequence[Trial]
) -> Batch:
  """The trainings of a learner from the pretrained base, for each trial."""
  base = run.variables['params']
  adapted = learner.fix(None)
  return Batch(
    name=name,
    learner=learner,
    recipe=recipe,
    starts=[adapted.init(stream_key(trial.seed, Stream.INIT), base) for trial in trials],
    keys=[stream_key(trial.seed, Stream.SUPERNET) for trial in trials],
    learning_rates=[trial.learning_rate for trial in trials],
  )


def _halves(run: Run, batch: Batch) -> tuple[LossFn, Any, Any]:
  """The loss, what is trained, [run, ...], and the frozen arrays that all runs share."""
  learner = batch.learner
  if isinstance(learner, HeadAlone):
    loss = learner.loss()
  elif isinstance(learner, FullFineTuning):
    loss = loss_of_finetuning(run, learner)
  elif learner.genome is None:
    loss = loss_of_supernet(run)
  else:
    loss = make_loss(learner, run.augmented, **run.loss_options)
  trainable, frozen = zip(*map(learner.split, batch.starts), strict=True)
  # Supports that are not trained differ between the starts, and nothing reads them.
  return loss, jax.tree.map(lambda *leaves: jnp.stack(leaves), *trainable), frozen[0]
