"""The trainer of all stages: one training, or several of one learner side by side."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.files import number
from glora_jax.method import genomes
from glora_jax.method.adapted import Adapted
from glora_jax.method.supports import COLLECTION
from glora_jax.runs.context import Context
from glora_jax.runs.monitoring import Metrics
from glora_jax.runs.workdir import Stopped
from glora_jax.training import loop
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.head_alone import HeadAlone
from glora_jax.training.loop import LossFn, NonFiniteLossError, TrainState
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)

STEPS_PER_DISPATCH = 50
MOST_SIDE_BY_SIDE = 8  # more would take memory without end; they are trained after one another
ENOUGH_STEPS = 100  # after which a training should have learned something
_LEAST_LEARNED = 0.05  # share of what guessing gets wrong, likewise


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


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
  """A training, or several of one learner side by side.

  Attributes:
    name: folder of the training states in the workdir, and the name in `metrics.jsonl`.
    learner: what is trained; with a free structure it is a supernet.
    recipe: how to train.
    split: split to train on.
    starts: variables to start from, of each training.
    keys: random keys, likewise.
    rates: learning rates, likewise, at the schedule's peak. None for one training by the recipe's
      own, which ends the job where it diverges, and leaves metrics.
    stop_epoch: epoch to stop after, with the schedule of the whole recipe; None for its end.
  """

  name: str
  learner: Adapted
  recipe: Recipe
  split: str
  starts: Sequence[Any]
  keys: Sequence[jax.Array]
  rates: Sequence[float] | None = None
  stop_epoch: int | None = None


class Trained(NamedTuple):
  """What became of a training.

  Attributes:
    variables: the trained variables; where it diverged, those of its last good state.
    diverged: whether the loss or its gradient was not finite, and it stopped before its end.
  """

  variables: Any
  diverged: bool = False


def train(
  context: Context,
  training: Training,
  evaluate: Callable[[Any], dict[str, float]] | None = None,
) -> list[Trained]:
  """Trains, or goes on from the newest of its states.

  Args:
    context: the context.
    training: what to train, and how.
    evaluate: called with the variables after every epoch of a training that is alone; what it
      returns goes to `metrics.jsonl`.

  Returns:
    What became of each training.

  Raises:
    NonFiniteLossError: a training that is alone diverged; its last good state is saved.
    Stopped: the job was asked to stop; the newest state is saved.
  """
  learner, recipe, rates = training.learner, training.recipe, training.rates
  if rates is not None and len(rates) > MOST_SIDE_BY_SIDE:
    first, rest = slice(MOST_SIDE_BY_SIDE), slice(MOST_SIDE_BY_SIDE, None)
    parts = [_part(training, 'first', first), _part(training, 'rest', rest)]
    return [trained for part in parts for trained in train(context, part)]
  trainable, frozen = start_of(training)
  images, labels = context.data(training.split)
  per_epoch = recipe.steps_per_epoch(len(labels))
  epochs = recipe.epochs if training.stop_epoch is None else training.stop_epoch
  last = epochs * per_epoch
  is_head = isinstance(learner, HeadAlone)
  by_epoch = evaluate is not None or is_head
  with TrainingCheckpoints(context.path(training.name)) as checkpoints:
    state = checkpoints.latest(_initial_state(context, training, trainable, len(labels)))
    saved = int(np.max(state.step)) if state else 0
    if is_head and saved < last:
      images = learner.features(training.starts[0], images, labels, context.mesh)
    board = context.path('tensorboard') if context.settings.watch.tensorboard else None
    metrics = None
    if rates is None:
      metrics = Metrics(context.workdir, training.name, saved, context.begun, board)
    bookkeeper = Bookkeeper(
      context=context,
      name=training.name,
      checkpoints=checkpoints,
      metrics=metrics,
      steps_per_epoch=per_epoch,
      saved=saved,
      evaluate=evaluate and (lambda state: evaluate(learner.join(state.trainable, frozen))),
    )
    try:
      state = loop.fit(
        loss_of(context, learner),
        trainable,
        frozen,
        images,
        labels,
        recipe,
        training.keys[0] if rates is None else jnp.stack(training.keys),
        rates=None if rates is None else [rate / recipe.learning_rate for rate in rates],
        state=state,
        stop_epoch=training.stop_epoch,
        steps_per_dispatch=per_epoch if by_epoch else STEPS_PER_DISPATCH,
        on_dispatch=bookkeeper,
        title=training.name,
        mesh=context.mesh,
      )
    except NonFiniteLossError as error:
      checkpoints.save(error.state)
      log.warning('The state before that step is kept in %s.', context.path(training.name))
      raise
    checkpoints.save(state)
  if rates is not None:
    trained = []
    for index, step in enumerate(state.step):
      own = jax.tree.map(operator.itemgetter(index), state.trainable)
      trained.append(Trained(learner.join(own, frozen), bool(step < last)))
    return trained
  newest = bookkeeper.accuracies[-2:]  # the last may be of a step alone
  if newest and state.step >= ENOUGH_STEPS and meshes.primary():
    _warn_of_guessing(training.name, max(newest), np.asarray(labels))
  return [Trained(learner.join(state.trainable, frozen))]


def _part(training: Training, name: str, part: slice) -> Training:
  """Some of several trainings, with a folder of their own."""
  return dataclasses.replace(
    training,
    name=f'{training.name}/{name}',
    starts=training.starts[part],
    keys=training.keys[part],
    rates=(training.rates or ())[part],
  )


def start_of(training: Training) -> tuple[Any, Any]:
  """(trainable, frozen) of a training; of several the former with an axis for each in front.

  What is frozen is the same for all of them: supports that the structure does not read are zeros.
  """
  learner = training.learner
  halves = [learner.split(start) for start in training.starts]
  trainable, frozen = halves[0]
  if training.rates is None:
    return trainable, frozen
  if COLLECTION in frozen and not isinstance(learner, FullFineTuning):
    frozen = {**frozen, COLLECTION: jax.tree.map(jnp.zeros_like, frozen[COLLECTION])}
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(half[0] for half in halves)), frozen


def loss_of(context: Context, learner: Adapted) -> LossFn:
  """What a training minimizes: of a free structure the supernet's loss, as the config samples."""
  if isinstance(learner, HeadAlone):
    return learner.loss()
  sample = None
  if learner.genome is None:
    sample = functools.partial(context.settings.sampling.draw, spec=learner.spec)
  return make_loss(learner, context.augmented, sample, **context.loss_options)


