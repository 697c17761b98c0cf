"""Scoring a population against the floor for it.

  pip install -e '.[peers]'   # for the comparison with PyTorch, optional
  python -m benchmarks.score_population [--quick]

`throughput_over_plain`: candidates x images per second of `make_scorer`, over the same ViT's plain
jitted forward, run once per candidate and block; in turn, the median of the ratios, for three
shapes. `throughput_over_torch`: the first shape against a serial PyTorch loop that merges each
candidate and runs it (null without PyTorch and timm). `--quick` measures the first shape
alone, with fewer candidates and repeats. The last line is JSON.
"""

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery import peers
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE, NUM_CLASSES
from benchmarks.machinery.measuring import Times, in_turn, make_parser, print_result, print_table
from glora_jax.vision.models.vit import ViT

BLOCK = 256  # images of one call of the plain forward, as many as the scorer takes
REPEATS, QUICK_REPEATS = 7, 3


def deep_vit(width: int, heads: int) -> ViT:
  """Twelve blocks on patches of 16 pixels."""
  return ViT(NUM_CLASSES, patch_size=16, width=width, depth=12, num_heads=heads)


# A model, the side of its images, genomes of the population, and images that each of them answers:
# so much that a measurement takes about a second.
SHAPES = {
  'embedded ViT, 28 pixels': (EMBEDDED_VIT, IMAGE_SIZE, 32, 200),
  'ViT-Ti/16, 64 pixels': (deep_vit(192, 3), 64, 8, 100),
  'ViT-S/16, 96 pixels': (deep_vit(384, 6), 96, 4, 50),
}


def measure(
  model: ViT, size: int, candidates: int, number: int, repeats: int, with_torch: bool
) -> Times:
  """Times of the scorer, of the plain forward, which is the floor, and of the serial loop."""
  images = jax.random.normal(jax.random.key(0), (number, size, size, 3))
  labels = jnp.zeros(number, jnp.int32)
  adapted = glora_jax.adapt(model, images[:1], space=glora_jax.SearchSpace())
  params = jax.jit(model.init)(jax.random.key(2), images[:1])['params']
  variables = adapted.init(jax.random.key(1), params)
  genomes = glora_jax.random_genomes(np.random.default_rng(0), adapted.spec, candidates)
  score = glora_jax.make_scorer(adapted, glora_jax.classification())
  forward = jax.jit(model.apply)
  blocks = [images[at : at + BLOCK] for at in range(0, number, BLOCK)]
  ways = {
    'ours': lambda: score(variables, genomes, (images, labels)),
    'plain': lambda: [forward({'params': params}, block) for _ in genomes for block in blocks],
  }
  if with_torch:
    serial = peers.serial_torch_scorer(model, images)
    ways['torch'] = lambda: serial(genomes)
  return in_turn(ways, repeats)


def main() -> None:
  """Measures and prints."""
  quick = make_parser(__doc__, 'one shape, fewer candidates and repeats').parse_args().quick
  repeats = QUICK_REPEATS if quick else REPEATS
  plain, torch = {}, {}
  for name, (model, size, candidates, images) in SHAPES.items():
    if quick and plain:
      break
    with_torch = not plain and peers.installed('torch', 'timm')
    number = candidates // 8 if quick else candidates
    times = measure(model, size, number, images, repeats, with_torch)
    plain[name], torch[name] = (times.ratio(other, 'ours') for other in ('plain', 'torch'))
  print_table(
    {'throughput over': '', 'plain forward': '.2f', 'serial PyTorch loop': '.2f'},
    [(name, plain[name], torch[name]) for name in plain],
  )
  values = {'throughput_over_plain': plain, 'throughput_over_torch': torch[next(iter(SHAPES))]}
  print_result('score_population', values)


if __name__ == '__main__':
  main()
