"""Scoring a population against the floor for it.

  pip install -e '.[peers]'   # for the comparison with PyTorch, optional
  python -m benchmarks.score_population [--quick]

`throughput_over_plain`: candidates x images per second of `make_scorer`, over the same ViT's plain
jitted forward, run once per candidate and block; in turn, the median of the ratios, for three
shapes. `throughput_over_torch`: the first shape against a serial PyTorch loop that merges each
candidate and runs it (null without PyTorch and timm). `--quick` takes half of the candidates and
fewer repeats. The last line is JSON.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery import peers
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE, NUM_CLASSES
from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  median_ratio,
  print_result,
  print_table,
  rounded,
)
from glora_jax.models.vit import ViT

BLOCK = 256  # images of one call of the plain forward, as many as the scorer takes
REPEATS, QUICK_REPEATS = 7, 3


class Shape(NamedTuple):
  """A model, and how much of what it scores: so much that a measurement takes about a second.

  Attributes:
    model: the ViT.
    size: side of the images, in pixels.
    candidates: genomes of the population.
    images: that each of them answers.
  """

  model: ViT
  size: int
  candidates: int
  images: int


SHAPES = {
  'embedded ViT, 28 pixels': Shape(EMBEDDED_VIT, IMAGE_SIZE, 32, 200),
  'ViT-Ti/16, 64 pixels': Shape(
    ViT(NUM_CLASSES, patch_size=16, width=192, depth=12, num_heads=3), 64, 8, 100
  ),
  'ViT-S/16, 96 pixels': Shape(
    ViT(NUM_CLASSES, patch_size=16, width=384, depth=12, num_heads=6), 96, 4, 50
  ),
}


def measure(shape: Shape, repeats: int, with_torch: bool) -> tuple[float, float | None]:
  """Throughput of the scorer over that of the plain forward, and over that of the serial loop.

  The plain forward is the floor: the model without supports on the same blocks, once per candidate.
  None where PyTorch is not asked for or not installed.
  """
  model, size, candidates, number = shape
  images = jax.random.normal(jax.random.key(0), (number, size, size, 3))
  labels = jnp.zeros(number, jnp.int32)
  adapted = glora_jax.adapt(model, images[:1])
  params = jax.jit(model.init)(jax.random.key(2), images[:1])['params']
  variables = adapted.init(jax.random.key(1), params)
  genomes = glora_jax.random_genomes(np.random.default_rng(0), adapted.spec, candidates)
  score, forward = glora_jax.make_scorer(adapted), jax.jit(model.apply)

  def ours():
    return score(variables, genomes, images, labels)

  def plain():
    blocks = range(0, number, BLOCK)
    return [forward({'params': params}, images[at : at + BLOCK]) for _ in genomes for at in blocks]

  over_plain = median_ratio(in_turn({'ours': ours, 'plain': plain}, repeats), 'plain', 'ours')
  if not with_torch or not peers.installed('torch', 'timm'):
    return over_plain, None
  serial = peers.SerialTorchScorer(model, images)
  times = in_turn({'ours': ours, 'torch': lambda: serial(genomes)}, repeats)
  return over_plain, median_ratio(times, 'torch', 'ours')


def main() -> None:
  """Measures and prints."""
  quick = make_parser(__doc__, 'fewer candidates and repeats').parse_args().quick
  rows, over_plain, over_torch = [], {}, None
  for name, shape in SHAPES.items():
    is_first = not rows
    if quick:
      shape = shape._replace(candidates=shape.candidates // 2)
    ratio, torch = measure(shape, QUICK_REPEATS if quick else REPEATS, is_first)
    over_plain[name], over_torch = ratio, torch if is_first else over_torch
    cell = 'null' if torch is None else f'{torch:.2f}'
    rows.append((name, f'{ratio:.2f}', cell if is_first else ''))
  print_table(('throughput over', 'plain forward', 'serial PyTorch loop'), rows)
  values = {'throughput_over_plain': over_plain, 'throughput_over_torch': over_torch}
  print_result('score_population', rounded(values))


if __name__ == '__main__':
  main()
