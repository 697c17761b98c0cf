"""The search for a subnet (GLoRA section 3.4), for any function that scores genomes: the paper's evolution, and a search for the
whole front of accuracy against parameters.

All that a search knows is its archive: every subnet scored so far, in order. A generation is a pure function of the archive,
its own number and the key, so a search that is resumed from a saved archive ends exactly where the undisturbed one ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from tqdm.auto import tqdm

from glora_jax.method import genomes
from glora_jax.method.genomes import (
  canonicalize,
  count_params,
  random_genomes,
  require_feasible,
  shrink,
)
from glora_jax.method.space import Spec
from glora_jax.search.archive import Archive, pareto_front

MODES = ('paper', 'pareto', 'guided', 'random')
FITNESSES = ('accuracy', 'loss')
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
    mode: 'paper' looks for the fittest subnet. 'pareto' looks for subnets that nothing beats in both fitness and trained parameters (parents
      by non-dominated sorting and crowding distance: Deb et al. 2002, NSGA-II), so that any budget can be read off afterwards.
      'guided' proposes what first-order estimates of the loss at the `guides` fittest promise (`guidance.make_guide`), and crossovers.
      'random' draws every generation at random, for comparison.
    stop_early: leave a subnet as soon as it cannot become a parent, in the mode 'paper'; selects the same (`evolve`). The
      quickstart's search was 1.4 times as fast with it (benchmarks/RESULTS.md). Off by default, since the archive then holds bounds of those.
    guides: in the mode 'guided', subnets that estimates are made at in each generation.
  """

  population: int = 50
  generations: int = 20
  parents: int = 10
  mutations: int = 25
  crossovers: int = 25
  mutation_probability: float = 0.2
  fitness: str = 'accuracy'
  mode: str = 'paper'
  stop_early: bool = False
  guides: int = 1

  def __post_init__(self):
    if (
      self.population < 1
      or self.parents < 1
      or min(self.generations, self.mutations, self.crossovers) < 0
    ):
      raise ValueError(
        f'{self}: population and parents are at least 1, the other numbers at least 0.'
      )
    if self.mutations + self.crossovers > self.population:
      raise ValueError(
        f'mutations={self.mutations} and crossovers={self.crossovers} are more than population={self.population}; lower them.'
      )
    if not 0 <= self.mutation_probability <= 1:
      raise ValueError(f'mutation_probability={self.mutation_probability} must be between 0 and 1.')
    if self.fitness not in FITNESSES:
      raise ValueError(f"fitness='{self.fitness}' is unknown; it is 'accuracy' or 'loss'.")
    if self.mode not in MODES:
      raise ValueError(f"mode='{self.mode}' is unknown; it is one of {', '.join(MODES)}.")


class StoppingScore(Protocol):
  """Scores that may end early (`stopping.make_stopping_scorer`)."""

  def __call__(
    self, genomes: np.ndarray, valid: np.ndarray, parents: np.ndarray
  ) -> tuple[Any, Any, Any]: ...


