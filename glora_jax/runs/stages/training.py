"""The stages that train: supernet, baselines, finetuning."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.files import damaged, number, write_json
from glora_jax.method.adapted import Adapted
from glora_jax.records import read_lines, read_record
from glora_jax.runs.monitoring import Line, Metrics, profiled
from glora_jax.runs.run import Candidate, Run, Stream
from glora_jax.runs.workdir import Stopped
from glora_jax.training import loop
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.head_alone import HeadAlone
from glora_jax.training.loop import LossFn, NonFiniteLossError, TrainState
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)

STEPS_PER_DISPATCH = 50
ENOUGH_STEPS = 100  # after which a training should have learned something
_LEAST_LEARNED = 0.05  # share of what guessing gets wrong, likewise


class _Epochs(TypedDict):
  epochs: int


@dataclasses.dataclass(frozen=True)
class TrainingStage:
  """One training of a run.

  Attributes:
    name: folder of its training states in the workdir, and its name in `metrics.jsonl`.
    recipe: how to train.
    stream: purpose of its random key.
    split: split to train on.
    genome: alleles of the subnet that is trained, int8 [layer, 5]; None trains the supernet.
    stop_epoch: epoch to stop after, with the schedule of the whole recipe; None for its end.
    adapted: the adapted backbone that the subnet is of; None for the run's own.
    head: what is trained in the subnet's place, on features; None for the subnet, on images.
  """

  name: str
  recipe: Recipe
  stream: Stream
  split: str
  genome: np.ndarray | None = None
  stop_epoch: int | None = None
  adapted: Adapted | None = None
  head: HeadAlone | None = None


@dataclasses.dataclass
class Bookkeeper:
  """Called after every dispatch: writes metrics, saves training states, ends the run on request.

  Attributes:
    run: the run.
    stage: the training that goes on.
    checkpoints: where its states are saved.
    metrics: where its metrics are written.
    steps_per_epoch: number of steps.
    saved: step of the newest saved state.
    dispatched: called after every dispatch, for the profiler.
    evaluate: further metrics of a state at the end of an epoch; None for none.
    accuracies: on training images, of every dispatch.
  """

  run: Run
  stage: TrainingStage
  checkpoints: TrainingCheckpoints
  metrics: Metrics
  steps_per_epoch: int
  saved: int
  dispatched: Callable[[], None]
  evaluate: Callable[[TrainState], dict[str, float]] | None
  accuracies: list[float] = dataclasses.field(default_factory=list)

  def __call__(self, state: TrainState, means: dict[str, float]) -> None:
    """Takes the state after a dispatch, and the means of its metrics."""
    self.accuracies.append(means['accuracy'])
    ends_epoch = state.step % self.steps_per_epoch == 0
    evaluated = self.evaluate(state) if self.evaluate and ends_epoch else {}
    self.metrics.write(
      state.step, {'epoch': state.step / self.steps_per_epoch, **means, **evaluated}
    )
    self.dispatched()
    stop = self.run.stop()
    due = self.saved + self.run.settings.checkpoint_epochs * self.steps_per_epoch
    if stop or state.step >= due:
      self.checkpoints.save(state)
      self.saved = state.step
    if stop:
      self.checkpoints.wait()
      raise Stopped(f'{self.stage.name} at step {state.step}', self.run.workdir)


def train(
  run: Run,
  stage: TrainingStage,
  variables: Any,
  evaluate: Callable[[Any], dict[str, float]] | None = None,
) -> Any:
  """Trains, or resumes from the newest of the stage's training states.

  Args:
    run: the run.
    stage: what to train, and how.
    variables: the variables to start from.
    evaluate: called with the variables after every epoch; what it returns goes to `metrics.jsonl`.

  Returns:
    The trained variables.

  Raises:
    NonFiniteLossError: training diverged; the last good state is saved.
    Stopped: the run was asked to stop; the newest state is saved.
  """
  learner, loss_fn = learner_of(run, stage)
  trainable, frozen = learner.split(variables)
  images, labels = run.data(stage.split)
  per_epoch = stage.recipe.steps_per_epoch(len(labels))
  by_epoch = evaluate is not None or stage.head is not None
  watch = run.settings.watch
  profiling = profiled(run.path('profile'), watch.profile == stage.name.split('/')[0])
  with TrainingCheckpoints(run.path(stage.name)) as checkpoints, profiling as dispatched:
    state = checkpoints.latest(_initial_state(run, stage.recipe, trainable, len(labels)))
    saved = state.step if state else 0
    if stage.head is not None and saved < stage.recipe.epochs * per_epoch:
      images = stage.head.features(variables, images, labels, run.mesh)
    board = run.path('tensorboard') if watch.tensorboard else None
    bookkeeper = Bookkeeper(
      run=run,
      stage=stage,
      checkpoints=checkpoints,
      metrics=Metrics(run.path('metrics.jsonl'), stage.name, saved, board),
      steps_per_epoch=per_epoch,
      saved=saved,
      dispatched=dispatched,
      evaluate=evaluate and (lambda state: evaluate(learner.join(state.trainable, frozen))),
    )
    try:
      state = loop.fit(
        loss_fn,
        trainable,
        frozen,
        images,
        labels,
        stage.recipe,
        run.key(stage.stream),
        state=state,
        stop_epoch=stage.stop_epoch,
        steps_per_dispatch=per_epoch if by_epoch else STEPS_PER_DISPATCH,
        on_dispatch=bookkeeper,
        title=stage.name,
        mesh=run.mesh,
      )
    except NonFiniteLossError as error:
      checkpoints.save(error.state)
      log.warning('The state before that step is kept in %s.', run.path(stage.name))
      raise
    checkpoints.save(state)
  newest = bookkeeper.accuracies[-2:]  # the last may be of a step alone
  if newest and state.step >= ENOUGH_STEPS and meshes.primary():
    _warn_of_guessing(stage.name, max(newest), np.asarray(labels))
  return learner.join(state.trainable, frozen)


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


def learner_of(run: Run, stage: TrainingStage) -> tuple[Adapted, LossFn]:
  """What is trained, and its loss: the structure of a stage, or the supernet where it has none."""
  if stage.head is not None:
    return stage.head, stage.head.loss()
  if stage.genome is None:
    return run.adapted, loss_of_supernet(run)
  learner = (stage.adapted or run.adapted).fix(stage.genome)
  return learner, make_loss(learner, run.augmented, **run.loss_options)


def loss_of_supernet(run: Run) -> LossFn:
  """The loss of the run's supernet, with the sampling that the config asks for."""
  return make_loss(
    run.adapted,
    run.augmented,
    functools.partial(run.settings.sampling.draw, spec=run.adapted.spec),
    **run.loss_options,
  )


