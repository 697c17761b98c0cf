"""One job: a structure found, trained alone on a task's images, and tested.

All structures share one compiled program: the genome is an argument of it, and so is the learning
rate. A test holds that it does what training `adapted.fix(genome)` does.

Or the paper's search at equal steps: a supernet, evolution within the budget, then finetuning. As
`configs/compare.py` has it: rank 4, half of the supernet's steps train its largest structure, a
quarter of all epochs is the found structure's alone, at half the learning rate. What the search
costs beside its training is not counted against it.
"""

import base64
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.machinery import embedded_task
from benchmarks.structures.jobs import Job
from benchmarks.structures.tasks import draw, load_pool
from glora_jax.data.pipeline import Split
from glora_jax.data.shifts import shifted
from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import count_params
from glora_jax.method.space import TENSORS, SearchSpace
from glora_jax.models import weights
from glora_jax.search.evolution import evolve
from glora_jax.search.scoring import make_predictor, make_scorer
from glora_jax.training import loop
from glora_jax.training.batches import batch_indices
from glora_jax.training.losses import cross_entropy, make_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling

ALL_RANKS = tuple(range(1, 17))  # 16 of LoRA on qkv at 36,864 parameters
HEAD = Recipe(
  epochs=6, warmup_epochs=1, batch_size=64, learning_rate=1.6e-2, final_learning_rate=1e-5
)
BATCH_SIZE = 64
STEPS_PER_CALL = 48
NUM_TRAIN = 800
PURPOSES = ('init', 'head', 'order', 'structure')  # of a seed's random keys
ANSWERS_BELOW = 1000  # seeds whose answers are kept, image by image
SUPERNET_RANKS = (4,)
FINETUNING_SHARE = 4  # of the epochs one in so many
FINETUNING_RATE = 0.5  # of the supernet's


class Model(NamedTuple):
  """What a program is compiled for: classes of the head, and ranks on offer."""

  num_classes: int
  ranks: tuple[int, ...] = ALL_RANKS


class Setting:
  """Where the structures of a seed are made.

  Attributes:
    task: its name.
    seed: its seed.
    model: what programs are compiled for.
    adapted: the adapted backbone.
    preprocess: images to inputs of the model.
    variables: what a training starts from, with the warm head and usual starting values.
    train: the images and labels.
    key: random key.
  """

  def __init__(self, task: str, seed: int, shifts: bool, ranks: tuple[int, ...]) -> None:
    """By a task, or by shifts of its images."""
    self.task, self.seed = task, seed
    self.model = Model(load_pool(task).num_classes, ranks)
    base = backbone(self.model)
    self.adapted, self.preprocess = base.adapted, base.preprocess
    params = warm_params(task, seed, shifts)
    self.variables = base.adapted.init(key_of(seed, 'init'), params)
    self.train = training_images(task, seed, shifts)
    self.key = key_of(seed, 'structure')


def key_of(seed: int, purpose: str) -> jax.Array:
  """A seed's random key for one of `PURPOSES`."""
  return jax.random.split(jax.random.key(seed), len(PURPOSES))[PURPOSES.index(purpose)]


def recipe(epochs: int) -> Recipe:
  """How structures are trained; the learning rate is a factor beside it."""
  return Recipe(
    epochs=epochs,
    warmup_epochs=min(3, epochs),
    batch_size=BATCH_SIZE,
    learning_rate=1.0,
    initial_learning_rate=0.0,
    final_learning_rate=1e-3,
  )


@functools.cache
def backbone(wanted: Model) -> embedded_task.Backbone:
  """The embedded backbone with a new head, all forms and the model's ranks on offer."""
  loaded, space = weights.load(weights.EMBEDDED_FILE), SearchSpace(ranks=wanted.ranks)
  fast = {'remat': None, 'unroll': loaded[0].depth}  # by a tenth, on a CPU's core
  side = embedded_task.IMAGE_SIZE
  return embedded_task.Backbone.load(loaded, wanted.num_classes, side, space, **fast)


@functools.lru_cache(maxsize=64)
def splits(task: str, seed: int) -> dict[str, Split]:
  """The images of a seed on the device."""
  found = draw(load_pool(task), seed)
  return {name: embedded_task.on_device(split) for name, split in found.items()}


