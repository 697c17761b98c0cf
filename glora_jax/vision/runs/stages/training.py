"""The trainer of all stages."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Collection
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax import mesh as meshes
from glora_jax.compiling import reported
from glora_jax.method import genomes
from glora_jax.method.adapted import Adapted, call_model
from glora_jax.method.sample import Preprocess
from glora_jax.training import loop
from glora_jax.training.batches import MOST_STEPS, MOST_STREAMED_STEPS, Stream
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.fit import step_loss
from glora_jax.training.loop import LossFn, NonFiniteLossError, TrainState
from glora_jax.training.losses import Mix, classification
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data import augment, pipeline
from glora_jax.vision.data.balance import class_weights, draw_classes
from glora_jax.vision.runs.backbone import Model
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.evaluation import measure
from glora_jax.vision.runs.monitoring import Metrics
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.workdir import Stopped

log = logging.getLogger(__name__)

# The fields that every training reads.
TRAINING = ('training.', 'augment.', 'consistency.', 'component_dropout')
MEASURED = (*TRAINING, 'report.metric')  # with images for choosing an epoch
LOOKS = 20  # measurements on the validation images during a training
ENOUGH_STEPS = 100  # by then a training should have learned something
_LEAST_LEARNED = 0.05  # and this share of the errors of guessing


class WithoutAdapter(Adapted):
  """A backbone without an adapter: only its head is trained, or all of it."""

  @classmethod
  def of(cls, adapted: Adapted) -> Self:
    """The same backbone, trained in this way."""
    return cls(**vars(adapted.fix(genomes.smallest_genome(adapted.spec))))


class HeadOnFeatures(WithoutAdapter):
  """A linear probe: trains only the head. Its inputs are features, the outputs of the body."""

  def split(self, variables: Any, *, adapter: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): the head, and everything else."""
    del adapter
    return super().split(variables, adapter=False)

  def apply(self, variables: Any, features: jax.Array, **unused: Any) -> Any:
    """Logits [batch, class] of features [batch, width]."""
    del unused
    return self.model.logits_of(variables['params'], features)

  def features(
    self,
    variables: Any,
    preprocess: Preprocess,
    images: Any,
    labels: Any,
    batch_size: int,
    mesh: jax.sharding.Mesh | None = None,
  ) -> np.ndarray:
    """The features of all images, [n, width]; the body sees each image once.

    Args:
      variables: variables of the backbone.
      preprocess: `(images, None) -> inputs` of the backbone.
      images: [n, ...], or a stream of them.
      labels: int [n].
      batch_size: number of images at a time.
      mesh: devices that every batch is split over; None for one.
    """
    body = dataclasses.replace(self, model=self.model.clone(num_classes=0))
    program = jax.jit(
      lambda variables, images: call_model(body, variables, preprocess(images, None)),
      out_shardings=None if mesh is None else meshes.replicated(mesh),
      compiler_options=meshes.options_of_one_pass(),
    )
    program, number = reported('features', program), len(labels)
    batches = pipeline.equal_batches(pipeline.Split(images, labels), batch_size, mesh)
    return np.concatenate([program(variables, batch) for batch, _ in batches])[:number]


