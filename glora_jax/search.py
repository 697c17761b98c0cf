"""The paper's evolutionary search (GLoRA section 3.4), for any function that scores genomes.

All that a search knows is its archive: every subnet scored so far, in order. A generation is a pure function of the archive,
its own number and the key, so a search that is resumed from a saved archive ends exactly where the undisturbed one ends.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from glora_jax import space
from glora_jax.space import Spec

_TRIES = 10  # rounds of proposals before a generation is content with fewer new subnets


@dataclasses.dataclass(frozen=True)
class Evolution:
  """The operators' numbers. The defaults are the paper's: 50 + 20 x 50 evaluations.

  Attributes:
    population: subnets scored in each generation.
    generations: after the random one, which is generation 0.
    parents: best subnets so far, from which the next generation comes.
    mutations, crossovers: children of each kind in a generation; the rest of the population is drawn at random.
    mutation_probability: that a gene of a mutated child is drawn anew.
    fitness: 'accuracy' (ties broken by loss) or 'loss'.
  """

  population: int = 50
  generations: int = 20
  parents: int = 10
  mutations: int = 25
  crossovers: int = 25
  mutation_probability: float = 0.2
  fitness: str = 'accuracy'

  def __post_init__(self):
    if self.population < 1 or self.parents < 1 or min(self.generations, self.mutations, self.crossovers) < 0:
      raise ValueError(f'{self}: population and parents are at least 1, the other numbers at least 0.')
    if self.mutations + self.crossovers > self.population:
      raise ValueError(
          f'mutations={self.mutations} and crossovers={self.crossovers} are more than population={self.population}; lower them.')
    if not 0 <= self.mutation_probability <= 1:
      raise ValueError(f'mutation_probability={self.mutation_probability} must be between 0 and 1.')
    if self.fitness not in ('accuracy', 'loss'):
      raise ValueError(f"fitness='{self.fitness}' is unknown; it is 'accuracy' or 'loss'.")


@dataclasses.dataclass(frozen=True)
class Archive:
  """Every subnet scored, in the order of scoring.

  Attributes:
    genomes: canonical, int8 [n, rows, 5].
    correct: right answers, int [n].
    loss: summed cross-entropy, float [n].
    generation: in which each was scored, int [n].
  """

  genomes: np.ndarray
  correct: np.ndarray
  loss: np.ndarray
  generation: np.ndarray

  @classmethod
  def empty(cls, spec: Spec) -> Archive:
    return cls(np.zeros((0, len(spec), 5), np.int8), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))

  def __len__(self) -> int:
    return len(self.genomes)

  def extended(self, genomes, correct, loss, generation: int) -> Archive:
    new = (genomes, correct, loss, np.full(len(genomes), generation))
    return Archive(*(np.concatenate([old, np.asarray(more, old.dtype)]) for old, more in zip(self.arrays().values(), new, strict=True)))

  def arrays(self) -> dict[str, np.ndarray]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def ranking(self, fitness: str = 'accuracy') -> np.ndarray:
    """Indices from the best to the worst; equal ones in the order of scoring."""
    return np.lexsort((self.loss, -self.correct) if fitness == 'accuracy' else (self.loss,))

  def best(self, fitness: str = 'accuracy') -> np.ndarray:
    """The fittest genome, int8 [rows, 5]."""
    return self.genomes[self.ranking(fitness)[0]]


def evolve(
    spec: Spec,
    score: Callable[[np.ndarray], tuple[Any, Any]],
    key: jax.Array,
    settings: Evolution = Evolution(),
    *,
    budget: int | None = None,
    archive: Archive | None = None,
    on_generation: Callable[[Archive], None] | None = None,
    progress: bool = True,
) -> Archive:
  """Searches the best subnet of a supernet.

  Args:
    spec: of the genomes.
    score: genomes int8 [population, rows, 5] -> (correct [population], loss [population]); always called with that shape.
    key: random key.
    settings: see `Evolution`.
    budget: most trained parameters; None for no limit.
    archive: of an interrupted search, to go on from.
    on_generation: called with the archive after every generation; save and draw there.
    progress: whether to show a bar.

  Returns:
    The archive; `archive.best(settings.fitness)` is the winner. No subnet is scored twice; where there are fewer new subnets
    than a generation wants, it is smaller, and the search ends when there are none.

  Raises:
    ValueError: the budget is impossible.
  """
  space.require_feasible(spec, budget)
  archive = Archive.empty(spec) if archive is None else archive
  first = int(archive.generation.max()) + 1 if len(archive) else 0
  with tqdm(range(settings.generations + 1), initial=first, desc='search', unit='generation', disable=not progress) as bar:
    for generation in range(first, settings.generations + 1):
      rng = np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, generation))))
      parents = archive.genomes[archive.ranking(settings.fitness)[:settings.parents]]
      seen = {genome.tobytes() for genome in archive.genomes}
      children = propose(rng, spec, parents, settings, budget, seen)
      if not len(children):
        break
      padded = np.concatenate([children, np.repeat(children[:1], settings.population - len(children), axis=0)])
      correct, loss = (np.asarray(values)[:len(children)] for values in score(padded))
      archive = archive.extended(children, correct, loss, generation)
      best = archive.ranking(settings.fitness)[0]
      bar.set_postfix(correct=int(archive.correct[best]), loss=f'{archive.loss[best]:.2f}')
      bar.update()
      if on_generation is not None:
        on_generation(archive)
  return archive


def propose(
    rng: np.random.Generator, spec: Spec, parents: np.ndarray, settings: Evolution, budget: int | None, seen: set[bytes]
) -> np.ndarray:
  """A generation's new subnets, int8 [at most population, rows, 5]: canonical, within the budget, none of them in `seen`.

  Without parents all are random. Children that break the budget are repaired (`space.shrink`), not thrown away.
  """
  seen, children = set(seen), []

  def add(make, number):
    for _ in range(_TRIES):
      missing = number - len(children)
      if missing <= 0:
        return
      for genome in space.canonicalize(spec, make(missing)):
        if genome.tobytes() not in seen:
          seen.add(genome.tobytes())
          children.append(genome)

  if len(parents):
    add(lambda n: space.shrink(rng, spec, mutate(rng, spec, parents, n, settings.mutation_probability), budget), settings.mutations)
    add(lambda n: space.shrink(rng, spec, cross(rng, parents, n), budget), len(children) + settings.crossovers)
  add(lambda n: space.random_genomes(rng, spec, n, budget), settings.population)
  return np.array(children, np.int8).reshape(-1, len(spec), 5)


def mutate(rng: np.random.Generator, spec: Spec, parents: np.ndarray, number: int, probability: float) -> np.ndarray:
  """Random parents with each gene drawn anew with the given probability, int8 [number, rows, 5]."""
  chosen = parents[rng.integers(len(parents), size=number)]
  return np.where(rng.random(chosen.shape) < probability, space.random_genomes(rng, spec, number), chosen)


def cross(rng: np.random.Generator, parents: np.ndarray, number: int) -> np.ndarray:
  """Each gene from one or the other of two random parents, int8 [number, rows, 5]."""
  mothers, fathers = (parents[rng.integers(len(parents), size=number)] for _ in range(2))
  return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)


def pareto_front(params: np.ndarray, error: np.ndarray) -> np.ndarray:
  """Indices of the points that no other beats in both trained parameters and error, by ascending parameters."""
  order = np.lexsort((error, params))
  best = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
  return order[error[order] < best]
