"""Exact early stopping: a candidate is left as soon as it cannot become a parent any more, which changes nothing that is selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.adapted import Adapted
from glora_jax.search.scoring import default_chunk, in_blocks, make_answers


def make_stopping_scorer(
  adapted: Adapted,
  preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
  *,
  fitness: str = 'accuracy',
  chunk: int | None = None,
  block: int = 50,
  classes: Any = None,
  **apply_kwargs: Any,
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
  """A compiled scorer that leaves a candidate as soon as it cannot become a parent any more; what it says of the others is exact.

  A candidate is left when even with all images right that it has not seen it would have strictly fewer right answers than the worst
  of the parents so far; with fitness 'loss', when its partial sum is above that parent's. The parents are those of the archive and,
  from the moment they are done, candidates of the same population. So the parents that are selected in the end are those of full evaluation.

  With `chunk=1` (CPU) a candidate is merged once and goes from block to block until it is left. With larger chunks, a queue in the compiled
  program always takes the next `chunk` candidates that are still in the running, each with its own next block: the places of those that
  have left are filled at once, and nothing reaches the host before the end.

  Args:
    fitness: 'accuracy' or 'loss'.
    block: images between two decisions.
    adapted, preprocess, chunk, classes, **apply_kwargs: see `scoring.make_scorer`.

  Returns:
    `(variables, genomes, images, labels, valid, parents) -> (correct, loss, exact)`: `valid` bool [candidate] marks the candidates that
    count (padding does not), `parents` float32 [number of parents] holds the correct answers (fitness 'loss': the losses) of
    the best so far, -inf (inf) where there are fewer. `exact` bool [candidate]; where it is False `correct` is an upper and `loss` a lower
    bound.
  """
  chunk = default_chunk() if chunk is None else chunk
  answers = make_answers(adapted, classes, apply_kwargs)
  by_loss = fitness == 'loss'

  def hopeless(correct, loss, unseen, parents):
    return loss > parents.max() if by_loss else correct + unseen < parents.min()

  def admit(parents, correct, loss, done):
    """The best parents among the old ones and the candidates that are done."""
    if by_loss:
      return jnp.sort(jnp.concatenate([parents, jnp.where(done, loss, jnp.inf)]))[: len(parents)]
    return jnp.sort(
      jnp.concatenate([parents, jnp.where(done, correct.astype(jnp.float32), -jnp.inf)])
    )[-len(parents) :]

  def one_by_one(variables, genomes, batches, number, valid, parents):
    blocks = len(batches[0])

    def one(parents, candidate):
      genome, counts = candidate
      answer = answers(variables, genome)

      def going(state):
        index, correct, loss, seen = state
        return counts & (index < blocks) & ~hopeless(correct, loss, number - seen, parents)

      def add(state):
        index, correct, loss, seen = state
        images, labels, real = (x[index] for x in batches)
        right, losses = answer(images, labels, real)
        return index + 1, correct + right.sum(), loss + losses.sum(), seen + real.sum()

      start = jnp.int32(0), jnp.int32(0), jnp.float32(0), jnp.int32(0)
      _, correct, loss, seen = jax.lax.while_loop(going, add, start)
      done = seen == number
      return admit(parents, correct[None], loss[None], (done & counts)[None]), (correct, loss, seen)

    return jax.lax.scan(one, parents, (genomes, valid))[1]

  def in_a_queue(variables, genomes, batches, number, valid, parents):
    blocks, candidates = len(batches[0]), len(genomes)
    block_sizes = batches[2].sum(1)

    def going(state):
      return state['running'].any()

    def add(state):
      # Those in the running first, the one that has come furthest before the others: it is the first to raise the bar.
      chosen = jnp.argsort(jnp.where(state['running'], -state['index'], blocks + 1))[:chunk]
      real = state['running'][chosen]
      index = jnp.minimum(state['index'][chosen], blocks - 1)
      evaluate = lambda genome, n: answers(variables, genome)(*(x[n] for x in batches))
      right, losses = jax.vmap(evaluate)(genomes[chosen], index)
      put = lambda values, new: values.at[chosen].add(jnp.where(real, new, 0).astype(values.dtype))
      correct, loss = put(state['correct'], right.sum(1)), put(state['loss'], losses.sum(1))
      seen, place = (
        put(state['seen'], block_sizes[index]),
        put(state['index'], jnp.ones_like(index)),
      )
      finished = state['running'] & (place == blocks)
      parents = admit(state['parents'], correct, loss, finished)
      running = state['running'] & ~finished & ~hopeless(correct, loss, number - seen, parents)
      return {
        'index': place,
        'correct': correct,
        'loss': loss,
        'seen': seen,
        'running': running,
        'parents': parents,
      }

    zeros = jnp.zeros(candidates, jnp.int32)
    start = {
      'index': zeros,
      'correct': zeros,
      'loss': jnp.zeros(candidates, jnp.float32),
      'seen': zeros,
      'running': valid,
      'parents': parents,
    }
    end = jax.lax.while_loop(going, add, start)
    return end['correct'], end['loss'], end['seen']

  @jax.jit
  def score(variables, genomes, images, labels, valid, parents):
    number = len(labels)
    batches = in_blocks(preprocess(images), labels, min(block, number))
    run = one_by_one if chunk == 1 else in_a_queue
    correct, loss, seen = run(
      variables,
      jnp.asarray(genomes),
      batches,
      number,
      jnp.asarray(valid),
      jnp.asarray(parents, jnp.float32),
    )
    return correct + (number - seen), loss, seen == number

  return score


def hardest_first(cost: np.ndarray) -> np.ndarray:
  """An order of images, int [n], from what they cost a population, [candidate, n]: wrong answers (fitness 'accuracy') or losses.

  What a candidate that will not become a parent gets wrong, it gets wrong early there; and since the images that nobody gets right are at the
  start and those that everybody gets right at the end, the bound of those that are left is tight. (Ordered by how much the population
  disagrees, images that all get wrong would come last, and no candidate could be left before.) Equal ones keep their order.
  """
  return np.argsort(-np.asarray(cost, np.float64).mean(0), kind='stable')
