"""How a search goes on from what it has found: the paper's evolution, and its alternatives."""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import numpy as np

from glora_jax.method.draws import shrink
from glora_jax.method.genomes import count_params
from glora_jax.method.space import Spec
from glora_jax.search.archive import Archive
from glora_jax.search.brood import Brood
from glora_jax.search.operators import cross, mutate
from glora_jax.search.pareto import nondominated_order
from glora_jax.search.settings import Evolution


class Strategy(Protocol):
  """What distinguishes one search from another."""

  def parents(self, archive: Archive) -> np.ndarray:
    """The parents of the next generation, int8 [parent, layer, 5]; none for a random generation."""
    ...

  def propose(self, rng: np.random.Generator, parents: np.ndarray, brood: Brood) -> None:
    """Adds the children of at least one parent; what they leave of the brood is drawn at random."""
    ...


@dataclasses.dataclass(frozen=True)
class PaperEvolution:
  """The paper's evolution (section 3.4): the fittest subnets mutate and cross.

  Children above the budget are repaired (`draws.shrink`), not thrown away.

  Attributes:
    spec: the genomes' spec.
    settings: the numbers of the search.
    budget: most trained parameters; None for no limit.
  """

  spec: Spec
  settings: Evolution
  budget: int | None

  def parents(self, archive: Archive) -> np.ndarray:
    """The fittest subnets so far, int8 [parent, layer, 5]."""
    return archive.genomes[archive.ranking(self.settings.fitness)[: self.settings.parents]]

  def propose(self, rng: np.random.Generator, parents: np.ndarray, brood: Brood) -> None:
    """Adds mutated children, then crossed ones."""
    brood.fill(self.settings.mutations, functools.partial(self._mutate, rng, parents))
    size = len(brood) + self.settings.crossovers
    brood.fill(size, functools.partial(self._cross, rng, parents))

  def _mutate(self, rng: np.random.Generator, parents: np.ndarray, number: int) -> np.ndarray:
    probability = self.settings.mutation_probability
    children = mutate(rng, self.spec, parents, number, probability)
    return shrink(rng, self.spec, children, self.budget)

  def _cross(self, rng: np.random.Generator, parents: np.ndarray, number: int) -> np.ndarray:
    return shrink(rng, self.spec, cross(rng, self.spec, parents, number), self.budget)


@dataclasses.dataclass(frozen=True)
class ParetoEvolution(PaperEvolution):
  """As the paper's, with NSGA-II's parents: subnets that nothing beats in fitness and size."""

  def parents(self, archive: Archive) -> np.ndarray:
    """The first subnets of the non-dominated order, int8 [parent, layer, 5]."""
    params = count_params(self.spec, archive.genomes)
    order = nondominated_order(params, archive.cost(self.settings.fitness))
    return archive.genomes[order[: self.settings.parents]]


class RandomSearch:
  """Every generation drawn at random, for comparison."""

  def parents(self, archive: Archive) -> np.ndarray:
    """No genomes, int8 [0, layer, 5]."""
    return archive.genomes[:0]

  def propose(self, rng: np.random.Generator, parents: np.ndarray, brood: Brood) -> None:
    """Adds nothing."""


def make_strategy(spec: Spec, settings: Evolution, budget: int | None) -> Strategy:
  """The strategy of a mode.

  Args:
    spec: the genomes' spec.
    settings: the numbers of the search, and its mode.
    budget: most trained parameters; None for no limit.
  """
  match settings.mode:
    case 'paper':
      return PaperEvolution(spec, settings, budget)
    case 'pareto':
      return ParetoEvolution(spec, settings, budget)
    case 'random':
      return RandomSearch()