def scaled() -> optax.GradientTransformation:
  """Multiplies updates by a number, which is the state."""

  def update(updates, rate, params=None):
    del params
    return jax.tree.map(lambda leaf: rate * leaf, updates), rate

  return optax.GradientTransformation(lambda params: 1.0, update)


def optimizer(epochs: int) -> optax.GradientTransformation:
  """AdamW by the recipe, times the learning rate."""
  return optax.chain(recipe(epochs).optimizer(NUM_TRAIN), scaled())


@functools.cache
def program(model: Model, epochs: int) -> Callable:
  """The compiled training steps of the structure whose genome lies among the frozen arrays."""
  base = backbone(model)
  adapted = base.adapted

  def loss_fn(trainable, frozen, batch, key):
    images, labels = batch
    variables = adapted.join(trainable, frozen)
    genome = variables.pop('genome')
    _, _, model_key = jax.random.split(key, 3)  # as `make_loss` takes it
    rngs = {'drop_path': model_key}
    inputs = base.preprocess(images)
    logits = adapted.apply(variables, inputs, genome=genome, rngs=rngs, train=True)
    return cross_entropy(logits, labels)

  return loop.make_steps(loss_fn, optimizer(epochs))


@functools.cache
def supernet_program(model: Model, epochs: int) -> Callable:
  """The compiled training steps of a supernet, half of which train its largest structure."""
  base = backbone(model)
  draw = functools.partial(Sampling(largest=0.5).draw, spec=base.adapted.spec)
  loss = make_loss(base.adapted, base.preprocess, draw, train=True)
  return loop.make_steps(loss, optimizer(epochs))


@functools.cache
def head_program(model: Model) -> tuple[Adapted, Callable]:
  """The linear probe that all start from, and its compiled steps."""
  base = backbone(model)
  linear = base.adapted.fix('linear')
  return linear, loop.make_steps(make_loss(linear, base.preprocess), HEAD.optimizer(NUM_TRAIN))


@functools.lru_cache(maxsize=16)
def warm_params(task: str, seed: int, shifts: bool) -> Any:
  """The base's parameters with the head that all methods start from, or that tells shifts."""
  model = Model(load_pool(task).num_classes)
  base = backbone(model)
  linear, steps = head_program(model)
  trainable, frozen = linear.split(base.adapted.init(jax.random.key(0), base.params))
  state = HEAD.optimizer(NUM_TRAIN).init(trainable)
  train = training_images(task, seed, shifts)
  trained = fit(steps, trainable, state, frozen, train, HEAD.epochs, key_of(seed, 'head'))
  return linear.join(trained, frozen)['params']


@functools.lru_cache(maxsize=4)
def training_images(task: str, seed: int, shifts: bool) -> Split:
  """The training images with their labels, or with the way in which each was shifted."""
  train = splits(task, seed)['train']
  if not shifts:
    return train
  rng, classes = np.random.default_rng(seed), load_pool(task).num_classes
  return embedded_task.on_device(Split(*shifted(np.asarray(train.images), rng, classes)))


@functools.lru_cache(maxsize=64)
def setting(
  task: str, seed: int, shifts: bool = False, ranks: tuple[int, ...] = ALL_RANKS
) -> Setting:
  """A seed's `Setting`, kept for what comes next."""
  return Setting(task, seed, shifts, ranks)


def start_state(trainable: Any, epochs: int, rate: float) -> Any:
  """The optimizer's state before the first step, with the learning rate in it."""
  *others, _ = optimizer(epochs).init(trainable)
  return (*others, jnp.float32(rate))


def fit(
  steps: Callable,
  trainable: Any,
  opt_state: Any,
  frozen: Any,
  train: Split,
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
      trainable, opt_state, first, frozen, *train, indices, step_key
    )
  return trainable


@functools.cache
def scorer(model: Model) -> Callable:
  """Number of right answers and summed losses of genomes."""
  base = backbone(model)
  return make_scorer(base.adapted, base.preprocess)


