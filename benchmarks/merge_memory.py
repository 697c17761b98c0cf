"""Temporaries and compile time of scoring 8 candidates of a ViT-B/16 at once, lazily merged and up front, scanned and not.

  python -m benchmarks.merge_memory [--quick]

Nothing is run: the figures are XLA's own, from `compiled.memory_analysis()`, and the clock around `compile()`. `--quick` takes
a ViT of width 96. The last line is JSON.
"""

import argparse
import json
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp

import glora_jax
from benchmarks import machine
from glora_jax.models.vit import Block, ViT, vit

CANDIDATES, BATCH = 8, 8


class UnscannedViT(nn.Module):
  """The same network with its blocks written out one after another."""

  like: ViT

  @nn.compact
  def __call__(self, images):
    like = self.like
    x = nn.Conv(
      like.width, (like.patch_size,) * 2, strides=like.patch_size, padding='VALID', name='embed'
    )(images)
    x = x.reshape(x.shape[0], -1, like.width)
    x = x + self.param('pos_embed', nn.initializers.normal(0.02), (1, *x.shape[1:]))
    for i in range(like.depth):
      x, _ = Block(like.num_heads, 4 * like.width, name=f'block{i}')(x, None)
    return nn.Dense(like.num_classes, name='head')(nn.LayerNorm(name='norm')(x).mean(axis=1))


def measure(model, size, merge):
  """(MiB of temporaries, seconds to compile) of 8 candidates on 8 images."""
  images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
  adapted = glora_jax.adapt(model, images, merge=merge)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  variables = jax.eval_shape(adapted.init, jax.random.key(0), params)
  genomes = jax.ShapeDtypeStruct((CANDIDATES, len(adapted.spec), 5), jnp.int8)
  score = jax.jit(lambda v, g, x: jax.vmap(lambda genome: adapted.apply(v, x, genome=genome))(g))
  lowered = score.lower(variables, genomes, images)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  return compiled.memory_analysis().temp_size_in_bytes / 2**20, seconds


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help='a small ViT, one repeat')
  quick = parser.parse_args().quick
  jax.config.update('jax_enable_compilation_cache', False)
  small, base = (
    ViT(10, patch_size=7, width=96, depth=6, num_heads=3),
    vit('B', 1000, pool='gap', class_token=False),
  )
  model, size = (small, 28) if quick else (base, 224)
  rows = {}
  for _ in range(1 if quick else 3):
    for name, (network, merge) in {
      'scanned, lazy': (model, 'lazy'),
      'scanned, up front': (model, 'up_front'),
      'unscanned, lazy': (UnscannedViT(model), 'lazy'),
    }.items():
      rows.setdefault(name, []).append(measure(network, size, merge))
      jax.clear_caches()
  print(f'{"":20s} temporaries   compile')
  medians = {
    name: [statistics.median(values) for values in zip(*results, strict=True)]
    for name, results in rows.items()
  }
  for name, (mebibytes, seconds) in medians.items():
    print(f'{name:20s} {mebibytes:7.0f} MiB {seconds:8.2f} s')
  lazy, up_front, unscanned = medians.values()
  print(
    json.dumps(
      {
        'machine': machine.describe(),
        'quick': quick,
        'lazy_temporaries_mib': round(lazy[0], 1),
        'up_front_temporaries_mib': round(up_front[0], 1),
        'compile_scanned_over_unscanned': round(lazy[1] / unscanned[1], 3),
      }
    )
  )


if __name__ == '__main__':
  main()
