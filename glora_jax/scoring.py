"""Scoring: how many images each subnet of a population gets right, as one compiled function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from glora_jax.adapt import Adapted

Scores = tuple[jax.Array, jax.Array]


def make_scorer(
    adapted: Adapted,
    preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
    *,
    chunk: int | None = None,
    block: int = 256,
    classes: Any = None,
    **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], Scores]:
  """A compiled `(variables, genomes, images, labels) -> (correct, loss)`.

  The genomes are traced: one compilation serves every population of the same size. Candidates run in chunks, the images of
  a chunk in blocks, and only the two sums per candidate are kept.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: images to inputs of the model, applied once.
    chunk: candidates evaluated side by side by `vmap`; the one memory knob. None: 1 on CPU, 8 elsewhere.
    block: images evaluated at a time.
    classes: bool [classes], those that an answer is taken among; None for all.
    **apply_kwargs: handed on to the model.

  Returns:
    The function: genomes int8 [candidate, rows, 5], images [n, ...], labels int [n], giving the number of correct answers,
    int32 [candidate], and the summed cross-entropy, float32 [candidate].
  """
  if chunk is None:
    chunk = 1 if jax.default_backend() == 'cpu' else 8

  def score_one(variables, genome, images, labels, valid):
    # Up front the subnet is folded once for all blocks; lazily the supports stay apart until the layer that needs them.
    if adapted.merge == 'up_front':
      rest = {name: value for name, value in variables.items() if name not in ('params', 'glora')}
      folded = {'params': adapted.fold(variables, genome), **rest}
      forward = lambda x: adapted.model.apply(folded, x, **apply_kwargs)
    else:
      forward = lambda x: adapted.apply(variables, x, genome=genome, **apply_kwargs)

    def add(sums, batch):
      x, y, counts = batch
      logits = forward(x)
      if classes is not None:
        logits = jnp.where(classes, logits, -jnp.inf)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), y)
      right = jnp.sum((logits.argmax(-1) == y) & counts, dtype=jnp.int32)
      return (sums[0] + right, sums[1] + jnp.sum(jnp.where(counts, losses, 0))), None

    sums, _ = jax.lax.scan(add, (jnp.int32(0), jnp.float32(0)), (images, labels, valid))
    return sums

  @jax.jit
  def score(variables, genomes, images, labels):
    inputs = preprocess(images)
    size = min(block, len(labels))
    padding = -len(labels) % size
    in_blocks = lambda x: jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, size, *x.shape[1:])
    batches = in_blocks(inputs), in_blocks(labels), in_blocks(jnp.ones(len(labels), bool))
    one = lambda genome: score_one(variables, genome, *batches)
    return jax.lax.map(one, jnp.asarray(genomes), batch_size=chunk if chunk > 1 else None)

  return score


def score(adapted: Adapted, variables: Any, genomes: Any, images: jax.Array, labels: jax.Array, **options: Any) -> Scores:
  """Correct counts int32 [candidate] and summed loss float32 [candidate] of genomes [candidate, rows, 5].

  Compiles on every call; `make_scorer`, which takes the same options, is for those who call often.
  """
  return make_scorer(adapted, **options)(variables, genomes, images, labels)
