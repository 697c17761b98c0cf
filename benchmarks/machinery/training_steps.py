"""Training steps of a ViT in several ways, as compiled by the library: their times and their bytes.

10 classes, AdamW, rank 4, the head always trained, no augmentation, images resident.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery.measuring import in_turn, print_table
from glora_jax.compiling import memory_of
from glora_jax.method.adapted import Adapted
from glora_jax.training import loop, losses
from glora_jax.training.batches import batch_indices
from glora_jax.training.fit import step_loss
from glora_jax.training.recipe import Recipe
from glora_jax.vision.models.vit import ViT

CLASSES = 10
RANK = 4
MEBIBYTE = 2**20
BYTES = {'bytes_held': 'MiB held', 'optimizer_bytes': 'optimizer', 'gradient_bytes': 'gradients'}


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

  def adapt(self, ranks: tuple[int, ...] = (RANK,)) -> Adapted:
    """The model with supports of some ranks."""
    space = glora_jax.SearchSpace(ranks=ranks)
    return glora_jax.adapt(self.shape.model, self.images[:1], space=space)


class CompiledSteps:
  """A dispatch of the library's own training steps; each call goes on where the last one ended.

  Attributes:
    bytes: of all that is held at once by XLA's account (arguments, temporaries, and results that
      take no argument's place), of the optimizer's state, and of the gradients, which are as large
      as the trained parameters.
  """

  def __init__(self, loss_fn: loop.LossFn, trainable: Any, frozen: Any, problem: Problem) -> None:
    """Compiles the steps and copies what they consume."""
    _, _, batch, self.steps = problem.shape
    number = len(problem.labels)
    optimizer = Recipe(batch_size=batch).optimizer(number // batch)
    self.trainable = jax.tree.map(jnp.copy, trainable)
    self.optimizer_state = jax.jit(optimizer.init)(self.trainable)
    self.done = 0
    indices = np.stack([*batch_indices(jax.random.key(0), 0, self.steps, number, batch)])
    self.constants = frozen, (problem.images, problem.labels), indices, jax.random.key(1)
    steps = loop.make_steps(loss_fn, optimizer)
    lowered = steps.lower(self.trainable, self.optimizer_state, self.done, *self.constants)
    self.compiled = lowered.compile()
    parts = {'optimizer_bytes': self.optimizer_state, 'gradient_bytes': self.trainable}
    self.bytes = {
      'bytes_held': sum(memory_of(self.compiled).values()),
      **{name: sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for name, part in parts.items()},
    }

  def __call__(self) -> None:
    """Does the steps; refuses to time what was left out because the loss was not finite."""
    self.trainable, self.optimizer_state, done, self.metrics = self.compiled(
      self.trainable, self.optimizer_state, self.done, *self.constants
    )
    jax.block_until_ready((self.trainable, self.metrics))
    assert int(done) == self.done + self.steps, 'the loss was not finite'
    self.done = int(done)


def full_steps(problem: Problem) -> CompiledSteps:
  """Full fine-tuning of the plain model, the yardstick."""

  def loss_fn(params, frozen, batch, key):
    images, labels = batch
    del frozen, key
    return losses.cross_entropy(problem.shape.model.apply({'params': params}, images), labels)

  return CompiledSteps(loss_fn, problem.params, {}, problem)


def glora_steps(
  problem: Problem,
  structure: Any = None,
  adapted: Adapted | None = None,
  lora_dropout: float = 0.0,
) -> CompiledSteps:
  """A fixed structure in its cheapest form, or without one the supernet: one drawn for every step.

  Args:
    problem: what is trained.
    structure: name of a preset, or a genome.
    adapted: the problem's model, adapted in another way than `Problem.adapt` does.
    lora_dropout: as of `Recipe`.
  """
  adapted = adapted or problem.adapt()
  learner = adapted if structure is None else adapted.fix(structure)
  halves = learner.split(adapted.init(jax.random.key(2), problem.params))
  loss_fn = step_loss(learner, losses.classification(), lora_dropout=lora_dropout)
  return CompiledSteps(loss_fn, *halves, problem)


def compare(
  rows: Mapping[str, Callable[[], None]],
  steps: int,
  repeats: int,
  ratios: Mapping[str, tuple[str, str]],
  *,
  pause: float = 0.0,
  at_peak: float | None = None,
) -> dict[str, Any]:
  """Times what makes so many steps in a call, in turn, and prints a table of a step's costs.

  Args:
    rows: what is compared, by name; the first is what a column of the table measures all by.
    steps: of a call.
    repeats: of every call.
    ratios: of two rows, by name; of their bytes where the name says so, else of their times.
    pause: seconds before each call.
    at_peak: milliseconds of a step, were the processor used wholly.

  Returns:
    Milliseconds of a step, shares of the peak, ratios, None where a row is missing, and bytes.
  """
  times = in_turn(rows, repeats, pause=pause)
  milliseconds = {name: 1e3 * times.median(name) / steps for name in rows}
  sizes = {name: row.bytes for name, row in rows.items() if isinstance(row, CompiledSteps)}
  first = next(iter(rows))
  shares = {name: at_peak / each for name, each in milliseconds.items()} if at_peak else {}
  print_table(
    {
      '': '',
      'ms a step': '.2f',
      f'over {first}': '.3f',
      'of peak': '.3f',
      **dict.fromkeys(BYTES.values(), '.1f'),
    },
    [
      (
        name,
        each,
        times.ratio(name, first),
        shares.get(name),
        *(sizes[name][kind] / MEBIBYTE if name in sizes else None for kind in BYTES),
      )
      for name, each in milliseconds.items()
    ],
  )

  def ratio(name: str, above: str, below: str) -> float | None:
    if 'bytes' not in name:
      return times.ratio(above, below)
    both = {above, below} <= sizes.keys()
    return sizes[above]['bytes_held'] / sizes[below]['bytes_held'] if both else None

  return {
    'repeats': repeats,
    'milliseconds': milliseconds,
    'share_of_peak': shares,
    **{name: ratio(name, *pair) for name, pair in ratios.items()},
    **{kind: {name: of[kind] for name, of in sizes.items()} for kind in BYTES if sizes},
  }
