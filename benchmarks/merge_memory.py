"""Temporaries and compile time of scoring 8 candidates of a ViT-B/16 at once, in three ways.

  python -m benchmarks.merge_memory [--quick]

Lazily merged and up front, scanned and not. Nothing is run: the figures are XLA's own, from
`compiled.memory_analysis()`, and the clock around `compile()`. `--quick` takes a ViT of width 96.
The last line is JSON.
"""

import statistics
import time
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.output import make_parser, print_result, print_table
from glora_jax.models.vit import Block, ViT, vit

CANDIDATES = 8
BATCH = 8
REPEATS, QUICK_REPEATS = 3, 1


class UnscannedViT(nn.Module):
  """The same network with its blocks written out one after another.

  Attributes:
    like: the scanned network.
  """

  like: ViT

  @nn.compact
  def __call__(self, images):
    """Images [batch, size, size, 3] to logits [batch, classes]."""
    like = self.like
    patch = (like.patch_size, like.patch_size)
    x = nn.Conv(like.width, patch, strides=patch, padding='VALID', name='embed')(images)
    x = x.reshape(x.shape[0], -1, like.width)
    x = x + self.param('pos_embed', nn.initializers.normal(0.02), (1, *x.shape[1:]))
    for i in range(like.depth):
      x, _ = Block(like.num_heads, 4 * like.width, name=f'block{i}')(x, None)
    return nn.Dense(like.num_classes, name='head')(nn.LayerNorm(name='norm')(x).mean(axis=1))


class Cost(NamedTuple):
  """What the compiler says: MiB of temporaries, and the seconds that it took."""

  mebibytes: float
  compile_seconds: float


def measure(model: nn.Module, size: int, merge: Literal['lazy', 'up_front']) -> Cost:
  """Compiles the scoring of 8 candidates on 8 images of `size` pixels."""
  images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
  adapted = glora_jax.adapt(model, images, merge=merge)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  variables = jax.eval_shape(adapted.init, jax.random.key(0), params)
  genomes = jax.ShapeDtypeStruct((CANDIDATES, len(adapted.spec), 5), jnp.int8)

  @jax.jit
  def score(variables, genomes, images):
    return jax.vmap(lambda genome: adapted.apply(variables, images, genome=genome))(genomes)

  lowered = score.lower(variables, genomes, images)
  start = time.perf_counter()
  compiled = lowered.compile()
  compile_seconds = time.perf_counter() - start
  jax.clear_caches()
  return Cost(compiled.memory_analysis().temp_size_in_bytes / 2**20, compile_seconds)


def median(costs: list[Cost]) -> Cost:
  """The median of each number."""
  return Cost(*map(statistics.median, zip(*costs, strict=True)))


def main() -> None:
  """Compiles in turn and prints."""
  quick = make_parser(__doc__, 'a small ViT, one repeat').parse_args().quick
  jax.config.update('jax_enable_compilation_cache', False)
  if quick:
    model, size = EMBEDDED_VIT, IMAGE_SIZE
  else:
    model, size = vit('B', 1000, pool='gap', class_token=False), 224
  unscanned_model = UnscannedViT(model)
  costs = [
    (
      measure(model, size, 'lazy'),
      measure(model, size, 'up_front'),
      measure(unscanned_model, size, 'lazy'),
    )
    for _ in range(QUICK_REPEATS if quick else REPEATS)
  ]
  lazy, up_front, unscanned = map(median, zip(*costs, strict=True))
  rows = {'scanned, lazy': lazy, 'scanned, up front': up_front, 'unscanned, lazy': unscanned}
  print_table(
    ('', 'temporaries', 'compile'),
    [
      (name, f'{cost.mebibytes:.0f} MiB', f'{cost.compile_seconds:.2f} s')
      for name, cost in rows.items()
    ],
  )
  values = {
    'quick': quick,
    'lazy_temporaries_mib': round(lazy.mebibytes, 1),
    'up_front_temporaries_mib': round(up_front.mebibytes, 1),
    'compile_scanned_over_unscanned': round(lazy.compile_seconds / unscanned.compile_seconds, 3),
  }
  print_result('merge_memory', values)


if __name__ == '__main__':
  main()