def evolve(
  spec: Spec,
  score: Callable[[np.ndarray], tuple[Any, Any]],
  key: jax.Array,
  settings: Evolution = Evolution(),
  *,
  budget: int | None = None,
  stopping_score: StoppingScore | None = None,
  guide: Callable[[np.ndarray], Any] | None = None,
  initial: np.ndarray | None = None,
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
    stopping_score: used from the second generation on in place of `score`, in the mode 'paper': genomes, which of them count, and the scores
      of the parents -> (correct, loss, exact). It changes which subnets are scored to the end, and nothing that is selected.
    guide: genome int8 [rows, 5] -> values [rows, 5, codes], which the mode 'guided' needs.
    initial: genomes [n, rows, 5] for the first generation, presets for instance; those above the budget are left out.
    archive: of an interrupted search, to go on from.
    on_generation: called with the archive after every generation; save and draw there.
    progress: whether to show a bar.

  Returns:
    The archive; `archive.best(settings.fitness)` is the winner. No subnet is scored twice; where there are fewer new subnets
    than a generation wants, it is smaller, and the search ends when there are none.

  Raises:
    ValueError: the budget is impossible.
  """
  require_feasible(spec, budget)
  if settings.mode == 'guided' and guide is None:
    raise ValueError("The mode 'guided' needs a guide; guidance.make_guide makes one.")
  archive = Archive.empty(spec) if archive is None else archive
  first = int(archive.generation.max()) + 1 if len(archive) else 0
  with tqdm(
    range(settings.generations + 1),
    initial=first,
    desc='search',
    unit='generation',
    disable=not progress,
  ) as bar:
    for generation in range(first, settings.generations + 1):
      rng = np.random.default_rng(
        np.asarray(jax.random.key_data(jax.random.fold_in(key, generation)))
      )
      parents = select(archive, spec, settings)
      seen = {genome.tobytes() for genome in archive.genomes}
      promising = None
      if settings.mode == 'guided' and len(parents):
        at = parents[: settings.guides]
        promising = functools.partial(
          propose_guided,
          rng,
          spec,
          at,
          np.stack([np.asarray(guide(one)) for one in at]),
          budget=budget,
        )
      given = initial if generation == 0 else None
      children = propose(rng, spec, parents, settings, budget, seen, promising, given)
      number = len(children)
      if not number:
        break
      padded = np.concatenate(
        [children, np.repeat(children[:1], settings.population - number, axis=0)]
      )
      if stopping_score is None or not len(archive) or settings.mode != 'paper':
        (correct, loss), exact = score(padded), np.ones(len(padded), bool)
      else:
        bar_to_pass = _parents_scores(archive, settings)
        correct, loss, exact = stopping_score(padded, np.arange(len(padded)) < number, bar_to_pass)
      archive = archive.extended(
        children,
        *(np.asarray(values)[:number] for values in (correct, loss)),
        generation,
        np.asarray(exact)[:number],
      )
      best = archive.ranking(settings.fitness)[0]
      bar.set_postfix(correct=int(archive.correct[best]), loss=f'{archive.loss[best]:.2f}')
      bar.update()
      if on_generation is not None:
        on_generation(archive)
  return archive


def select(archive: Archive, spec: Spec, settings: Evolution) -> np.ndarray:
  """The parents of the next generation, int8 [at most parents, rows, 5]; none in the mode 'random'."""
  if settings.mode == 'random' or not len(archive):
    return archive.genomes[:0]
  if settings.mode in ('paper', 'guided'):
    return archive.genomes[archive.fittest(settings.parents, settings.fitness)]
  scored = archive.scored()
  cost = (
    scored.loss
    if settings.fitness == 'loss'
    else -scored.correct + scored.loss / (1 + np.abs(scored.loss).max())
  )
  return scored.genomes[
    nondominated_order(count_params(spec, scored.genomes), cost)[: settings.parents]
  ]


def _parents_scores(archive, settings):
  """The scores of the best `parents` subnets so far, padded with ones that anything beats."""
  chosen = archive.fittest(settings.parents, settings.fitness)
  values, padding = (
    (archive.loss, np.inf) if settings.fitness == 'loss' else (archive.correct, -np.inf)
  )
  return np.concatenate([values[chosen], np.full(settings.parents - len(chosen), padding)]).astype(
    np.float32
  )


def propose(
  rng: np.random.Generator,
  spec: Spec,
  parents: np.ndarray,
  settings: Evolution,
  budget: int | None,
  seen: set[bytes],
  promising: Callable[[int], np.ndarray] | None = None,
  initial: np.ndarray | None = None,
) -> np.ndarray:
  """A generation's new subnets, int8 [at most population, rows, 5]: canonical, within the budget, none of them in `seen`.

  Without parents all are random. `promising`, number -> genomes, takes the place of mutation. Children that break the budget are
  repaired (`space.shrink`), not thrown away. Those of `initial` that are within it come first.
  """
  seen, children = set(seen), []

  def add(make, number):
    for _ in range(_TRIES):
      missing = number - len(children)
      if missing <= 0:
        return
      for genome in canonicalize(spec, make(missing)):
        if genome.tobytes() not in seen:
          seen.add(genome.tobytes())
          children.append(genome)

  if initial is not None:
    within = initial[count_params(spec, initial) <= (np.inf if budget is None else budget)]
    add(lambda n: within[:n], min(len(within), settings.population))
  if len(parents):
    mutated = lambda n: shrink(
      rng, spec, mutate(rng, spec, parents, n, settings.mutation_probability), budget
    )
    add(promising or mutated, settings.mutations)
    add(
      lambda n: shrink(rng, spec, cross(rng, parents, n), budget),
      len(children) + settings.crossovers,
    )
  add(lambda n: random_genomes(rng, spec, n, budget), settings.population)
  return np.array(children, np.int8).reshape(-1, len(spec), 5)


def mutate(
  rng: np.random.Generator, spec: Spec, parents: np.ndarray, number: int, probability: float
) -> np.ndarray:
  """Random parents with each gene drawn anew with the given probability, int8 [number, rows, 5]."""
  chosen = parents[rng.integers(len(parents), size=number)]
  return np.where(rng.random(chosen.shape) < probability, random_genomes(rng, spec, number), chosen)


def cross(rng: np.random.Generator, parents: np.ndarray, number: int) -> np.ndarray:
  """Each gene from one or the other of two random parents, int8 [number, rows, 5]."""
  mothers, fathers = (parents[rng.integers(len(parents), size=number)] for _ in range(2))
  return np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)


def nondominated_order(params: np.ndarray, cost: np.ndarray) -> np.ndarray:
  """Indices by front, and within a front by crowding distance, the loneliest first (Deb et al. 2002, sections III A and B).

  The first front is what no point beats in both; the second is that of the rest, and so on. The two ends of a front come first.
  """
  left, order = np.arange(len(params)), []
  while len(left):
    front = left[pareto_front(params[left], cost[left])]  # by ascending parameters
    distance = np.full(len(front), np.inf)
    for values in (params[front], cost[front]):
      spread = np.ptp(values) or 1
      if len(front) > 2:
        distance[1:-1] = (
          np.where(np.isinf(distance[1:-1]), 0, distance[1:-1])
          + np.abs(values[2:] - values[:-2]) / spread
        )
    order.extend(front[np.argsort(-distance, kind='stable')])
    left = np.setdiff1d(left, front)
  return np.array(order, np.int64)


def propose_guided(
  rng: np.random.Generator,
  spec: Spec,
  parents: np.ndarray,
  values: np.ndarray,
  number: int,
  budget: int | None,
) -> np.ndarray:
  """Children with several changes each, drawn in proportion to what the estimates promise, int8 [number, rows, 5].

  Args:
    rng: decides.
    spec: of the genomes.
    parents: int8 [parent, rows, 5].
    values: of each parent, [parent, rows, 5, codes], see `make_guide`.
    number: of children.
    budget: most trained parameters; a child above it gives up the alleles that are estimated to be worth least for each parameter.
  """
  offered = np.zeros(spec.cost_table.shape, bool)
  np.put_along_axis(offered, spec.offered_table.astype(np.int64), True, axis=-1)
  children = []
  for _ in range(number):
    which = rng.integers(len(parents))
    child, table = parents[which].copy(), values[which]
    current = np.take_along_axis(table, child[..., None].astype(np.int64), -1)
    change = np.where(offered, table - current, np.inf)
    np.put_along_axis(change, child[..., None].astype(np.int64), np.inf, -1)
    temperature = rng.choice([0.03, 0.1, 0.3]) * np.abs(change[np.isfinite(change)]).mean()
    noisy = change / max(temperature, 1e-12) - rng.gumbel(
      size=change.shape
    )  # Gumbel noise: draws by exp(-change / temperature)
    best_code, best = noisy.argmin(-1), noisy.min(-1)
    several = int(2 ** rng.integers(0, 6))
    for gene in np.argsort(best, axis=None)[:several]:
      row, tensor = np.unravel_index(gene, best.shape)
      if np.isfinite(best[row, tensor]):
        child[row, tensor] = best_code[row, tensor]
    children.append(give_up(spec, child, table, budget, offered))
  return np.array(children, np.int8).reshape(-1, len(spec), 5)


def give_up(
  spec: Spec, genome: np.ndarray, values: np.ndarray, budget: int | None, offered: np.ndarray
) -> np.ndarray:
  """The genome within the budget: again and again the change to a cheaper allele that costs least loss per parameter saved."""
  if budget is None:
    return genome
  genome, costs = genome.copy(), spec.cost_table
  while genomes.count_params(spec, genome) > budget:
    index = genome[..., None].astype(np.int64)
    saved = np.take_along_axis(costs, index, -1) - costs
    loss = values - np.take_along_axis(values, index, -1)
    ratio = np.where(offered & (saved > 0), loss / np.maximum(saved, 1), np.inf)
    row, tensor, code = np.unravel_index(ratio.argmin(), ratio.shape)
    genome[row, tensor] = code
  return genome
