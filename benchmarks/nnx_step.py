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

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import glora_jax
from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.machinery.peers import installed
from benchmarks.machinery.training_steps import compare
from glora_jax.nnx import live

WIDTH, HEADS, TOKENS, CLASSES, BATCH, RANK = 96, 3, 17, 10, 64, 4
DEPTH, QUICK_DEPTH = 6, 2
STEPS, QUICK_REPEATS = 10, 5
BLOCKS = 'blocks/'
RATIOS = {
  'lora_over_qwix': ('LoRA', 'qwix LoRA'),
  'lora_over_full': ('LoRA', 'full'),
  'supernet_over_full': ('supernet', 'full'),
}


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


def steps_of(
  model: Vit, tokens: jax.Array, wrt: Any, before: Callable[[Any, jax.Array], None] | None = None
) -> Callable[[], None]:
  """What does training steps, to their end; each call goes on where the last one ended.

  Args:
    model: what is trained.
    tokens: the batch, [image, token, width].
    wrt: type of the variables that are trained.
    before: what is done to the model at the beginning of every step.
  """
  labels = jnp.arange(BATCH) % CLASSES
  optimizer = nnx.Optimizer(model, optax.adamw(1e-4), wrt=wrt)
  keys = map(jax.random.key, itertools.count())

  def loss(model: Vit) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()

  @nnx.jit
  def step(model: Vit, optimizer: nnx.Optimizer, key: jax.Array) -> jax.Array:
    if before is not None:
      before(model, key)
    value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, wrt))(model)
    optimizer.update(model, gradients)
    return value

  def run() -> None:
    for _ in range(STEPS):
      value = step(model, optimizer, next(keys))
    jax.block_until_ready((value, nnx.state(model), nnx.state(optimizer)))

  return run


def rows_of(depth: int) -> dict[str, Callable[[], None]]:
  """The same random model in all ways, heads frozen as in qwix's."""
  model, trained = Vit(depth, nnx.Rngs(1)), glora_jax.nnx.Trained
  tokens = jax.random.normal(jax.random.key(0), (BATCH, TOKENS, WIDTH))

  def attached(**forms: str) -> Vit:
    space = glora_jax.SearchSpace((RANK,), **forms)
    return glora_jax.nnx.attach(model, tokens, space=space, select=BLOCKS, heads=None)

  supernet = attached()
  layers = live.spec(supernet)

  def draw(model: Vit, key: jax.Array) -> None:
    glora_jax.nnx.set_genome(model, glora_jax.sample_genome(key, layers))

  lora = attached(A='none', B='lora', C='none', D='none', E='none')
  rows = {
    'full': steps_of(nnx.clone(model), tokens, nnx.Param),
    'supernet': steps_of(supernet, tokens, trained, draw),
    'LoRA': steps_of(lora, tokens, trained),
  }
  if installed('qwix'):
    import qwix

    provider = qwix.LoraProvider(module_path=f'{BLOCKS}.*', rank=RANK, alpha=float(RANK))
    peer = qwix.apply_lora_to_model(model, provider, tokens, rngs=nnx.Rngs(3))
    rows['qwix LoRA'] = steps_of(peer, tokens, nnx.LoRAParam)
  return rows


def main() -> None:
  """Measures and prints."""
  given = make_parser(__doc__, 'two blocks, five repeats', repeats=7).parse_args()
  rows = rows_of(QUICK_DEPTH if given.quick else DEPTH)
  found = compare(rows, STEPS, QUICK_REPEATS if given.quick else given.repeats, RATIOS)
  print_result('nnx_step', {'quick': given.quick, **found})


if __name__ == '__main__':
  main()
