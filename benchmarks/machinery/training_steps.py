"""Training steps of a ViT in several ways, as compiled by the library: their run and their bytes.

Batch 64, 10 classes, AdamW, rank 4, the head always trained, no augmentation, images resident.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import glora_jax
from benchmarks.machinery.measuring import seconds
from glora_jax.method.adapted import Adapted
from glora_jax.models.vit import ViT
from glora_jax.runs.planning.costs import bytes_by_kind
from glora_jax.training import loop, losses
from glora_jax.training.batches import batch_indices
from glora_jax.training.recipe import Recipe

CLASSES = 10
RANK = 4
PRODUCTS_IN_A_CHAIN = 8


class Shape(NamedTuple):
  """The model that is trained, and how much of what it sees in one dispatch.

  Attributes:
    model: the ViT.
    size: side of the images, in pixels.
    batch: images of a step.
    steps: training steps of a dispatch.
  """

  model: ViT
  size: int
  batch: int
  steps: int


class Problem(NamedTuple):
  """A shape with random parameters and enough random images for one dispatch.

  Attributes:
    shape: see `Shape`.
    params: of the model.
    images: float32 [batch * steps, size, size, 3].
    labels: int32 [batch * steps].
  """

  shape: Shape
  params: Any
  images: jax.Array
  labels: jax.Array

  @classmethod
  def random(cls, shape: Shape) -> 'Problem':
    """The same problem for the same shape, always."""
    number = shape.batch * shape.steps
    images = jax.random.normal(jax.random.key(0), (number, shape.size, shape.size, 3))
    labels = jnp.arange(number, dtype=jnp.int32) % CLASSES
    params = jax.jit(shape.model.init)(jax.random.key(1), images[:1])['params']
    return cls(shape, params, images, labels)

  def adapt(self) -> Adapted:
    """The model with supports of rank 4."""
    space = glora_jax.SearchSpace(ranks=(RANK,))
    return glora_jax.adapt(self.shape.model, self.images[:1], space=space)


class Row(NamedTuple):
  """One way to train.

  Attributes:
    run: does a dispatch of steps to their end.
    held: bytes of arguments, temporaries, and results that take no argument's place, by XLA's
      account of the compiled steps; None for other frameworks, as the two below.
    optimizer: bytes of the optimizer's state.
    gradients: bytes of the gradients, which are as large as the trained parameters.
  """

  run: Callable[[], None]
  held: int | None = None
  optimizer: int | None = None
  gradients: int | None = None


class CompiledSteps:
  """A dispatch of the library's own training steps; each call goes on where the last one ended."""

  def __init__(self, loss_fn: loop.LossFn, trainable: Any, frozen: Any, problem: Problem) -> None:
    """Compiles the steps and copies what they consume."""
    _, _, batch, self.steps = problem.shape
    number = len(problem.labels)
    optimizer = Recipe(batch_size=batch).optimizer(number)
    self.trainable = jax.tree.map(jnp.copy, trainable)
    self.optimizer_state = jax.jit(optimizer.init)(self.trainable)
    self.done = 0
    indices = batch_indices(jax.random.key(0), 0, self.steps, number, batch)
    self.constants = frozen, problem.images, problem.labels, indices, jax.random.key(1)
    steps = loop.make_steps(loss_fn, optimizer)
    lowered = steps.lower(self.trainable, self.optimizer_state, self.done, *self.constants)
    self.compiled = lowered.compile()

  def __call__(self) -> None:
    """Does the steps; refuses to time what was left out because the loss was not finite."""
    self.trainable, self.optimizer_state, done, metrics = self.compiled(
      self.trainable, self.optimizer_state, self.done, *self.constants
    )
    jax.block_until_ready((self.trainable, metrics))
    assert int(done) == self.done + self.steps, 'the loss was not finite'
    self.done = int(done)

  def row(self) -> Row:
    """The steps with their bytes."""
    optimizer, gradients = (
      sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
      for tree in (self.optimizer_state, self.trainable)
    )
    return Row(self, held(self.compiled), optimizer, gradients)


def held(executable: Any) -> int:
  """Bytes of arguments, temporaries, and results that take no argument's place."""
  kinds = bytes_by_kind(executable)
  return kinds['arguments'] + kinds['temporaries'] + kinds['outputs']


class Cost(NamedTuple):
  """What the compiler says: MiB of all that is held at once, and the seconds that it took."""

  held: float
  temporaries: float
  compile_seconds: float

  @classmethod
  def of(cls, lowered: Any) -> 'Cost':
    """Compiles a program."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    return cls(held(compiled) / 2**20, bytes_by_kind(compiled)['temporaries'] / 2**20, seconds)


def full_row(problem: Problem) -> Row:
  """Full fine-tuning of the plain model, the yardstick."""

  def loss_fn(params, frozen, batch, key):
    images, labels = batch
    del frozen, key
    return losses.cross_entropy(problem.shape.model.apply({'params': params}, images), labels)

  return CompiledSteps(loss_fn, problem.params, {}, problem).row()


def supernet_row(problem: Problem, adapted: Adapted | None = None) -> Row:
  """A random genome for every step, of the problem's own adapted model or of another."""
  adapted = adapted or problem.adapt()
  trainable, frozen = adapted.split(adapted.init(jax.random.key(2), problem.params))
  loss_fn = losses.make_loss(
    adapted, lambda images, key: images, lambda key: glora_jax.sample_genome(key, adapted.spec)
  )
  return CompiledSteps(loss_fn, trainable, frozen, problem).row()


def preset_row(problem: Problem, preset: str, adapted: Adapted | None = None) -> Row:
  """A fixed preset in its cheapest form, of the problem's own adapted model or of another."""
  return structure_row(problem, adapted or problem.adapt(), preset)


def structure_row(problem: Problem, adapted: Adapted, structure: Any) -> Row:
  """A fixed structure of an adapted model in its cheapest form."""
  subnet = adapted.fix(structure)
  trainable, frozen = subnet.split(adapted.init(jax.random.key(2), problem.params))

  def loss_fn(trainable, frozen, batch, key):
    images, labels = batch
    del key
    logits = subnet.apply(subnet.join(trainable, frozen), images)
    return losses.cross_entropy(logits, labels)

  return CompiledSteps(loss_fn, trainable, frozen, problem).row()


def model_operations(shape: Shape) -> float:
  """Floating-point operations of the matrix products of one training step.

  The backward pass counts as two forward passes, whatever is trained.
  """
  model = shape.model
  patches = (shape.size // model.patch_size) ** 2
  tokens = patches + int(model.class_token)
  dense = 12 * model.width**2 * tokens  # multiply-adds of a block, as all that follow
  attention = 2 * tokens**2 * model.width
  embedding = patches * model.patch_size**2 * 3 * model.width
  forward = 2 * shape.batch * (model.depth * (dense + attention) + embedding)
  return 3 * forward


@jax.jit
def chain_of_products(factor: jax.Array) -> jax.Array:
  """Multiplies a matrix [side, side] by itself, eight times over."""

  def multiply(_, product):
    return product @ factor

  return jax.lax.fori_loop(0, PRODUCTS_IN_A_CHAIN, multiply, factor)


def peak_operations(dtype: Any, side: int, repeats: int = 5) -> float:
  """Floating-point operations a second of a chain of large matrix products, at their best."""
  factor = jnp.full((side, side), 1 / side, dtype)
  chain_of_products(factor).block_until_ready()
  fastest = min(seconds(lambda: chain_of_products(factor)) for _ in range(repeats))
  return PRODUCTS_IN_A_CHAIN * 2 * side**3 / fastest