@functools.cache
def predictor(model: Model) -> Callable:
  """The answers of one genome, image by image."""
  base = backbone(model)
  return make_predictor(base.adapted, base.preprocess)


@functools.lru_cache(maxsize=4)
def trained(job: Job, where: Setting, genome: bytes, start: str) -> Any:
  """The variables of a structure after its training; kept, for methods that name the same.

  Args:
    job: the job, without its method.
    where: the setting.
    genome: int8 [layer, 5], in C order.
    start: see `methods.starting`.
  """
  from benchmarks.structures import methods

  codes = np.frombuffer(genome, np.int8).reshape(-1, len(TENSORS))
  steps = program(where.model, job.epochs)
  trainable, frozen = where.adapted.split(methods.starting(where, start))
  state = start_state(trainable, job.epochs, job.rate)
  fixed = {**frozen, 'genome': jnp.asarray(codes)}
  key = key_of(job.seed, 'order')
  found = fit(steps, trainable, state, fixed, where.train, job.epochs, key)
  return where.adapted.join(found, frozen)


def run(job: Job) -> dict[str, Any]:
  """Trains and tests one structure; JSON types."""
  from benchmarks.structures import methods  # which makes structures of settings

  times = [time.perf_counter()]
  if job.method == methods.SEARCH:
    where = setting(job.task, job.seed, ranks=SUPERNET_RANKS)
    genome, variables = search(job, where, times)
    notes = {'genome': genome.tolist()}
  else:
    where = setting(job.task, job.seed)
    times.append(time.perf_counter())
    genome, start, notes = methods.structure(job)
    times.append(time.perf_counter())
    alike = job._replace(method='', budget=0)
    variables = trained(alike, where, genome.astype(np.int8).tobytes(), start)
  times.append(time.perf_counter())
  return {
    'params': int(count_params(where.adapted.spec, genome)),
    **score(job, where.model, variables, genome),
    'seconds': [round(each, 1) for each in np.diff(times).tolist()],
    **notes,
  }


def search(job: Job, where: Setting, times: list[float]) -> tuple[np.ndarray, Any]:
  """A job's structure, int8 [layer, 5], searched by the validation images; and its variables.

  Args:
    job: the job.
    where: with `SUPERNET_RANKS` on offer.
    times: gets those at which the supernet is trained, and searched.
  """
  adapted, finetuning = where.adapted, job.epochs // FINETUNING_SHARE
  epochs = job.epochs - finetuning
  trainable, frozen = adapted.split(where.variables)
  keys = jax.random.split(key_of(job.seed, 'order'), 3)

  steps, state = supernet_program(where.model, epochs), start_state(trainable, epochs, job.rate)
  trainable = fit(steps, trainable, state, frozen, where.train, epochs, keys[0])
  times.append(time.perf_counter())

  supernet = adapted.join(trainable, frozen)
  validation = splits(job.task, job.seed)['val']

  def score(genomes):
    return scorer(where.model)(supernet, genomes, *validation)

  evolution = embedded_task.SEARCH
  archive = evolve(adapted.spec, score, keys[1], evolution, budget=job.budget, progress=False)
  genome = archive.best(evolution.fitness)
  times.append(time.perf_counter())

  state = start_state(trainable, finetuning, FINETUNING_RATE * job.rate)
  fixed, steps = {**frozen, 'genome': jnp.asarray(genome)}, program(where.model, finetuning)
  trainable = fit(steps, trainable, state, fixed, where.train, finetuning, keys[2])
  return genome, adapted.join(trainable, frozen)


def score(job: Job, model: Model, variables: Any, genome: np.ndarray) -> dict[str, Any]:
  """Accuracy and mean loss by split, and of seeds of a table which test images were right."""
  result: dict[str, Any] = {}
  for split, data in splits(job.task, job.seed).items():
    sums = scorer(model)(variables, genome[None], *data)
    result[split] = [round(float(total[0]) / len(data[1]), 5) for total in sums]
    if split == 'test' and job.seed < ANSWERS_BELOW:
      right = predictor(model)(variables, genome, data[0]).are(data[1])
      result['answers'] = base64.b85encode(np.packbits(right).tobytes()).decode()
  return result
