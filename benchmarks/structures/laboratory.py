"""What all jobs share: backbones, images, warm heads, compiled programs.

All structures share one compiled program: the genome is an argument of it, and so is the learning
rate of every array. A test holds that it does what training `adapted.fix(genome)` does.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.machinery import embedded_task
from benchmarks.structures.tasks import draw, load_pool
from glora_jax.data.pipeline import Split
from glora_jax.data.shifts import shifted
from glora_jax.method.adapt import adapt
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import SearchSpace
from glora_jax.models import weights
from glora_jax.search.scoring import make_image_scorer
from glora_jax.training import loop
from glora_jax.training.batches import batch_indices
from glora_jax.training.losses import cross_entropy, drop_components, make_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling

EMBEDDED, VIT_S = 'embedded', 'vit_s'
SIDES = {EMBEDDED: embedded_task.IMAGE_SIZE, VIT_S: 56}  # pixels
FOLDERS = {EMBEDDED: weights.EMBEDDED_FILE, VIT_S: os.path.join('runs', 'transfer', 'vit_s')}
ALL_RANKS = tuple(range(1, 17))  # 16 of LoRA on qkv at 36,864 parameters
HEAD = Recipe(
  epochs=6, warmup_epochs=1, batch_size=64, learning_rate=1.6e-2, final_learning_rate=1e-5
)
BATCH_SIZE = 64
STEPS_PER_CALL = 48
NUM_TRAIN = 800
PURPOSES = ('init', 'head', 'order', 'structure')  # of a seed's random keys


class Model(NamedTuple):
  """What a program is compiled for.

  Attributes:
    num_classes: of its head.
    ranks: that are on offer.
    backbone: name.
  """

  num_classes: int
  ranks: tuple[int, ...] = ALL_RANKS
  backbone: str = EMBEDDED


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """Where a structure is made.

  Attributes:
    adapted: the adapted backbone.
    model: what its programs are compiled for.
    variables: what a training starts from, with the warm head and usual starting values.
    preprocess: images to inputs of the model.
    train: the images and labels.
    key: random key.
  """

  adapted: Adapted
  model: Model
  variables: Any
  preprocess: Callable[[jax.Array], jax.Array]
  train: Any
  key: jax.Array


def key_of(seed: int, purpose: str) -> jax.Array:
  """A seed's random key for one of `PURPOSES`."""
  return jax.random.split(jax.random.key(seed), len(PURPOSES))[PURPOSES.index(purpose)]


def recipe(epochs: int, max_grad_norm: float = 0.0) -> Recipe:
  """How structures are trained; the learning rate is a factor beside it."""
  return Recipe(
    epochs=epochs,
    warmup_epochs=min(3, epochs),
    batch_size=BATCH_SIZE,
    learning_rate=1.0,
    initial_learning_rate=0.0,
    final_learning_rate=1e-3,
    max_grad_norm=max_grad_norm,
  )


@functools.cache
def backbone(wanted: Model) -> embedded_task.Backbone:
  """A backbone with a new head, adapted with all forms and the model's ranks on offer.

  Raises:
    FileNotFoundError: the ViT-S was not prepared; the sentence says how.
  """
  path, side = FOLDERS[wanted.backbone], SIDES[wanted.backbone]
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'There is no {path}; python -m benchmarks.transfer prepare --blocks 12 makes it.'
    )
  model, params, metadata = weights.refit(
    *weights.load(path), num_classes=wanted.num_classes, image_size=side
  )
  adapted = adapt(
    model.clone(remat=None, unroll=model.depth, drop_path=0.1),  # a tenth faster on a CPU's core
    jnp.zeros((1, side, side, 3)),
    space=SearchSpace(ranks=wanted.ranks),
  )
  return embedded_task.Backbone(adapted, params, metadata['normalization'])


@functools.lru_cache(maxsize=8)
def splits(task: str, seed: int, backbone_name: str = EMBEDDED) -> dict[str, Split]:
  """The images of a seed on the device, as large as a backbone wants them."""
  found, side = {}, SIDES[backbone_name]
  for name, split in draw(load_pool(task), seed).items():
    images, labels = embedded_task.on_device(split)
    if images.shape[1] != side:
      size = (len(labels), side, side, 3)
      images = jax.image.resize(images.astype(jnp.float32), size, 'linear')
      images = jnp.clip(jnp.round(images), 0, 255).astype(np.uint8)
    found[name] = Split(images, labels)
  return found


def scaled_updates() -> optax.GradientTransformation:
  """Multiplies updates by a tree of factors, which is the state."""

  def update(updates, state, params=None):
    del params
    return jax.tree.map(jnp.multiply, updates, state), state

  return optax.GradientTransformation(lambda params: jax.tree.map(lambda _: 1.0, params), update)


