"""What a search is told: the numbers of its operators, and which search it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from glora_jax.limits import Limits, check_fields
from glora_jax.search.archive import Fitness

Mode = Literal['paper', 'pareto', 'random']

MOST_SCORED = 10**6  # subnets in a generation; the archive of more would not fit a machine's memory
RANGES: Mapping[str, Limits] = {
  'population': Limits(at_least=1, at_most=MOST_SCORED),
  'generations': Limits(at_least=0, at_most=MOST_SCORED),
  'parents': Limits(at_least=1),
  'mutations': Limits(at_least=0),
  'crossovers': Limits(at_least=0),
  'mutation_probability': Limits(at_least=0, at_most=1),
}


@dataclasses.dataclass(frozen=True)
class Evolution:
  """The numbers of a search. The defaults are the paper's: 50 + 20 x 50 evaluations.

  Attributes:
    population: number of subnets scored in each generation.
    generations: number of generations after the random one, which is generation 0.
    parents: number of the best subnets so far from which the next generation comes.
    mutations: number of mutated children in a generation.
    crossovers: number of crossed children in a generation. What mutations and crossovers leave of
      the population is drawn at random.
    mutation_probability: probability that a gene of a mutated child is drawn anew.
    fitness: 'accuracy' (ties are broken by the loss) or 'loss'.
    mode: 'paper' looks for the fittest subnet (GLoRA section 3.4). 'pareto' looks for subnets that
      nothing beats in both fitness and trained parameters, by NSGA-II's selection (Deb et al.
      2002), so that any budget can be read off afterwards. 'random' draws every generation at
      random, for comparison.

  Raises:
    ValueError: a value is of another type, out of its range, or no choice.

  Example:
    >>> from glora_jax import Evolution
    >>> search = Evolution(population=20, generations=5, mutations=10, crossovers=10)
    >>> search.evaluations
    120
  """

  population: int = 50
  generations: int = 20
  parents: int = 10
  mutations: int = 25
  crossovers: int = 25
  mutation_probability: float = 0.2
  fitness: Fitness = 'accuracy'
  mode: Mode = 'paper'

  def __post_init__(self):
    check_fields(self, RANGES)
    if self.mutations + self.crossovers > self.population:
      raise ValueError(
        f'mutations={self.mutations} and crossovers={self.crossovers} are more than '
        f'population={self.population}; lower them.'
      )

  @property
  def evaluations(self) -> int:
    """Subnets that are scored, in all generations together."""
    return self.population * (self.generations + 1)
