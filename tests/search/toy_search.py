"""A search whose scores can be computed by hand: how many genes equal a target's."""

import jax
import numpy as np

from glora_jax.method.genomes import canonicalize
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search.evolution import Evolution, evolve

SPEC = Spec(tuple(Layer(f'layer{i}', 8, 8, i != 2, SearchSpace((2, 4))) for i in range(4)))
TARGET = canonicalize(SPEC, np.random.default_rng(5).integers(0, SPEC.num_codes))
SMALL = Evolution(population=20, generations=6, parents=5, mutations=10, crossovers=10)


class Judge:
  """Scores genomes by how many genes equal the target's, and remembers what it was asked."""

  def __init__(self):
    self.asked = []

  def __call__(self, genomes):
    self.asked.append(genomes.copy())
    correct = (genomes == TARGET).sum((1, 2))
    return correct, 100.0 - correct


def search(settings=SMALL, seed=0, **options):
  """(archive, judge) of a search."""
  judge = Judge()
  archive = evolve(SPEC, judge, jax.random.key(seed), settings, progress=False, **options)
  return archive, judge