def _initial_state(
  context: Context, training: Training, trainable: Any, num_images: int
) -> TrainState:
  """The state before the first step; it says where a restored state goes, too."""
  number = None if training.rates is None else len(training.starts)
  state = loop.initial_state(trainable, training.recipe.optimizer(num_images), number)
  if context.mesh is None:
    return state
  trainable, opt_state = meshes.replicate(context.mesh, (state.trainable, state.opt_state))
  return TrainState(trainable, opt_state, 0)


@dataclasses.dataclass
class Bookkeeper:
  """Called after every dispatch: writes metrics, saves training states, ends the job on request.

  Attributes:
    context: the context.
    name: name of the training that goes on.
    checkpoints: where its states are saved.
    metrics: where its metrics are written; None for nowhere.
    steps_per_epoch: number of steps.
    saved: step of the newest saved state.
    evaluate: further metrics of a state at the end of an epoch; None for none.
    accuracies: on training images, of every dispatch.
  """

  context: Context
  name: str
  checkpoints: TrainingCheckpoints
  metrics: Metrics | None
  steps_per_epoch: int
  saved: int
  evaluate: Callable[[TrainState], dict[str, float]] | None
  accuracies: list[float] = dataclasses.field(default_factory=list)

  def __call__(self, state: TrainState, means: dict[str, Any]) -> None:
    """Takes the state after a dispatch, and the means of its metrics."""
    step = int(np.max(state.step))
    if self.metrics is not None:
      self.accuracies.append(means['accuracy'])
      ends_epoch = step % self.steps_per_epoch == 0
      evaluated = self.evaluate(state) if self.evaluate and ends_epoch else {}
      self.metrics.write(step, {'epoch': step / self.steps_per_epoch, **means, **evaluated})
    self.context.dispatched()
    stop = self.context.stop()
    due = self.saved + self.context.settings.checkpoint_epochs * self.steps_per_epoch
    if stop or step >= due:
      self.checkpoints.save(state)
      self.saved = step
    if stop:
      self.checkpoints.wait()
      raise Stopped(f'{self.name} at step {step}', self.context.workdir)


def _warn_of_guessing(title: str, accuracy: float, labels: np.ndarray) -> None:
  """Says so where a training has ended about as it would without looking at the images."""
  if is_guessing(accuracy, labels):
    log.warning(
      '%s has ended with at most %.1f%% of its images right, where naming one class for all of '
      'them gets %.1f%%: it has broken down, or hardly begun. Lower the learning rate, bound the '
      'gradients (max_grad_norm=1), or train for more epochs.',
      title,
      100 * accuracy,
      100 * share_of_largest_class(labels),
    )


def is_guessing(accuracy: float, labels: np.ndarray) -> bool:
  """Whether an accuracy is about that of naming one class for all images, int labels [n]."""
  guessing = share_of_largest_class(labels)
  return accuracy < guessing + _LEAST_LEARNED * (1 - guessing)


def share_of_largest_class(labels: np.ndarray) -> float:
  """The accuracy of naming one class for all images, int labels [n]."""
  return float(np.bincount(labels).max()) / len(labels)


def best_on_val(rows: Iterable[Any]) -> Any:
  """The row of the highest 'val_accuracy', ties by 'val_loss'; one that is not finite is last."""

  def rank(row: Any) -> tuple[float, float]:
    loss = number(row['val_loss'])
    return row['val_accuracy'], -loss if math.isfinite(loss) else -math.inf  # nan is never less

  return max(rows, key=rank)
