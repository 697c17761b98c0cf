"""Scoring a population against the floor for it.

  pip install -e '.[peers]'   # for the comparison with PyTorch, optional
  python -m benchmarks.score_population [--quick]

`throughput_over_plain`: candidates x images per second of `make_scorer`, over the same ViT's plain
jitted forward, run once per candidate and block; in turn, the median of the ratios, for three
shapes. `throughput_over_torch`: the first shape against a serial PyTorch loop that merges each
candidate and runs it (null without PyTorch and timm). `--quick` takes half of the candidates and
fewer repeats. The last line is JSON.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery import peers
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE, NUM_CLASSES
from benchmarks.machinery.output import make_parser, print_result, print_table, rounded
from benchmarks.machinery.timing import in_turn, median_ratio
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import random_genomes
from glora_jax.models.vit import ViT
from glora_jax.search import scoring

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


@dataclasses.dataclass(frozen=True, eq=False)
class Population:
  """A random population and the images that it is scored on.

  Attributes:
    adapted: what `glora_jax.adapt` returned.
    variables: of the supernet.
    genomes: int8 [candidate, layer, 5].
    images: float32 [n, size, size, 3].
    labels: int32 [n].
  """

  adapted: Adapted
  variables: Any
  genomes: np.ndarray
  images: jax.Array
  labels: jax.Array

  @classmethod
  def random(cls, shape: Shape) -> 'Population':
    """The same population for the same shape, always."""
    model, size, candidates, number = shape
    images = jax.random.normal(jax.random.key(0), (number, size, size, 3))
    adapted = glora_jax.adapt(model, images[:1])
    params = jax.jit(model.init)(jax.random.key(2), images[:1])['params']
    variables = adapted.init(jax.random.key(1), params)
    genomes = random_genomes(np.random.default_rng(0), adapted.spec, candidates)
    return cls(adapted, variables, genomes, images, jnp.zeros(number, jnp.int32))

  def scorer(self) -> Callable[[], Any]:
    """What is measured: the library's scoring of the population."""
    score = scoring.make_scorer(self.adapted)
    return lambda: score(self.variables, self.genomes, self.images, self.labels)

  def plain_forward(self) -> Callable[[], Any]:
    """The floor: the model without supports on the same blocks, once per candidate."""
    forward = jax.jit(self.adapted.model.apply)
    params = {'params': self.variables['params']}
    starts = range(0, len(self.labels), BLOCK)
    return lambda: [
      forward(params, self.images[start : start + BLOCK]) for _ in self.genomes for start in starts
    ]


def over_plain(population: Population, repeats: int) -> float:
  """Throughput of the scorer over that of the plain forward."""
  times = in_turn({'ours': population.scorer(), 'plain': population.plain_forward()}, repeats)
  return median_ratio(times, 'plain', 'ours')


def over_torch(population: Population, repeats: int) -> float | None:
  """Throughput of the scorer over that of the serial loop; None where PyTorch is not installed."""
  if not peers.installed('torch', 'timm'):
    return None
  serial = peers.SerialTorchScorer(population.adapted.model, population.images)
  times = in_turn(
    {'ours': population.scorer(), 'torch': lambda: serial(population.genomes)}, repeats
  )
  return median_ratio(times, 'torch', 'ours')


def main() -> None:
  """Measures and prints."""
  quick = make_parser(__doc__, 'fewer candidates and repeats').parse_args().quick
  repeats = QUICK_REPEATS if quick else REPEATS
  shapes = {
    name: shape._replace(candidates=shape.candidates // 2) if quick else shape
    for name, shape in SHAPES.items()
  }
  populations = {name: Population.random(shape) for name, shape in shapes.items()}
  plain = {name: over_plain(population, repeats) for name, population in populations.items()}
  first = next(iter(SHAPES))
  torch = over_torch(populations[first], repeats)
  over_torch_loop = dict.fromkeys(SHAPES, '') | {first: 'null' if torch is None else f'{torch:.2f}'}
  print_table(
    ('throughput over', 'plain forward', 'serial PyTorch loop'),
    [(name, f'{ratio:.2f}', over_torch_loop[name]) for name, ratio in plain.items()],
  )
  values = {
    'throughput_over_plain': {name: round(ratio, 3) for name, ratio in plain.items()},
    'throughput_over_torch': rounded(torch),
  }
  print_result('score_population', values)


if __name__ == '__main__':
  main()
