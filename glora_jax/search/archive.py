"""What a search has found: every subnet that was scored, and the front among them."""

from __future__ import annotations

import dataclasses

import numpy as np

from glora_jax.method.genomes import count_params, largest_genome
from glora_jax.method.space import Spec


@dataclasses.dataclass(frozen=True)
class Archive:
  """Every subnet that was scored, in the order of scoring.

  Attributes:
    genomes: canonical, int8 [n, rows, 5].
    correct: right answers, int [n].
    loss: summed cross-entropy, float [n].
    generation: in which each was scored, int [n].
    exact: bool [n]. Where it is False scoring was stopped early: `correct` is an upper and `loss` a lower bound, and
      neither is a score.
  """

  genomes: np.ndarray
  correct: np.ndarray
  loss: np.ndarray
  generation: np.ndarray
  exact: np.ndarray

  @classmethod
  def empty(cls, spec: Spec) -> Archive:
    return cls(
      np.zeros((0, len(spec), 5), np.int8),
      np.zeros(0, np.int64),
      np.zeros(0),
      np.zeros(0, np.int64),
      np.zeros(0, bool),
    )

  def __len__(self) -> int:
    return len(self.genomes)

  def extended(self, genomes, correct, loss, generation: int, exact=True) -> Archive:
    new = (
      genomes,
      correct,
      loss,
      np.full(len(genomes), generation),
      np.broadcast_to(exact, len(genomes)),
    )
    return Archive(
      *(
        np.concatenate([old, np.asarray(more, old.dtype)])
        for old, more in zip(self.arrays().values(), new, strict=True)
      )
    )

  def arrays(self) -> dict[str, np.ndarray]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  def scored(self) -> Archive:
    """Without those that were stopped early."""
    return Archive(*(values[self.exact] for values in self.arrays().values()))

  def ranking(self, fitness: str = 'accuracy') -> np.ndarray:
    """Indices from the best to the worst; equal ones in the order of scoring, those that were stopped early last."""
    return np.lexsort(
      (self.loss, -self.correct, ~self.exact) if fitness == 'accuracy' else (self.loss, ~self.exact)
    )

  def fittest(self, number: int, fitness: str = 'accuracy') -> np.ndarray:
    """Indices of the best `number` of those that were scored to the end, or of all of these."""
    return self.ranking(fitness)[: min(number, int(self.exact.sum()))]

  def best(
    self, fitness: str = 'accuracy', *, spec: Spec | None = None, budget: int | None = None
  ) -> np.ndarray:
    """The fittest genome, int8 [rows, 5]; with `spec` and `budget`, the fittest with at most so many trained parameters.

    Raises:
      ValueError: none that was scored is within the budget.
    """
    ranking = self.fittest(len(self), fitness)
    if budget is not None:
      ranking = ranking[count_params(spec, self.genomes[ranking]) <= budget]
      if not len(ranking):
        raise ValueError(
          f'None of the {int(self.exact.sum())} subnets that were scored has at most {budget} trained parameters.'
        )
    return self.genomes[ranking[0]]


def hypervolume(
  params: np.ndarray, error: np.ndarray, most_params: float, most_error: float = 1.0
) -> float:
  """Share of the box up to (most_params, most_error) that some point is at least as good as in both; 1 would be free and perfect."""
  front = pareto_front(params, error)
  edges = np.concatenate([params[front], [most_params]])
  gained = np.clip(most_error - error[front], 0, None)
  return float(
    (np.clip(np.diff(np.minimum(edges, most_params)), 0, None) * gained).sum()
    / (most_params * most_error)
  )


def hypervolume_by_generation(archive: Archive, spec: Spec, num_images: int) -> list[float]:
  """The hypervolume of all that was scored to the end until each generation, within the parameters of the largest subnet on offer."""
  scored, most = archive.scored(), count_params(spec, largest_genome(spec))
  params, error = count_params(spec, scored.genomes), 1 - scored.correct / num_images
  until = [scored.generation <= generation for generation in np.unique(archive.generation)]
  return [hypervolume(params[some], error[some], most) for some in until]


def pareto_front(params: np.ndarray, error: np.ndarray) -> np.ndarray:
  """Indices of the points that no other beats in both trained parameters and error, by ascending parameters."""
  order = np.lexsort((error, params))
  best = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
  return order[error[order] < best]
