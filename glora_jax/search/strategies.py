"""How a search goes on from what it has found: the paper's evolution, and its alternatives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np

from glora_jax.limits import check_callable
from glora_jax.method.draws import shrink
from glora_jax.method.genomes import count_params
from glora_jax.method.space import Spec
from glora_jax.search.archive import Archive
from glora_jax.search.brood import Brood
from glora_jax.search.checked import NonFiniteError
from glora_jax.search.operators import cross, mutate, propose_guided
from glora_jax.search.pareto import nondominated_order
from glora_jax.search.settings import Evolution

Guide = Callable[[np.ndarray], np.ndarray]


class Strategy(Protocol):
  """What distinguishes one search from another.

  Attributes:
    may_stop_early: whether a subnet that cannot become a parent may be left before it is scored to
      the end. That needs parents that are the fittest and nothing else.
  """

  may_stop_early: ClassVar[bool]

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
  may_stop_early: ClassVar[bool] = True

  def parents(self, archive: Archive) -> np.ndarray:
    """The fittest subnets so far, int8 [parent, layer, 5]."""
    return archive.genomes[archive.fittest(self.settings.parents, self.settings.fitness)]

  def propose(self, rng: np.random.Generator, parents: np.ndarray, brood: Brood) -> None:
    """Adds mutated children, then crossed ones."""
    brood.fill(self.settings.mutations, functools.partial(self._mutate, rng, parents))
    self._add_crossovers(rng, parents, brood)

  def _add_crossovers(self, rng: np.random.Generator, parents: np.ndarray, brood: Brood) -> None:
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

  may_stop_early: ClassVar[bool] = False

  def parents(self, archive: Archive) -> np.ndarray:
    """The first subnets of the non-dominated order, int8 [parent, layer, 5]."""
    scored = archive.scored()
    params = count_params(self.spec, scored.genomes)
    order = nondominated_order(params, scored.cost(self.settings.fitness))
    return scored.genomes[order[: self.settings.parents]]


@dataclasses.dataclass(frozen=True)
class GuidedEvolution(PaperEvolution):
  """As the paper's, with changes that first-order estimates promise in place of mutations.

  Attributes:
    guide: genome int8 [layer, 5] -> estimated loss of every allele, [layer, 5, code].
  """

  guide: Guide
  may_stop_early: ClassVar[bool] = False

  def propose(self, rng: np.random.Generator, parents: np.ndarray, brood: Brood) -> None:
    """Adds guided children of the very fittest parents, then crossed ones of all."""
    fittest = parents[: self.settings.guides]
    values = np.stack([self._values(genome) for genome in fittest])
    draw = functools.partial(propose_guided, rng, self.spec, fittest, values, budget=self.budget)
    brood.fill(self.settings.mutations, draw)
    self._add_crossovers(rng, parents, brood)

  def _values(self, genome: np.ndarray) -> np.ndarray:
    """What the guide says of a genome, [layer, 5, code].

    Raises:
      ValueError: it has another shape.
      NonFiniteError: it has values that are not finite.
    """
    values = np.asarray(self.guide(genome))
    expected = self.spec.cost_table.shape
    if values.shape != expected:
      raise ValueError(
        f'guide gave {values.dtype} {list(values.shape)}; it must give finite losses, '
        f'{list(expected)}.'
      )
    if not np.isfinite(values).all():
      raise NonFiniteError(
        'guide gave losses that are not finite. Train the supernet with a lower learning rate, or '
        'check the images.'
      )
    return values


class RandomSearch:
  """Every generation drawn at random, for comparison."""

  may_stop_early: ClassVar[bool] = False

  def parents(self, archive: Archive) -> np.ndarray:
    """No genomes, int8 [0, layer, 5]."""
    return archive.genomes[:0]

  def propose(self, rng: np.random.Generator, parents: np.ndarray, brood: Brood) -> None:
    """Adds nothing."""


def make_strategy(
  spec: Spec, settings: Evolution, budget: int | None, guide: Guide | None
) -> Strategy:
  """The strategy of a mode.

  Args:
    spec: the genomes' spec.
    settings: the numbers of the search, and its mode.
    budget: most trained parameters; None for no limit.
    guide: see `GuidedEvolution`; the mode 'guided' alone needs it.

  Raises:
    ValueError: the mode 'guided' has no guide.
  """
  match settings.mode:
    case 'paper':
      return PaperEvolution(spec, settings, budget)
    case 'pareto':
      return ParetoEvolution(spec, settings, budget)
    case 'guided':
      if guide is None:
        raise ValueError("The mode 'guided' needs a guide; guidance.make_guide makes one.")
      check_callable(guide, 'guide')
      return GuidedEvolution(spec, settings, budget, guide)
    case 'random':
      return RandomSearch()
