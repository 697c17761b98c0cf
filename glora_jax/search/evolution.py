"""The search for a structure (GLoRA section 3.4), for any function that scores genomes.

All that a search knows is its archive: every structure scored so far, in order. A generation is a
pure function of the archive, its own number and the key, so a search that is resumed from a saved
archive has exactly the result of an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from glora_jax.checks import field, shown, validate, validate_fields
from glora_jax.method.draws import random_genomes, require_feasible, shrink
from glora_jax.method.genomes import canonicalize, check_population, count_params, link_shifts
from glora_jax.method.sample import check_key
from glora_jax.method.space import Spec
from glora_jax.method.validation import as_numbers
from glora_jax.progress import progress_bar
from glora_jax.search.archive import Archive, Fitness
from glora_jax.search.errors import NonFiniteError
from glora_jax.search.pareto import nondominated_order

Mode = Literal['paper', 'pareto', 'random']

MOST_SCORED = 10**6  # structures in a generation: a machine's memory has no room for more
_TRIES = 10  # rounds of draws before a generation is content with fewer new children


@dataclasses.dataclass(frozen=True)
class Evolution:
  """Settings of a search. The defaults are the paper's: 50 + 20 x 50 evaluations.

  Attributes:
    population: number of structures scored in each generation.
    generations: number of generations after the random one, which is generation 0.
    parents: number of the best structures so far from which the next generation comes.
    mutations: number of mutated children in a generation.
    crossovers: number of crossed children in a generation; the rest of the population is drawn at
      random.
    mutation_probability: probability that a form of a mutated child is drawn anew.
    fitness: 'accuracy' (ties are broken by the loss) or 'loss'.
    mode: 'paper' looks for the fittest structure (GLoRA section 3.4); 'pareto' looks for structures
      that no other beats in both fitness and trained parameters, with the selection of NSGA-II (Deb
      et al. 2002), so that any budget can be read off afterwards; 'random' draws every generation
      at random, for comparison.

  Raises:
    TypeError: a field has another type.
    ValueError: a number is beyond its limits, or a text not one of the choices.

  Example:
    >>> from glora_jax import Evolution
    >>> search = Evolution(generations=5)
    >>> search.population, search.mutations + search.crossovers
    (50, 50)
  """

  population: int = field(50, least=1, most=MOST_SCORED)
  generations: int = field(20, least=0, most=MOST_SCORED)
  parents: int = field(10, least=1)
  mutations: int = field(25, least=0)
  crossovers: int = field(25, least=0)
  mutation_probability: float = field(0.2, least=0, most=1)
  fitness: Fitness = 'accuracy'
  mode: Mode = 'paper'

  def __post_init__(self):
    validate_fields(self)
    if self.mutations + self.crossovers > self.population:
      raise ValueError(
        f'mutations={self.mutations} and crossovers={self.crossovers} are more than '
        f'population={self.population}; lower them.'
      )


def evolve(
  spec: Spec,
  score: Callable[[np.ndarray], tuple[Any, Any]],
  key: jax.Array,
  settings: Evolution = Evolution(),
  *,
  budget: int | None = None,
  initial: np.ndarray | None = None,
  archive: Archive | None = None,
  on_generation: Callable[[Archive], None] | None = None,
  progress: bool = True,
) -> Archive:
  """Searches for the best structure of a supernet.

  Args:
    spec: the genomes' spec.
    score: genomes int8 [population, layer, 5] -> (correct [population], loss [population]), as a
      scorer of `make_scorer` returns them; correct may be None if the fitness is 'loss'. Always
      called with that shape.
    key: random key; the same key and scores give the same result.
    settings: sizes, probabilities and mode of the search.
    budget: most trained parameters; None for no limit.
    initial: genomes for the first generation, presets for instance, int8 [genome, layer, 5]; those
      above the budget are left out.
    archive: archive of an interrupted search, to continue from.
    on_generation: called with the archive after every generation, to save or plot it.
    progress: whether to show a progress bar.

  Returns:
    The archive; `archive.best(settings.fitness)` is the best. No structure is scored twice: a
    generation with too few new ones is smaller, and one without any ends the search.

  Raises:
    TypeError: an argument has another type, or `score` does not return a pair.
    ValueError: no structure is within the budget; `initial` or `archive` are of another spec. Also
      if a score is not a number, a count of right answers is not an integer, a loss is not finite,
      or there are no right answers to rank by.

  Example:
    >>> import jax
    >>> from glora_jax import Evolution, Layer, Spec, count_params, evolve
    >>> spec = Spec((Layer('first', 8, 8), Layer('second', 8, 4)))
    >>> def score(genomes):  # here the more forms a structure uses, the better
    ...   used = (genomes > 0).sum(axis=(1, 2))
    ...   return used, 10.0 - used
    >>> settings = Evolution(population=10, generations=4, parents=3, mutations=5, crossovers=5)
    >>> archive = evolve(spec, score, jax.random.key(0), settings, budget=40, progress=False)
    >>> count_params(spec, archive.best()) <= 40
    True
  """
  budget = require_feasible(spec, budget)
  check_key(key)
  validate(settings, Evolution, 'settings')
  validate(score, Callable, 'score')
  validate(on_generation, Callable | None, 'on_generation')
  archive = Archive.empty(spec) if archive is None else archive
  validate(archive, Archive, 'archive')
  for genomes in (archive.genomes, initial):
    if genomes is not None:
      check_population(spec, genomes)
  first = int(archive.generation.max()) + 1 if len(archive) else 0
  with progress_bar(
    range(settings.generations + 1),
    initial=first,
    desc='search',
    unit='generation',
    wanted=progress,
  ) as bar:
    for generation in range(first, settings.generations + 1):
      seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, generation)))
      rng = np.random.default_rng(seed)
      start = initial if generation == 0 else None
      children = _children(rng, spec, settings, budget, archive, start)
      if not len(children):
        break
      scores = _scores(score, children, settings)
      archive = archive.extended(children, *scores, generation)
      best = archive.ranking(settings.fitness)[0]
      bar.set_postfix(best=int(archive.correct[best]), loss=f'{archive.loss[best]:.2f}')
      bar.update()
      if on_generation is not None:
        on_generation(archive)
  return archive


def _children(
  rng: np.random.Generator,
  spec: Spec,
  settings: Evolution,
  budget: int | None,
  archive: Archive,
  initial: np.ndarray | None,
) -> np.ndarray:
  """A generation's new structures: canonical, within the budget, none of them in the archive.

  Genomes of `initial` within the budget come first; then the parents' mutated children, then
  crossed ones, and the rest of the population is drawn at random. Children above the budget are
  repaired (`draws.shrink`), not thrown away.
  """
  seen = {genome.tobytes() for genome in archive.genomes}
  children: list[np.ndarray] = []

  def fill(size: int, draw: Callable[[int], np.ndarray]) -> None:
    """Draws as many as are missing, until there are so many or too many were already seen."""
    for _ in range(_TRIES):
      missing = size - len(children)
      if missing <= 0:
        return
      for genome in canonicalize(spec, draw(missing)):
        if len(children) < size and genome.tobytes() not in seen:
          seen.add(genome.tobytes())
          children.append(genome)

  def draw_mutants(number: int) -> np.ndarray:
    drawn = mutate(rng, spec, parents, number, settings.mutation_probability)
    return shrink(rng, spec, drawn, budget)

  def draw_crosses(number: int) -> np.ndarray:
    return shrink(rng, spec, cross(rng, spec, parents, number), budget)

  if initial is not None:
    most_params = math.inf if budget is None else budget
    within = np.asarray(initial)[count_params(spec, initial) <= most_params]
    fill(min(len(within), settings.population), lambda number: within)
  parents = _parents(spec, settings, archive)
  if len(parents):
    fill(settings.mutations, draw_mutants)
    fill(len(children) + settings.crossovers, draw_crosses)
  fill(settings.population, lambda number: random_genomes(rng, spec, number, budget))
  return np.array(children, np.int8).reshape(-1, len(spec), 5)


def _parents(spec: Spec, settings: Evolution, archive: Archive) -> np.ndarray:
  """The parents of the next generation, int8 [parent, layer, 5]; none in the mode 'random'."""
  match settings.mode:
    case 'paper':
      order = archive.ranking(settings.fitness)
    case 'pareto':
      params = count_params(spec, archive.genomes)
      order = nondominated_order(params, archive.cost(settings.fitness))
    case 'random':
      return archive.genomes[:0]
  return archive.genomes[order[: settings.parents]]


def _scores(
  score: Callable, children: np.ndarray, settings: Evolution
) -> tuple[np.ndarray, np.ndarray]:
  """Right answers and losses of the children, [child], scored in a population of the full size.

  Raises:
    ValueError: they are invalid, or cannot be ranked.
  """
  size = settings.population
  places = np.arange(size)
  given = score(children[np.where(places < len(children), places, 0)])
  if not isinstance(given, tuple | list) or len(given) != 2:
    raise TypeError(
      f'score returned {shown(given)}; it must return the pair (correct, loss), each [population].'
    )
  correct, loss = given
  if correct is None:
    if settings.fitness == 'accuracy':
      raise ValueError(
        "fitness='accuracy' needs numbers of right answers, and score returned None; let the loss "
        "return the metric 'accuracy', or rank by loss with fitness='loss'."
      )
    correct = np.zeros(size)
  scores = []
  for name, values in (('correct', correct), ('loss', loss)):
    # A masked score counts as not a number.
    values = np.ma.asarray(as_numbers('scores', values), np.float64).filled(np.nan)
    if values.shape != (size,):
      raise ValueError(
        f'score returned {name} as {values.dtype} {list(values.shape)}; it must be a number for '
        f'each of the {size} genomes, [{size}].'
      )
    scores.append(values[: len(children)])
  correct, loss = scores
  is_count = np.isfinite(correct) & (correct >= 0) & (correct == np.floor(correct))
  if not is_count.all():
    raise ValueError(
      f'score returned {correct[~is_count][0]:g} right answers; correct must be integers of at '
      "least 0. Return numbers of right answers, not shares, or rank by loss with fitness='loss'."
    )
  wrong = np.flatnonzero(~np.isfinite(loss))
  if len(wrong):
    raise NonFiniteError(
      f'score returned a loss of {loss[wrong[0]]} for structure {wrong[0]} of a generation; it '
      'must be finite. Train the supernet with a lower learning rate, or check the data.'
    )
  return correct, loss


def mutate(
  rng: np.random.Generator, spec: Spec, parents: np.ndarray, number: int, probability: float
) -> np.ndarray:
  """Random parents with each form drawn anew with the given probability.

  C and E of a layer that may have only one of them are drawn anew together; likewise in `cross`.

  Args:
    rng: source of the choices.
    spec: the genomes' spec.
    parents: genomes, int8 [parent, layer, 5].
    number: number of children.
    probability: probability that a form is drawn anew, uniformly from those of the search space.

  Returns:
    The children, int8 [number, layer, 5].
  """
  chosen = parents[rng.integers(len(parents), size=number)]
  is_mutated = link_shifts(spec, rng.random(chosen.shape) < probability)
  return np.where(is_mutated, random_genomes(rng, spec, number), chosen)


def cross(rng: np.random.Generator, spec: Spec, parents: np.ndarray, number: int) -> np.ndarray:
  """Children that have each form from one or the other of two random parents.

  Args:
    rng: source of the choices.
    spec: the genomes' spec.
    parents: genomes, int8 [parent, layer, 5].
    number: number of children.

  Returns:
    The children, int8 [number, layer, 5].
  """
  mothers = parents[rng.integers(len(parents), size=number)]
  fathers = parents[rng.integers(len(parents), size=number)]
  is_mothers = link_shifts(spec, rng.random(mothers.shape) < 0.5)
  return np.where(is_mothers, mothers, fathers)