class FullFineTuning(WithoutAdapter):
  """Trains the whole base and no adapter."""

  def split(self, variables: Any, *, adapter: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): all parameters in float32, and everything else."""
    del adapter
    params = jax.tree.map(lambda x: x.astype(jnp.float32), variables['params'])
    others = {name: value for name, value in variables.items() if name != 'params'}
    return {'params': params}, others

  def count_params(self) -> int:
    """Number of trained parameters, heads not counted."""
    return sum(
      shape.size
      for path, shape in self.places.param_shapes.items()
      if path not in self.places.head_paths
    )


class Best(NamedTuple):
  """The best on the validation images so far.

  Attributes:
    trainable: the trained arrays at that epoch; None if those of the last epoch are kept.
    accuracy: on the validation images, by `report.metric`, float32 []; ties are decided by `loss`.
    loss: on them, float32 [].
    epoch: number of epochs, float32 [].
  """

  trainable: Any
  accuracy: Any
  loss: Any
  epoch: Any

  def better(self, other: Best) -> Best:
    """The better of two."""
    is_better = (other.accuracy > self.accuracy) | (
      (other.accuracy == self.accuracy) & (other.loss < self.loss)
    )
    # A copy: training reuses the memory of the new arrays.
    return jax.tree.map(lambda old, new: jnp.where(is_better, new, old), self, other)


def train(
  context: Context, name: str, start: Model, recipe: Recipe, split: str, key: jax.Array
) -> Model:
  """Trains, or resumes from the newest saved state.

  A fixed structure that is trained on the training images is measured on the validation images
  about twenty times. `training.keep` chooses whether the best of these states or the last is kept.

  Args:
    context: the context.
    name: folder of the training states in the workdir, and the name in `metrics.jsonl`.
    start: the model to train; without a fixed structure it is a supernet.
    recipe: how to train.
    split: split to train on.
    key: random key.

  Returns:
    The trained model.

  Raises:
    NonFiniteLossError: the training diverged; its last good state is saved.
    Stopped: the job was asked to stop; the newest state is saved.
  """
  learner = start.adapted
  trainable, frozen = learner.split(start.variables)
  images, labels = context.images.split(split)
  per_epoch = recipe.steps_per_epoch(len(labels))
  draw = functools.partial(draw_classes, np.asarray(labels), per_epoch * recipe.batch_size)
  last = recipe.epochs * per_epoch
  is_head = isinstance(learner, HeadOnFeatures)
  is_measured = learner.genome is not None and not is_head and split == 'train'
  interval = max(1, math.ceil(recipe.epochs / LOOKS)) * per_epoch if is_measured else None
  opt_state = recipe.optimizer(per_epoch).init(trainable)
  first, opt_state = meshes.replicate(context.mesh, (trainable, opt_state))
  with TrainingCheckpoints(context.path(name)) as checkpoints:
    bookkeeper = Bookkeeper(
      context=context,
      name=name,
      learner=learner,
      frozen=frozen,
      checkpoints=checkpoints,
      last=last,
      steps_per_epoch=per_epoch,
      interval=interval,
    )
    state = bookkeeper.restore(TrainState(first, opt_state, 0))
    if is_head and bookkeeper.saved < last:
      size = recipe.batch_size // recipe.accumulate
      images = learner.features(
        start.variables, context.preprocess, images, labels, size, context.mesh
      )
    most = MOST_STREAMED_STEPS if isinstance(images, Stream) else MOST_STEPS
    try:
      state = loop.minimize(
        loss_of(context, learner, labels),
        trainable,
        frozen,
        images if isinstance(images, Stream) else (images, labels),
        recipe,
        key,
        state=state,
        every=per_epoch if is_head else equal_parts(interval or last, most),
        look=bookkeeper,
        title=name,
        mesh=context.mesh,
        draw=draw if context.settings.data.balance == 'sample' else None,
      )
    except NonFiniteLossError as error:
      bookkeeper.save(error.state)
      log.warning('The state before that step is kept in %s.', context.path(name))
      raise
    if state.step > bookkeeper.saved:
      bookkeeper.save(state)
  bookkeeper.warn_of_guessing(state, labels)
  return bookkeeper.choose(state)


def equal_parts(steps: int, most: int) -> int:
  """The steps of a compiled call of at most `most`, a divisor if one is near.

  Calls of one length are one program. If the last call is shorter, it is compiled as well.

  Example:
    >>> equal_parts(192, most=50), equal_parts(53, most=50)
    (48, 27)
  """
  fewest = max(1, math.ceil(steps / most))
  parts = (number for number in range(fewest, 2 * fewest + 1) if steps % number == 0)
  return math.ceil(steps / next(parts, fewest)) or 1


def loss_of(context: Context, learner: Adapted, labels: Any) -> LossFn:
  """The loss of a training; without a fixed structure, of a supernet with sampled structures.

  Args:
    context: the context.
    learner: the model to train.
    labels: the class of every image that is trained on, int [n].
  """
  if isinstance(learner, HeadOnFeatures):
    return step_loss(learner, classification(mix=mix_of(context, labels)))
  sample = None
  if learner.genome is None:
    sample = functools.partial(context.settings.sampling.draw, spec=learner.spec)
  settings = context.settings
  loss = classification(
    context.augmented,
    mix=mix_of(context, labels, settings.augment.mixup),
    consistency=settings.consistency,
    component_dropout=settings.component_dropout,
    train=True,
  )
  return step_loss(learner, loss, sample, settings.training.lora_dropout)


def mix_of(
  context: Context, labels: Any, alpha: float = 0.0, weighed: Collection[str] = ('loss',)
) -> Mix | None:
  """Mixes images, smooths their labels and weighs them; None if none of these is needed.

  The weight of an image is the sum of its row of labels, which multiplies its cross-entropy.

  Args:
    context: the context.
    labels: the class of every image that is trained on, int [n]; these weigh 1 on average.
    alpha: see `augment.mixup`.
    weighed: the values of `data.balance` that weigh images.
  """
  is_weighed = context.settings.data.balance in weighed
  weights = class_weights(labels, context.task.num_classes) if is_weighed else 1.0
  smoothing = context.settings.training.label_smoothing

  def mix(key, images, labels):
    if alpha:
      images, labels = augment.mixup(key, images, labels, alpha)
    weight = (labels * weights).sum(-1, keepdims=True)
    return images, weight * optax.smooth_labels(labels, smoothing)

  return mix if alpha or smoothing or is_weighed else None


@dataclasses.dataclass
class Bookkeeper:
  """The `look` of a training: writes metrics, measures, saves states, ends the job on request.

  Attributes:
    context: the context.
    name: name of the training, see `train`.
    learner: the model that is trained.
    frozen: its frozen arrays.
    checkpoints: where its states are saved.
    last: number of steps of the training.
    steps_per_epoch: number of steps of an epoch.
    interval: steps between two measurements on the validation images; None for none.
    saved: step of the newest saved state.
    looked: number of intervals at the last measurement.
    accuracies: on training images, of every look.
  """

  context: Context
  name: str
  learner: Adapted
  frozen: Any
  checkpoints: TrainingCheckpoints
  last: int
  steps_per_epoch: int
  interval: int | None
  saved: int = 0
  looked: int = 0
  accuracies: list[float] = dataclasses.field(default_factory=list)

  def restore(self, start: TrainState) -> TrainState | None:
    """The newest saved state, shaped as the first one; None if there is none."""
    settings, name = self.context.settings, self.name
    if self.interval is not None:
      kept = start.trainable if settings.training.keep == 'best' else None
      worst = map(jnp.float32, (-1, jnp.inf, 0))
      self.best = meshes.replicate(self.context.mesh, Best(kept, *worst))
    state = self.checkpoints.latest(self._with_best(start))
    if state is not None:
      if self.interval is not None:
        trainable, self.best = state.trainable
        state = state._replace(trainable=trainable)
      self.saved = state.step
      self.looked = self.saved // (self.interval or 1)
    board = self.context.path('tensorboard', name) if settings.watch.tensorboard else None
    self.metrics = Metrics(
      self.context.workdir,
      name,
      self.context.path(name),
      self.saved,
      [self.context.path(each) for each in self.context.before],
      board,
      settings.watch.call,
    )
    return state

  def _with_best(self, state: TrainState) -> TrainState:
    """A state as it is saved: together with the best one."""
    if self.interval is None:
      return state
    return state._replace(trainable=(state.trainable, self.best))

  def save(self, state: TrainState) -> None:
    """Saves a state in the background."""
    self.checkpoints.save(self._with_best(state))
    self.saved = state.step
    self.context.saved()

  def __call__(self, state: TrainState, means: dict[str, Any]) -> None:
    """Records a state, and the means of the metrics since the one before."""
    step = state.step
    epoch = step / self.steps_per_epoch
    measured = {}
    if self.interval is not None and (step // self.interval > self.looked or step == self.last):
      self.looked = step // self.interval
      measured = self._measure(state, epoch)
    self.accuracies.append(means['accuracy'])
    self.metrics.write(step, {'epoch': epoch, **means, **measured})
    self.context.dispatched()
    stop = self.context.stop()
    due = self.saved + self.context.settings.checkpoint_epochs * self.steps_per_epoch
    if stop or step >= due:
      self.save(state)
    if stop:
      raise Stopped(f'{self.name} at step {step}', self.context.workdir)

  def _measure(self, state: TrainState, epoch: float) -> dict[str, float]:
    """Measures on the validation images, and keeps the best."""
    found = measure(self.context, self._model(state.trainable), 'val')
    by = self.context.settings.report.chooses_by
    numbers = map(jnp.float32, (found[by], found['val_loss'], epoch))
    kept = None if self.best.trainable is None else state.trainable
    self.best = self.best.better(Best(kept, *meshes.replicate(self.context.mesh, [*numbers])))
    return found

  def _model(self, trainable: Any) -> Model:
    return Model(self.learner, self.learner.join(trainable, self.frozen))

  def choose(self, state: TrainState) -> Model:
    """The trained model: the best, or the newest."""
    if self.interval is None:
      return self._model(state.trainable)
    kept = state.trainable if self.best.trainable is None else self.best.trainable
    return self._model(kept)._replace(best_epoch=round(float(self.best.epoch)))

  def warn_of_guessing(self, state: TrainState, labels: Any) -> None:
    """Warns if a training ended about as accurate as guessing."""
    newest = self.accuracies[-2:]  # the last may be of a step alone
    is_long = newest and state.step >= ENOUGH_STEPS and meshes.primary()
    if is_long and (told := tell_guessing(self.context.settings, max(newest), labels, 'training')):
      log.warning(
        '%s learned almost nothing. %s Lower the learning rate, bound the gradients '
        '(max_grad_norm=1), train for more epochs, or balance uneven classes (data.balance).',
        self.name,
        told,
      )


def tell_guessing(settings: RunSettings, accuracy: float, labels: np.ndarray, title: str) -> str:
  """A sentence on an accuracy that is close to that of guessing; else ''.

  Guessing is to answer the most frequent class, or with `data.balance` any class.

  Args:
    settings: the config.
    accuracy: the accuracy.
    labels: of the images that it was measured on, int [n].
    title: purpose of these images, such as 'validation'.
  """
  labels = labels if settings.data.balance == 'none' else np.unique(labels)
  guessing = float(np.bincount(labels).max()) / len(labels)
  if accuracy >= guessing + _LEAST_LEARNED * (1 - guessing):
    return ''
  return f'Its {title} accuracy is {accuracy:.1%}; guessing gets {guessing:.1%}.'
