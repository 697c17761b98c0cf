"""One training step of an NNX model with LoRA: `glora_jax.nnx.attach` against qwix.

  pip install -e '.[peers]'   # without qwix its figures are null
  python -m benchmarks.nnx_step [--repeats 7] [--quick]

A ViT of NNX's own layers (attention by `nnx.LinearGeneral`, the rest by `nnx.Linear`) as large as
the embedded backbone, batch 64, rank 4 in all layers of all blocks, AdamW by `nnx.Optimizer`, each
step one call of a function under `nnx.jit`. `LoRA` is a space that offers nothing but a LoRA for B;
`supernet` has all five tensors and draws a genome in every step; `full` is full fine-tuning.
`--quick` takes two blocks and five repeats.

Rows take turns; a ratio is the median over the repeats of the ratios within one repeat. Below 1 is
faster. The last line is JSON.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import glora_jax
from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  median_ratio,
  milliseconds,
  print_result,
  print_table,
  rounded,
)
from benchmarks.machinery.peers import installed
from glora_jax.nnx import live

WIDTH, HEADS, TOKENS, CLASSES, BATCH, RANK = 96, 3, 17, 10, 64, 4
DEPTH, QUICK_DEPTH = 6, 2
STEPS, QUICK_REPEATS = 10, 5
FULL, SUPERNET, LORA, QWIX = 'full', 'supernet', 'LoRA', 'qwix LoRA'
BLOCKS = 'blocks/'


class Block(nnx.Module):
  """A transformer's block."""

  def __init__(self, rngs: nnx.Rngs):
    self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      num_heads=HEADS, in_features=WIDTH, decode=False, rngs=rngs
    )
    self.fc1 = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
    self.fc2 = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [image, token, width] to the same."""
    x = x + self.attention(self.norm1(x))
    return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x))))


class Vit(nnx.Module):
  """Blocks and a head."""

  def __init__(self, depth: int, rngs: nnx.Rngs):
    self.blocks = nnx.List([Block(rngs) for _ in range(depth)])
    self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps tokens [image, token, width] to logits [image, class]."""
    for block in self.blocks:
      x = block(x)
    return self.head(x.mean(1))


class Problem(NamedTuple):
  """A model and one batch.

  Attributes:
    model: the plain model.
    tokens: [image, token, width].
    labels: int [image].
  """

  model: Vit
  tokens: jax.Array
  labels: jax.Array

  @classmethod
  def random(cls, depth: int) -> 'Problem':
    """The same problem for the same depth, always."""
    tokens = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, WIDTH))
    return cls(Vit(depth, nnx.Rngs(1)), tokens, jnp.arange(BATCH) % CLASSES)


class Steps:
  """Training steps; each call goes on where the last one ended.

  Args:
    problem: the batch.
    model: what is trained.
    wrt: type of the variables that are trained.
    before: what is done to the model at the beginning of every step.
  """

  def __init__(
    self,
    problem: Problem,
    model: Vit,
    wrt: Any,
    before: Callable[[Any, jax.Array], None] | None = None,
  ):
    self.problem, self.model = problem, model
    self.optimizer = nnx.Optimizer(model, optax.adamw(1e-4), wrt=wrt)
    self.key = jax.random.key(2)

    def loss(model: Vit) -> jax.Array:
      logits = model(problem.tokens)
      return optax.softmax_cross_entropy_with_integer_labels(logits, problem.labels).mean()

    @nnx.jit
    def step(model: Vit, optimizer: nnx.Optimizer, key: jax.Array) -> jax.Array:
      if before is not None:
        before(model, key)
      value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, wrt))(model)
      optimizer.update(model, gradients)
      return value

    self.step = step

  def __call__(self) -> None:
    """Does the steps, to their end."""
    for _ in range(STEPS):
      self.key, key = jax.random.split(self.key)
      value = self.step(self.model, self.optimizer, key)
    jax.block_until_ready((value, nnx.state(self.model), nnx.state(self.optimizer)))


def full(problem: Problem) -> Steps:
  """Full fine-tuning."""
  return Steps(problem, nnx.clone(problem.model), nnx.Param)


def attached(problem: Problem, **forms: str) -> Vit:
  """The model with supports in its blocks."""
  space = glora_jax.SearchSpace((RANK,), **forms)
  return glora_jax.nnx.attach(problem.model, problem.tokens, space=space, select=BLOCKS, heads=None)


def lora(problem: Problem) -> Steps:
  """LoRA alone on offer, heads frozen as in qwix's."""
  model = attached(problem, A='none', B='lora', C='none', D='none', E='none')
  return Steps(problem, model, glora_jax.nnx.Trained)


def supernet(problem: Problem) -> Steps:
  """All five tensors, and a genome for every step."""
  model = attached(problem)
  layers = live.spec(model)

  def draw(model: Vit, key: jax.Array) -> None:
    glora_jax.nnx.set_genome(model, glora_jax.sample_genome(key, layers))

  return Steps(problem, model, glora_jax.nnx.Trained, draw)


def qwix_lora(problem: Problem) -> Steps:
  """LoRA of the same rank in the same layers of the same model, by Google's qwix."""
  import qwix

  provider = qwix.LoraProvider(module_path=f'{BLOCKS}.*', rank=RANK, alpha=float(RANK))
  model = qwix.apply_lora_to_model(problem.model, provider, problem.tokens, rngs=nnx.Rngs(3))
  return Steps(problem, model, nnx.LoRAParam)


ROWS = {FULL: full, SUPERNET: supernet, LORA: lora, QWIX: qwix_lora}


def main() -> None:
  """Measures and prints."""
  arguments = make_parser(__doc__, 'two blocks, five repeats', repeats=7).parse_args()
  problem = Problem.random(QUICK_DEPTH if arguments.quick else DEPTH)
  repeats = QUICK_REPEATS if arguments.quick else arguments.repeats
  rows = {name: make(problem) for name, make in ROWS.items() if name != QWIX or installed('qwix')}
  times = in_turn(rows, repeats)
  step = milliseconds(times, STEPS)
  ratios = {
    'lora_over_qwix': median_ratio(times, LORA, QWIX),
    'lora_over_full': median_ratio(times, LORA, FULL),
    'supernet_over_full': median_ratio(times, SUPERNET, FULL),
  }
  print_table(('', 'ms a step'), [(name, f'{value:.2f}') for name, value in step.items()])
  settings = {'quick': arguments.quick, 'repeats': repeats}
  print_result('nnx_step', {**settings, 'milliseconds': rounded(step, 2), **rounded(ratios)})


if __name__ == '__main__':
  main()
