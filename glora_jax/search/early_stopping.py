"""Exact early stopping: a candidate is left as soon as it cannot become a parent any more.

It changes nothing that is selected.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.adapted import Adapted
from glora_jax.search.archive import Fitness, check_fitness
from glora_jax.search.checked import Checked
from glora_jax.search.evaluator import Answers, Batch, Evaluator, Preprocess, unchanged
from glora_jax.search.scoring import CHUNK, default_chunk


class StoppedScores(NamedTuple):
  """Scores of a population whose hopeless candidates were left.

  Attributes:
    correct: number of correct answers, int32 [candidate]; an upper bound where not exact.
    loss: summed cross-entropy, float32 [candidate]; a lower bound where not exact.
    exact: whether the candidate was scored to the end, bool [candidate].
  """

  correct: jax.Array
  loss: jax.Array
  exact: jax.Array


def make_stopping_scorer(
  adapted: Adapted,
  preprocess: Preprocess = unchanged,
  *,
  fitness: Fitness = 'accuracy',
  chunk: int | None = None,
  block: int = 50,
  classes: Any = None,
  **apply_kwargs: Any,
) -> Callable[..., StoppedScores]:
  """A compiled scorer that leaves a candidate as soon as it cannot become a parent any more.

  What it says of the others is exact. A candidate is left when even with all images right that it
  has not seen it would have strictly fewer right answers than the worst of the parents so far;
  with fitness 'loss', when its partial sum is above that parent's. The parents are those of the
  archive and, from the moment they are done, candidates of the same population. So the parents
  that are selected in the end are those of full evaluation.

  With `chunk=1` (CPU) a candidate is merged once and goes from block to block until it is left.
  With larger chunks, a queue in the compiled program always takes the next `chunk` candidates that
  are still in the running, each with its own next block: the places of those that have left are
  filled at once, and nothing reaches the host before the end.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: function from images to inputs of the model, applied to one block after another.
    fitness: what the parents are chosen by, 'accuracy' or 'loss'.
    chunk: number of candidates evaluated side by side; None for `scoring.default_chunk`.
    block: number of images between two decisions.
    classes: which classes an answer is taken among, bool [class]; None for all.
    **apply_kwargs: keyword arguments that the model is called with.

  Returns:
    The function `(variables, genomes, images, labels, valid, parents) -> StoppedScores`, with
    genomes int8 [candidate, layer, 5], images [image, ...] and labels int [image]. `valid`, bool
    [candidate], marks the candidates that count (padding does not). `parents`, float32 [parent],
    holds the correct answers (fitness 'loss': the losses) of the best so far, -inf (inf) where
    there are fewer.

  Raises:
    ValueError: `fitness`, `chunk` or `block` cannot be. Of the function: as of `make_scorer`'s, or
      `valid` is not one truth for each genome, or there are no parents.
  """
  evaluator = Evaluator(adapted, preprocess, block, classes, apply_kwargs=apply_kwargs)
  chunk = CHUNK.check(chunk, 'chunk')
  check_fitness(fitness)
  chunk = default_chunk() if chunk is None else chunk
  return Checked(evaluator, jax.jit(_StoppingEvaluator(evaluator, fitness, chunk).scores))


def hardest_first(cost: np.ndarray) -> np.ndarray:
  """An order of images in which candidates without prospects are found out early.

  What a candidate that will not become a parent gets wrong, it gets wrong early there; and since
  the images that nobody gets right are at the start and those that everybody gets right at the
  end, the bound of those that are left is tight. (Ordered by how much the population disagrees,
  images that all get wrong would come last, and no candidate could be left before.)

  Args:
    cost: what each image costs each candidate of a population, wrong answers (fitness 'accuracy')
      or losses, [candidate, image].

  Returns:
    Indices of the images, int64 [image]; equal ones keep their order.
  """
  return np.argsort(-np.asarray(cost, np.float64).mean(0), kind='stable')


class _Blocks(NamedTuple):
  """All images [image, ...], and which of them each block has, [block, image]."""

  images: jax.Array
  batches: Batch

  def at(self, index: jax.Array) -> Batch:
    """One of the blocks."""
    return jax.tree.map(lambda part: part[index], self.batches)


class _Candidates(NamedTuple):
  """Genomes to score, int8 [candidate, layer, 5], and which of them count, bool [candidate]."""

  genomes: jax.Array
  valid: jax.Array


class _Progress(NamedTuple):
  """How far candidates have come, [candidate] each; for one candidate, [] each.

  Attributes:
    next_block: index of the next block of images, int32.
    seen: number of images in the blocks before it, int32.
    correct: number of right answers to these images, int32.
    loss: summed cross-entropy of these images, float32.
  """

  next_block: jax.Array
  seen: jax.Array
  correct: jax.Array
  loss: jax.Array


def _at_the_start(*shape: int) -> _Progress:
  """The progress of candidates that have seen nothing."""
  zeros = jnp.zeros(shape, jnp.int32)
  return _Progress(zeros, zeros, zeros, jnp.zeros(shape, jnp.float32))


class _Queue(NamedTuple):
  """The state of a population that is scored side by side.

  Attributes:
    progress: progress of each candidate.
    running: whether each candidate has images left and can still become a parent, bool [candidate].
    parents: scores of the best parents so far, float32 [parent].
  """

  progress: _Progress
  running: jax.Array
  parents: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class _StoppingEvaluator:
  """The function that `make_stopping_scorer` compiles; the attributes are its arguments."""

  evaluator: Evaluator
  fitness: Fitness
  chunk: int

  def scores(
    self,
    variables: Mapping[str, Any],
    genomes: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
    parents: jax.Array,
  ) -> StoppedScores:
    number = len(labels)
    blocks = _Blocks(*self.evaluator.blocks(images, labels))
    if np.shape(valid) != (len(genomes),) or np.ndim(parents) != 1 or not len(parents):
      raise ValueError(
        f'valid is {list(np.shape(valid))} and parents {list(np.shape(parents))}; they must be '
        f'[{len(genomes)}], one for each genome, and [parent], of at least one.'
      )
    candidates = _Candidates(jnp.asarray(genomes), jnp.asarray(valid))
    parents = jnp.asarray(parents, jnp.float32)
    run = self._one_by_one if self.chunk == 1 else self._side_by_side
    progress = run(variables, blocks, number, candidates, parents)
    return StoppedScores(
      correct=progress.correct + (number - progress.seen),
      loss=progress.loss,
      exact=progress.seen == number,
    )

  def _one_by_one(
    self,
    variables: Mapping[str, Any],
    blocks: _Blocks,
    number: int,
    candidates: _Candidates,
    parents: jax.Array,
  ) -> _Progress:
    """Each candidate after the one before it, until it is done or left."""
    score = functools.partial(self._score_candidate, variables, blocks, number)
    return jax.lax.scan(score, parents, candidates)[1]

  def _score_candidate(
    self,
    variables: Mapping[str, Any],
    blocks: _Blocks,
    number: int,
    parents: jax.Array,
    candidate: _Candidates,
  ) -> tuple[jax.Array, _Progress]:
    """The parents after one candidate, and how far it came."""
    subnet = self.evaluator.bind(variables, candidate.genomes)
    num_blocks = len(blocks.batches.labels)

    def is_running(progress: _Progress) -> jax.Array:
      has_blocks = progress.next_block < num_blocks
      return candidate.valid & has_blocks & ~self._is_hopeless(progress, number, parents)

    def advance(progress: _Progress) -> _Progress:
      block = blocks.at(progress.next_block)
      answers = self.evaluator.answers(subnet, blocks.images, block)
      return _Progress(
        next_block=progress.next_block + 1,
        seen=progress.seen + block.is_image.sum(dtype=jnp.int32),
        correct=progress.correct + answers.correct.sum(dtype=jnp.int32),
        loss=progress.loss + answers.loss.sum(),
      )

    progress = jax.lax.while_loop(is_running, advance, _at_the_start())
    is_done = candidate.valid & (progress.seen == number)
    alone = jax.tree.map(lambda value: value[None], progress)
    return self._admit(parents, alone, is_done[None]), progress

  def _side_by_side(
    self,
    variables: Mapping[str, Any],
    blocks: _Blocks,
    number: int,
    candidates: _Candidates,
    parents: jax.Array,
  ) -> _Progress:
    """A chunk of candidates at a time, each at its own block; whoever leaves makes room."""
    num_blocks = len(blocks.batches.labels)
    block_sizes = blocks.batches.is_image.sum(1)

    def answer(genome: jax.Array, index: jax.Array) -> Answers:
      subnet = self.evaluator.bind(variables, genome)
      return self.evaluator.answers(subnet, blocks.images, blocks.at(index))

    def advance(queue: _Queue) -> _Queue:
      # The one that has come furthest goes first: it is the first to raise the bar.
      last = num_blocks + 1
      order = jnp.argsort(jnp.where(queue.running, -queue.progress.next_block, last))
      chosen = order[: self.chunk]
      is_running = queue.running[chosen]
      index = jnp.minimum(queue.progress.next_block[chosen], num_blocks - 1)
      answers = jax.vmap(answer)(candidates.genomes[chosen], index)
      gains = _Progress(
        next_block=jnp.ones_like(index),
        seen=block_sizes[index],
        correct=answers.correct.sum(1),
        loss=answers.loss.sum(1),
      )
      progress = jax.tree.map(
        lambda value, gain: value.at[chosen].add(
          jnp.where(is_running, gain, 0).astype(value.dtype)
        ),
        queue.progress,
        gains,
      )
      is_done = queue.running & (progress.next_block == num_blocks)
      parents = self._admit(queue.parents, progress, is_done)
      is_hopeless = self._is_hopeless(progress, number, parents)
      return _Queue(progress, queue.running & ~is_done & ~is_hopeless, parents)

    start = _Queue(_at_the_start(len(candidates.genomes)), candidates.valid, parents)
    return jax.lax.while_loop(lambda queue: queue.running.any(), advance, start).progress

  def _is_hopeless(self, progress: _Progress, number: int, parents: jax.Array) -> jax.Array:
    """Whether candidates cannot become parents, whatever the images are that they have not seen."""
    if self.fitness == 'loss':
      return progress.loss > parents.max()
    most_correct = progress.correct + (number - progress.seen)
    return most_correct.astype(parents.dtype) < parents.min()

  def _admit(self, parents: jax.Array, progress: _Progress, is_done: jax.Array) -> jax.Array:
    """The scores of the best among the parents and the candidates that are done, [parent]."""
    if self.fitness == 'loss':
      losses = jnp.where(is_done, progress.loss, jnp.inf)
      return jnp.sort(jnp.concatenate([parents, losses]))[: len(parents)]
    correct = jnp.where(is_done, progress.correct.astype(jnp.float32), -jnp.inf)
    return jnp.sort(jnp.concatenate([parents, correct]))[-len(parents) :]
