"""The result of a search: every scored structure, and which are the fittest."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from glora_jax.checks import validate
from glora_jax.method.draws import check_budget
from glora_jax.method.genomes import count_params
from glora_jax.method.space import Spec

Fitness = Literal['accuracy', 'loss']


@dataclasses.dataclass(frozen=True, eq=False)
class Archive:
  """Every structure that a search has scored, in the order of scoring.

  Attributes:
    genomes: canonical genomes, int8 [structure, layer, 5].
    correct: number of right answers, int64 [structure]; 0 if the loss counts none.
    loss: summed loss, float64 [structure].
    generation: generation in which each was scored, int64 [structure].

  Example:
    >>> import numpy as np
    >>> from glora_jax import Archive, Layer, SearchSpace, Spec
    >>> spec = Spec((Layer('dense', 8, 4, space=SearchSpace(ranks=(2,))),))
    >>> genomes = np.array([[[0, 0, 0, 0, 1]], [[0, 3, 0, 0, 0]]], np.int8)
    >>> archive = Archive.empty(spec).extended(genomes, [70, 90], [50.0, 20.0], generation=0)
    >>> archive.best().tolist()
    [[0, 3, 0, 0, 0]]
    >>> archive.best(spec=spec, budget=10).tolist()
    [[0, 0, 0, 0, 1]]
  """

  genomes: np.ndarray
  correct: np.ndarray
  loss: np.ndarray
  generation: np.ndarray

  @classmethod
  def empty(cls, spec: Spec) -> Archive:
    """Returns the archive of a search that has scored nothing yet."""
    return cls(
      genomes=np.zeros((0, len(spec), 5), np.int8),
      correct=np.zeros(0, np.int64),
      loss=np.zeros(0, np.float64),
      generation=np.zeros(0, np.int64),
    )

  def __len__(self) -> int:
    return len(self.genomes)

  def extended(self, genomes: Any, correct: Any, loss: Any, generation: int) -> Archive:
    """Returns this archive with the structures of one more generation at its end.

    Args:
      genomes: the new structures' canonical genomes, int8 [new, layer, 5].
      correct: their numbers of right answers, int [new].
      loss: their summed losses, float [new].
      generation: number of the generation.
    """
    new = genomes, correct, loss, np.full(len(genomes), generation)
    pairs = zip(self.arrays().values(), new, strict=True)
    return Archive(*(np.concatenate([old, np.asarray(added, old.dtype)]) for old, added in pairs))

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the fields by name, as a file stores them; `Archive(**arrays)` is the inverse."""
    return dict(vars(self))

  def ranking(self, fitness: Fitness = 'accuracy') -> np.ndarray:
    """Returns indices from the best to the worst, int64 [structure].

    Equal structures keep the order of scoring.

    Args:
      fitness: 'accuracy' (ties are broken by the loss) or 'loss'.
    """
    validate(fitness, Fitness, 'fitness')
    return np.lexsort((self.loss,) if fitness == 'loss' else (self.loss, -self.correct))

  def cost(self, fitness: Fitness = 'accuracy') -> np.ndarray:
    """Returns one number per structure, lower for fitter ones, float64 [structure].

    For 'accuracy' it orders lexicographically, as `ranking` does: first by right answers, whose
    steps are 1, and among equals by the loss, which is scaled to less than such a step.
    """
    if fitness == 'loss':
      return self.loss
    below_one = self.loss / (1 + np.abs(self.loss).max(initial=0))
    return -self.correct + below_one

  def best(
    self, fitness: Fitness = 'accuracy', *, spec: Spec | None = None, budget: int | None = None
  ) -> np.ndarray:
    """Returns the fittest genome, int8 [layer, 5].

    Args:
      fitness: 'accuracy' (ties are broken by the loss) or 'loss'.
      spec: the genomes' spec, which a budget needs.
      budget: most trained parameters of the genome; None for no limit.

    Raises:
      TypeError: the budget is not an integer.
      ValueError: no structure is within the budget, the fitness is unknown, or a budget comes
        without a spec.
    """
    budget = check_budget(budget)
    ranking = self.ranking(fitness)
    if budget is not None:
      if spec is None:
        raise ValueError(f"budget={budget} needs the genomes' spec; pass spec=adapted.spec.")
      ranking = ranking[count_params(spec, self.genomes[ranking]) <= budget]
      if not len(ranking):
        raise ValueError(
          f'None of the {len(self)} scored structures has at most {budget} trained parameters.'
        )
    if not len(ranking):
      raise ValueError('The archive is empty; score structures first.')
    return self.genomes[ranking[0]]
