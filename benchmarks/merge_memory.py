"""Temporaries and compile time of 8 candidates of a ViT-B/16 at once, in three ways.

  python -m benchmarks.merge_memory [--quick]

Merged where a kernel is used, with scanned blocks and without a scan, and all folded before the
call. Nothing is run: the figures are XLA's own, from
`compiled.memory_analysis()`, and the clock around `compile()`. `--quick` takes a ViT of width 96.
The last line is JSON.
"""

import functools
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from glora_jax.method.equation import made_for
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


def measure(model: nn.Module, size: int, folded: bool) -> tuple[float, float]:
  """MiB of temporaries, and seconds to compile, of 8 candidates on 8 images of `size` pixels."""
  images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
  adapted = glora_jax.adapt(model, images)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  variables = jax.eval_shape(adapted.init, jax.random.key(0), params)
  genomes = jax.ShapeDtypeStruct((CANDIDATES, len(adapted.spec), 5), jnp.int8)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0, None))
  def score(variables, genome, images):
    if folded:
      return model.apply({'params': adapted.fold(variables, genome)}, images)
    return adapted.apply(variables, images, genome=genome)

  with made_for('tpu'):  # on CPU candidates are folded, and biases merged first
    lowered = score.lower(variables, genomes, images)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  jax.clear_caches()
  return compiled.memory_analysis().temp_size_in_bytes / 2**20, seconds


def main() -> None:
  """Compiles in turn and prints."""
  quick = make_parser(__doc__, 'a small ViT, one repeat').parse_args().quick
  jax.config.update('jax_enable_compilation_cache', False)
  if quick:
    model, size = EMBEDDED_VIT, IMAGE_SIZE
  else:
    model, size = vit('B', 1000, pool='gap', class_token=False), 224
  ways = {
    'scanned': (model, False),
    'scanned, folded': (model, True),
    'unscanned': (UnscannedViT(model), False),
  }
  costs = [
    [measure(network, size, folded) for network, folded in ways.values()]
    for _ in range(QUICK_REPEATS if quick else REPEATS)
  ]
  medians = np.median(costs, axis=0)
  print_table(
    {'': '', 'temporaries, MiB': '.0f', 'compile, s': '.2f'},
    [(name, *cost) for name, cost in zip(ways, medians, strict=True)],
  )
  values = {
    'quick': quick,
    'temporaries_mib': medians[0, 0],
    'folded_temporaries_mib': medians[1, 0],
    'compile_scanned_over_unscanned': medians[0, 1] / medians[2, 1],
  }
  print_result('merge_memory', values)


if __name__ == '__main__':
  main()
