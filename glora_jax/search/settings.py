"""What a search is told: the numbers of its operators, and which search it is."""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

from glora_jax.search.archive import Fitness

Mode = Literal['paper', 'pareto', 'guided', 'random']


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
      2002), so that any budget can be read off afterwards. 'guided' proposes what first-order
      estimates of the loss at the `guides` fittest subnets promise (`guidance.make_guide`), and
      crossovers. 'random' draws every generation at random, for comparison.
    stop_early: whether a subnet is left as soon as it cannot become a parent, in the mode 'paper'.
      It selects the same subnets (`evolve`), and made the quickstart's search 1.4 times as fast
      (benchmarks/RESULTS.md). Off by default, since the archive then holds bounds of those that
      were left.
    guides: number of subnets at which estimates are made in each generation of the mode 'guided'.

  Raises:
    ValueError: a number is out of its range, or a choice is unknown.

  Example:
    >>> from glora_jax import Evolution
    >>> search = Evolution(population=20, generations=5, mutations=10, crossovers=10)
    >>> search.population * (search.generations + 1)
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
  stop_early: bool = False
  guides: int = 1

  def __post_init__(self):
    if min(self.population, self.parents) < 1 or (
      min(self.generations, self.mutations, self.crossovers) < 0
    ):
      raise ValueError(
        f'{self}: population and parents are at least 1, the other numbers at least 0.'
      )
    if self.mutations + self.crossovers > self.population:
      raise ValueError(
        f'mutations={self.mutations} and crossovers={self.crossovers} are more than '
        f'population={self.population}; lower them.'
      )
    if not 0 <= self.mutation_probability <= 1:
      raise ValueError(f'mutation_probability={self.mutation_probability} must be between 0 and 1.')
    if self.fitness not in typing.get_args(Fitness):
      raise ValueError(f"fitness='{self.fitness}' is unknown; it is 'accuracy' or 'loss'.")
    if self.mode not in typing.get_args(Mode):
      raise ValueError(
        f"mode='{self.mode}' is unknown; it is one of {', '.join(typing.get_args(Mode))}."
      )
