"""Temporaries of 8 candidates of a ViT-B/16 at once: merged where a kernel is used, or all folded.

  python -m benchmarks.merge_memory [--quick]

Nothing is run: the figures are XLA's own, from `compiled.memory_analysis()`. `--quick` takes a ViT
of width 96. The last line is JSON.
"""

import functools

import jax
import jax.numpy as jnp

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.machinery.vits import vit
from glora_jax.vision.models.vit import ViT

CANDIDATES = 8
BATCH = 8


def measure(model: ViT, size: int, folded: bool) -> float:
  """MiB of temporaries of 8 candidates on 8 images of `size` pixels."""
  images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
  adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace())
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  variables = jax.eval_shape(adapted.init, jax.random.key(0), params)
  genomes = jax.ShapeDtypeStruct((CANDIDATES, len(adapted.spec), 5), jnp.int8)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0, None))
  def score(variables, genome, images):
    if folded:
      return model.apply({'params': adapted.fold(variables, genome)}, images)
    return adapted.apply(variables, images, genome=genome)

  compiled = score.lower(variables, genomes, images).compile()
  return compiled.memory_analysis().temp_size_in_bytes / 2**20


def main() -> None:
  """Compiles and prints."""
  quick = make_parser(__doc__, 'a small ViT').parse_args().quick
  large = vit('B', 1000, pool='gap', class_token=False), 224
  of = (EMBEDDED_VIT, IMAGE_SIZE) if quick else large
  found = {name: measure(*of, name == 'folded') for name in ('where used', 'folded')}
  print_table({'merged': '', 'temporaries, MiB': '.0f'}, found.items())
  print_result('merge_memory', {'quick': quick, 'temporaries_mib': found})


if __name__ == '__main__':
  main()