@functools.cache
def program(
  model: Model, epochs: int, dropout: float = 0.0, max_grad_norm: float = 0.0
) -> Callable:
  """The compiled training steps of the subnet whose genome lies among the frozen arrays."""
  base = backbone(model)
  adapted = base.adapted

  def loss_fn(trainable, frozen, batch, key):
    images, labels = batch
    variables = adapted.join(trainable, frozen)
    genome = variables.pop('genome')
    _, _, model_key = jax.random.split(key, 3)  # as `make_loss` takes it
    if dropout:
      supports = drop_components(model_key, variables['glora'], adapted.groups, genome, dropout)
      variables = {**variables, 'glora': supports}
    rngs = {'drop_path': model_key}
    inputs = base.preprocess(images)
    logits = adapted.apply(variables, inputs, genome=genome, rngs=rngs, train=True)
    return cross_entropy(logits, labels)

  return loop.make_steps(loss_fn, optimizer(epochs, max_grad_norm))


@functools.cache
def supernet_program(model: Model, epochs: int) -> Callable:
  """The compiled training steps of a supernet, half of which train its largest subnet."""
  base = backbone(model)
  draw = functools.partial(Sampling(largest=0.5).draw, spec=base.adapted.spec)
  loss = make_loss(base.adapted, base.preprocess, draw, train=True)
  return loop.make_steps(loss, optimizer(epochs))


def start_state(
  trainable: Any,
  epochs: int,
  rate: float,
  factors: Any = None,
  max_grad_norm: float = 0.0,
) -> Any:
  """The optimizer's state before the first step, with the learning rate of every array in it."""
  *others, ones = optimizer(epochs, max_grad_norm).init(trainable)
  factors = ones if factors is None else factors
  return (*others, jax.tree.map(lambda factor: jnp.float32(rate * factor), factors))


def optimizer(epochs: int, max_grad_norm: float = 0.0) -> optax.GradientTransformation:
  """AdamW by the recipe, times the learning rate of each array."""
  return optax.chain(recipe(epochs, max_grad_norm).optimizer(NUM_TRAIN), scaled_updates())


@functools.cache
def head_program(model: Model) -> tuple[Adapted, Callable]:
  """The linear probe that all start from, and its compiled steps."""
  base = backbone(model)
  linear = base.adapted.fix(np.zeros((len(base.adapted.spec), 5), np.int8))
  loss = make_loss(linear, base.preprocess)
  return linear, loop.make_steps(loss, HEAD.optimizer(NUM_TRAIN))


@functools.lru_cache(maxsize=16)
def warm_params(task: str, seed: int, shifts: bool, backbone_name: str) -> Any:
  """The base's parameters with the head that all methods start from, or that tells shifts."""
  model = Model(load_pool(task).num_classes, backbone=backbone_name)
  base = backbone(model)
  linear, steps = head_program(model)
  trainable, frozen = linear.split(base.adapted.init(jax.random.key(0), base.params))
  state = fit(
    steps,
    trainable,
    HEAD.optimizer(NUM_TRAIN).init(trainable),
    frozen,
    training_images(task, seed, shifts, backbone_name),
    HEAD.epochs,
    key_of(seed, 'head'),
  )
  return linear.join(state, frozen)['params']


@functools.lru_cache(maxsize=4)
def training_images(task: str, seed: int, shifts: bool, backbone_name: str) -> Split:
  """The training images with their labels, or with the way in which each was shifted."""
  train = splits(task, seed, backbone_name)['train']
  if not shifts:
    return train
  rng, classes = np.random.default_rng(seed), load_pool(task).num_classes
  return embedded_task.on_device(Split(*shifted(np.asarray(train.images), rng, classes)))


@functools.lru_cache(maxsize=8)
def setting(
  task: str,
  seed: int,
  shifts: bool = False,
  ranks: tuple[int, ...] = ALL_RANKS,
  backbone_name: str = EMBEDDED,
) -> Setting:
  """Where the structures of a seed are made, by the task or by shifts of its images."""
  model = Model(load_pool(task).num_classes, ranks, backbone_name)
  base = backbone(model)
  params = warm_params(task, seed, shifts, backbone_name)
  variables = base.adapted.init(key_of(seed, 'init'), params)
  train = training_images(task, seed, shifts, backbone_name)
  key = key_of(seed, 'structure')
  return Setting(base.adapted, model, variables, base.preprocess, train, key)


def fit(
  steps: Callable,
  trainable: Any,
  opt_state: Any,
  frozen: Any,
  train: Any,
  epochs: int,
  key: jax.Array,
) -> Any:
  """Calls compiled steps until the last, and returns what was trained; see `loop.fit`."""
  order_key, step_key = jax.random.split(key)
  last = epochs * (len(train.labels) // BATCH_SIZE)
  trainable = jax.tree.map(jnp.array, trainable)
  for first in range(0, last, STEPS_PER_CALL):
    stop = min(first + STEPS_PER_CALL, last)
    indices = batch_indices(order_key, first, stop, len(train.labels), BATCH_SIZE)
    trainable, opt_state, _, _ = steps(
      trainable, opt_state, first, frozen, train.images, train.labels, indices, step_key
    )
  return trainable


@functools.cache
def scorer(model: Model) -> Callable:
  """Right answers and losses, image by image."""
  base = backbone(model)
  return make_image_scorer(base.adapted, base.preprocess)
