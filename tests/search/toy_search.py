"""A search whose scores can be computed by hand: how many genes equal a target's."""

import jax
import numpy as np

from glora_jax.method.genomes import canonicalize
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search.evolution import Evolution, evolve

SPEC = Spec(tuple(Layer(f'layer{i}', 8, 8, i != 2, SearchSpace((2, 4))) for i in range(4)))
TARGET = canonicalize(SPEC, np.random.default_rng(5).integers(0, SPEC.num_codes))
GENES = TARGET.size
SMALL = Evolution(population=20, generations=6, parents=5, mutations=10, crossovers=10)


class Judge:
  """Scores genomes by how many genes equal the target's, and remembers what it was asked."""

  def __init__(self, target=TARGET):
    self.asked = []
    self.target = target

  def __call__(self, genomes):
    self.asked.append(genomes.copy())
    correct = (genomes == self.target).sum((1, 2))
    return correct, 100.0 - correct


class StoppingJudge(Judge):
  """Leaves a genome at the first gene after which it can no longer be a parent."""

  def stop(self, genomes, valid, parents):
    bar = parents.min()
    agree = (genomes == self.target).reshape(len(genomes), -1)
    unseen = np.arange(GENES - 1, -1, -1)
    bound = agree.cumsum(1) + unseen
    exact = (bound >= bar).all(1)
    bound_where_left = bound[np.arange(len(bound)), (bound < bar).argmax(1)]
    correct = np.where(exact, agree.sum(1), bound_where_left)
    return np.where(valid, correct, 0), 100.0 - agree.sum(1), exact


def search(settings=SMALL, judge=None, seed=0, **options):
  """(archive, judge) of a search."""
  judge = judge or Judge()
  archive = evolve(SPEC, judge, jax.random.key(seed), settings, progress=False, **options)
  return archive, judge


def assert_same(archive, other):
  """Two archives are equal to the last bit."""
  for name, values in archive.arrays().items():
    np.testing.assert_array_equal(values, other.arrays()[name])
