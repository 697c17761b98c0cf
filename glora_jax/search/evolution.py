"""The search for a subnet (GLoRA section 3.4), for any function that scores genomes.

All that a search knows is its archive: every subnet scored so far, in order. A generation is a
pure function of the archive, its own number and the key, so a search that is resumed from a saved
archive ends exactly where the undisturbed one ends.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm.auto import tqdm

from glora_jax.limits import check_callable, check_type, shown
from glora_jax.method.draws import random_genomes, require_feasible
from glora_jax.method.genomes import count_params
from glora_jax.method.sample import check_key
from glora_jax.method.space import Spec
from glora_jax.method.validation import as_numbers, check_population
from glora_jax.search.archive import Archive
from glora_jax.search.brood import Brood
from glora_jax.search.checked import NonFiniteError
from glora_jax.search.settings import Evolution
from glora_jax.search.strategies import Strategy, make_strategy


def evolve(  # noqa: PLR0913
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
  """Searches the best subnet of a supernet.

  Args:
    spec: the genomes' spec.
    score: genomes int8 [population, layer, 5] -> (correct [population], loss [population]); always
      called with that shape.
    key: random key; with the same key and scores a search finds the same.
    settings: the numbers of the search, and its mode.
    budget: most trained parameters; None for no limit.
    initial: genomes for the first generation, presets for instance, int8 [genome, layer, 5]; those
      above the budget are left out.
    archive: archive of an interrupted search, to go on from.
    on_generation: called with the archive after every generation; the place to save and draw.
    progress: whether to show a bar.

  Returns:
    The archive; `archive.best(settings.fitness)` is the winner. No subnet is scored twice; where
    there are fewer new subnets than a generation wants it is smaller, and where there are none the
    search ends.

  Raises:
    ValueError: no subnet is within the budget; `initial` or `archive` are of another spec; a score
      is no number, right answers are no whole numbers of 0 or more, or a loss is not finite.

  Example:
    >>> import jax
    >>> from glora_jax import Evolution, Layer, Spec, count_params, evolve
    >>> spec = Spec((Layer('first', 8, 8), Layer('second', 8, 4)))
    >>> def score(genomes):  # here the more forms a subnet uses, the better
    ...   used = (genomes > 0).sum(axis=(1, 2))
    ...   return used, 10.0 - used
    >>> settings = Evolution(population=10, generations=4, parents=3, mutations=5, crossovers=5)
    >>> archive = evolve(spec, score, jax.random.key(0), settings, budget=40, progress=False)
    >>> count_params(spec, archive.best()) <= 40
    True
  """
  budget = require_feasible(spec, budget)
  check_key(key)
  check_type(settings, Evolution, 'settings')
  check_callable(score, 'score')
  if on_generation is not None:
    check_callable(on_generation, 'on_generation')
  if archive is not None:
    check_type(archive, Archive, 'archive')
  strategy = make_strategy(spec, settings, budget)
  search = _Search(spec, settings, budget, strategy, score)
  archive = Archive.empty(spec) if archive is None else archive
  for genomes in (archive.genomes, initial):
    if genomes is not None:
      check_population(spec, genomes)
  first = int(archive.generation.max()) + 1 if len(archive) else 0
  with tqdm(
    range(settings.generations + 1),
    initial=first,
    desc='search',
    unit='generation',
    disable=not progress,
  ) as bar:
    for generation in range(first, settings.generations + 1):
      rng = _generator(key, generation)
      children = search.children(rng, archive, initial if generation == 0 else None)
      if not len(children):
        break
      archive = archive.extended(children, *search.scores(children), generation)
      best = archive.ranking(settings.fitness)[0]
      bar.set_postfix(best=int(archive.correct[best]), loss=f'{archive.loss[best]:.2f}')
      bar.update()
      if on_generation is not None:
        on_generation(archive)
  return archive


def _generator(key: jax.Array, generation: int) -> np.random.Generator:
  """The source of all choices of one generation."""
  return np.random.default_rng(np.asarray(jax.random.key_data(jax.random.fold_in(key, generation))))


class _Scores(NamedTuple):
  """Scores of a generation's children, each [child]; see `Archive`."""

  correct: np.ndarray
  loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Search:
  """What stays the same in all generations of a search; the attributes are `evolve`'s."""

  spec: Spec
  settings: Evolution
  budget: int | None
  strategy: Strategy
  score: Callable[[np.ndarray], tuple[Any, Any]]

  def children(
    self, rng: np.random.Generator, archive: Archive, initial: np.ndarray | None
  ) -> np.ndarray:
    """A generation's new subnets: canonical, within the budget, none of them in the archive.

    Args:
      rng: source of the choices.
      archive: all subnets that were scored before.
      initial: genomes that come first, int8 [genome, layer, 5]; those above the budget are left
        out.

    Returns:
      int8 [child, layer, 5], at most `population` of them.
    """
    brood = Brood(self.spec, archive.genomes)
    if initial is not None:
      most_params = math.inf if self.budget is None else self.budget
      within = np.asarray(initial)[count_params(self.spec, initial) <= most_params]
      brood.fill(min(len(within), self.settings.population), lambda number: within)
    parents = self.strategy.parents(archive)
    if len(parents):
      self.strategy.propose(rng, parents, brood)
    at_random = functools.partial(random_genomes, rng, self.spec, budget=self.budget)
    brood.fill(self.settings.population, at_random)
    return brood.genomes()

  def scores(self, children: np.ndarray) -> _Scores:
    """Scores of the children, int8 [child, layer, 5], padded to a whole population for it."""
    size = self.settings.population
    is_child = np.arange(size) < len(children)
    population = children[np.where(is_child, np.arange(size), 0)]
    scores = _Scores(*map(_numbers, _pair(self.score(population))))
    _check_shapes(scores, size)
    of_children = _Scores(*(values[is_child] for values in scores))
    _check_values(of_children)
    return of_children