def _initial_state(run: Run, recipe: Recipe, trainable: Any, num_images: int) -> TrainState:
  """The state before the first step; it says where a restored state goes, too."""
  opt_state = recipe.optimizer(num_images).init(trainable)
  if run.mesh is not None:
    trainable, opt_state = meshes.replicate(run.mesh, (trainable, opt_state))
  return TrainState(trainable, opt_state, 0)


def train_supernet(run: Run) -> Any:
  """Trains all forms of all supports together, fresh genomes for every step (section 3.3)."""
  stage = TrainingStage('supernet', run.settings.supernet, Stream.SUPERNET, run.train_split)
  return train(run, stage, run.variables)


def finetune(run: Run, supernet: Any, genome: np.ndarray) -> dict[str, Candidate]:
  """Trains the winner on from the supernet's weights.

  Args:
    run: the run.
    supernet: the trained supernet's variables.
    genome: the winner's alleles, int8 [layer, 5].

  Returns:
    The winner with the supernet's weights, 'winner_supernet', and with its own, 'winner'.
  """
  recipe = run.settings.finetune
  inherited = Candidate(supernet, genome)
  if run.settings.protocol == 'paper' or not recipe.epochs:
    return {'winner_supernet': inherited, 'winner': inherited}
  stop_epoch = _best_epochs(run, inherited) if recipe.on == 'train+val' else None
  stage = TrainingStage('finetune', recipe, Stream.FINETUNE, recipe.on, genome, stop_epoch)
  tuned = Candidate(train(run, stage, supernet), genome)
  return {'winner_supernet': inherited, 'winner': tuned}


def _best_epochs(run: Run, inherited: Candidate) -> int:
  """The number of epochs after which a finetuning on 'train' is best on 'val', ties by loss."""
  path = run.path('finetune_epochs.json')
  if os.path.exists(path):
    return _read_epochs(path, run.settings.finetune)
  num_images = len(run.data('val').labels)

  def evaluate(variables: Any) -> dict[str, float]:
    correct, loss = run.score(variables, jnp.asarray(inherited.genome)[None], 'val')
    return {
      'val_accuracy': float(correct[0]) / num_images,
      'val_loss': float(loss[0]) / num_images,
    }

  stage = TrainingStage(
    'finetune_choice',
    run.settings.finetune,
    Stream.FINETUNE_CHOICE,
    'train',
    inherited.genome,
  )
  train(run, stage, inherited.variables, evaluate)
  with meshes.primary_first('finetune_epochs'):
    if meshes.primary():
      best = _best_of_curve(run, stage)
      content = {'epochs': round(best['epoch']), 'val_accuracy': best['val_accuracy']}
      write_json(path, content, 'epochs')
  return _read_epochs(path, run.settings.finetune)


def _best_of_curve(run: Run, stage: TrainingStage) -> dict[str, float]:
  """The line of `metrics.jsonl` about the epoch that was best on 'val'.

  Raises:
    ValueError: there is not one for every epoch.
  """
  path = run.path('metrics.jsonl')
  lines = [line for line in read_lines(path, 'metrics', Line) if line['stage'] == stage.name]
  curve = [line for line in lines if 'val_accuracy' in line]
  if len(curve) != stage.recipe.epochs:
    raise ValueError(
      f'{path} has {len(curve)} of the {stage.recipe.epochs} epochs of {stage.name}, so the best '
      f'cannot be told; remove {run.path(stage.name)}, and it is trained again.'
    )
  return best_on_val(curve)


def best_on_val(rows: Iterable[Any]) -> Any:
  """The row of the highest 'val_accuracy', ties by 'val_loss'; one that is not finite is last."""

  def rank(row: Any) -> tuple[float, float]:
    loss = number(row['val_loss'])
    return row['val_accuracy'], -loss if math.isfinite(loss) else -math.inf  # nan is never less

  return max(rows, key=rank)


def _read_epochs(path: str, recipe: Recipe) -> int:
  epochs = read_record(path, 'epochs', _Epochs)['epochs']
  if not 0 < epochs <= recipe.epochs:
    raise damaged(path, f'epochs={epochs} is not from 1 to finetune.epochs={recipe.epochs}')
  return epochs