def _pair(scores: Any) -> tuple[Any, Any]:
  """Right answers and losses.

  Raises:
    ValueError: a score function gave something else.
  """
  if not isinstance(scores, tuple | list) or len(scores) != 2:
    raise ValueError(
      f'score gave {shown(scores)}; it must give the pair (correct, loss), each [population].'
    )
  return scores[0], scores[1]


def _numbers(values: Any) -> np.ndarray:
  """Scores as float64, NaN where they are masked."""
  return np.ma.asarray(as_numbers('scores', values), np.float64).filled(np.nan)


def _check_shapes(scores: _Scores, size: int) -> None:
  """Raises ValueError unless there is a number for each subnet of a population."""
  for name, values in scores._asdict().items():
    if values.shape != (size,):
      raise ValueError(
        f'score gave {name} as {values.dtype} {list(values.shape)}; it must be a number for each '
        f'of the {size} genomes, [{size}].'
      )


def _check_values(scores: _Scores) -> None:
  """Checks that scores can be ranked, and kept in an archive.

  Raises:
    ValueError: right answers are no counts.
    NonFiniteError: a loss is not finite.
  """
  correct = scores.correct
  is_count = np.isfinite(correct) & (correct >= 0) & (correct == np.floor(correct))
  if not is_count.all():
    raise ValueError(
      f'score gave {correct[~is_count][0]:g} right answers; correct must be whole numbers of 0 or '
      "more. Give numbers of right answers and not shares, or rank by loss with fitness='loss'."
    )
  if not np.isfinite(scores.loss).all():
    wrong = np.flatnonzero(~np.isfinite(scores.loss))
    raise NonFiniteError(
      f'score gave a loss of {scores.loss[wrong[0]]} for subnet {wrong[0]} of a generation; it '
      'must be finite. Train the supernet with a lower learning rate, or check the images.'
    )
