"""Scoring: how many images each structure of a population gets right, as one compiled function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from glora_jax.mesh import least_of_all
from glora_jax.method.adapted import Adapted
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.search.checked import Checked, CheckedPredictor
from glora_jax.search.evaluator import (
  Answers,
  Evaluator,
  Predictions,
  Scores,
  ceil_div,
)
from glora_jax.settings import Number, Whole, taken

_DEFAULT_CHUNK = 8  # where memory is not known; on CPU 1 was measured to be the fastest


def make_scorer(
  adapted: Adapted,
  preprocess: Preprocess | None = None,
  *,
  chunk: int | None = None,
  block: int = 256,
  classes: Any = None,
  mesh: jax.sharding.Mesh | None = None,
  memory: int | None = None,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], Scores]:
  """A compiled function that scores whole populations.

  The genomes are traced: one compilation serves every population of the same size. Candidates run
  in chunks, the images of a chunk in blocks, and only the two sums per candidate are kept.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(images, None) -> inputs` of the model, for one block after another; None for
      images that are inputs already.
    chunk: number of candidates evaluated side by side by `vmap` on each device of the mesh's
      candidate axis; the one memory knob. None for 1 on CPU, where that was measured to be the
      fastest, and elsewhere for as many as `memory` holds (`fitting_chunk`), which is decided at
      the first call with a number of genomes.
    block: number of images evaluated at a time.
    classes: which classes an answer is taken among, bool [class]; None for all.
    mesh: devices; None for one. Candidates are dealt to its axis 'candidate', if it has one, the
      images of a block to all others; both are padded, and the padding is masked. Sums stay where
      they are until the end, when they are added up once.
    memory: bytes of a device that the evaluation may take; None for half of what is free.
    **apply_kwargs: keyword arguments that the model is called with.

  Returns:
    The function `(variables, genomes, images, labels) -> Scores`, with genomes int8
    [candidate, layer, 5], images [image, ...] and labels int [image]. `Scores` are the pair of
    correct answers, int32 [candidate], and summed cross-entropies, float32 [candidate].

  Raises:
    ValueError: `chunk` or `block` is no whole number above 0, or `memory` no number. Of the
      function: there is no image, or not one label for each; a label is no class; a genome does not
      fit the model, or has a higher rank than the variables store.

  Example:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import glora_jax
    >>> model, images, labels = nn.Dense(3), jnp.eye(3), jnp.arange(3)
    >>> adapted = glora_jax.adapt(model, images)
    >>> params = {'kernel': jnp.eye(3), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> genomes = glora_jax.random_genomes(np.random.default_rng(0), adapted.spec, 4)
    >>> score = glora_jax.make_scorer(adapted)
    >>> correct, loss = score(variables, genomes, images, labels)
    >>> correct.tolist()  # without training every structure is the base model
    [3, 3, 3, 3]
  """
  evaluator = Evaluator(adapted, preprocess or unchanged, block, classes, mesh, apply_kwargs)
  chunk = taken(chunk, 'chunk', Whole | None, ge=1)
  memory = taken(memory, 'memory', Number | None, ge=0)  # 1e9 is a number of bytes, too
  if chunk is None and memory is None and jax.default_backend() == 'cpu':
    chunk = 1
  if chunk is None:
    return Checked(evaluator, _ScorerInMemory(evaluator, memory))
  return Checked(evaluator, _jit_totals(evaluator, chunk))


def _jit_totals(evaluator: Evaluator, chunk: int) -> Callable[..., Scores]:
  return jax.jit(functools.partial(evaluator.totals, chunk=chunk))


class _ScorerInMemory:
  """A scorer whose chunk is as large as memory allows."""

  def __init__(self, evaluator: Evaluator, memory: int | None):
    self._candidate_shards = evaluator.candidate_shards
    self._scorer_of_chunk = functools.cache(functools.partial(_jit_totals, evaluator))
    self._memory = memory
    # By the number of genomes: a call with one genome must not decide for a whole population.
    self._chunks: dict[int, int] = {}

  def __call__(self, variables: Any, genomes: Any, images: jax.Array, labels: jax.Array) -> Scores:
    arguments = variables, genomes, images, labels
    number = len(genomes)
    if number not in self._chunks:
      most = ceil_div(number, self._candidate_shards)
      self._chunks[number] = fitting_chunk(self._scorer_of_chunk, arguments, most, self._memory)
    return self._scorer_of_chunk(self._chunks[number])(*arguments)


def fitting_chunk(
  scorer_of_chunk: Callable[[int], Any],
  arguments: Sequence[Any],
  most: int,
  memory: int | None = None,
) -> int:
  """How many candidates fit side by side into a device's memory.

  What the compiler says of one candidate and of two is extrapolated.

  Args:
    scorer_of_chunk: function from a number of candidates to a compiled function.
    arguments: arguments of the compiled function.
    most: number of candidates that there are; chunks are of about equal size.
    memory: bytes for temporaries; None for half of what is free on the device, or for 8 candidates
      where the device does not say.

  Returns:
    The chunk, from 1 to `most`.
  """
  if most == 1:
    return 1
  if memory is None:
    memory = _half_of_free_memory()
    if memory is None:
      return min(_DEFAULT_CHUNK, most)
  of_one, of_two = (
    scorer_of_chunk(chunk).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    for chunk in (1, 2)
  )
  fitting = 1 + max(0, memory - of_one) // max(1, of_two - of_one)
  num_chunks = ceil_div(most, int(min(fitting, most)))
  return ceil_div(most, num_chunks)


def _half_of_free_memory() -> int | None:
  """Bytes of the device with least memory, in whole MiB; None where devices do not say."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    return None
  free = stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  mebibyte = 2**20
  return least_of_all(free // 2 // mebibyte) * mebibyte  # all processes must decide alike


def make_image_scorer(
  adapted: Adapted,
  preprocess: Preprocess | None = None,
  *,
  chunk: int | None = None,
  block: int = 256,
  classes: Any = None,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], Answers]:
  """As `make_scorer`, but nothing is summed.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(images, None) -> inputs` of the model, for one block after another; None for
      images that are inputs already.
    chunk: number of candidates evaluated side by side; None for `default_chunk`.
    block: number of images evaluated at a time.
    classes: which classes an answer is taken among, bool [class]; None for all.
    **apply_kwargs: keyword arguments that the model is called with.

  Returns:
    The compiled function `(variables, genomes, images, labels) -> Answers`: the pair of whether
    each answer is right, bool [candidate, image], and cross-entropies, float32 [candidate, image].

  Raises:
    ValueError: see `make_scorer`.
  """
  evaluator = Evaluator(adapted, preprocess or unchanged, block, classes, apply_kwargs=apply_kwargs)
  chunk = taken(chunk, 'chunk', Whole | None, ge=1)
  chunk = default_chunk() if chunk is None else chunk
  return Checked(evaluator, jax.jit(functools.partial(evaluator.per_image, chunk=chunk)))


def make_predictor(
  adapted: Adapted,
  preprocess: Preprocess | None = None,
  *,
  block: int = 256,
  classes: Any = None,
  mesh: jax.sharding.Mesh | None = None,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array], Predictions]:
  """A compiled function that predicts the classes of images with one structure.

  Of what it computes it keeps two numbers an image.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(images, None) -> inputs` of the model, for one block after another; None for
      images that are inputs already.
    block: number of images evaluated at a time.
    classes: which classes an answer is taken among, bool [class]; None for all.
    mesh: devices that the images of a block are dealt to; what comes back is whole on every one.
      None for one device.
    **apply_kwargs: keyword arguments that the model is called with.

  Returns:
    The function `(variables, genome, images) -> Predictions`, with a genome int8 [layer, 5] and
    images [image, ...].

  Raises:
    ValueError: `block` is no whole number above 0. Of the function: there is no image; the genome
      does not fit the model, is a population, or has a higher rank than the variables store.
  """
  evaluator = Evaluator(adapted, preprocess or unchanged, block, classes, mesh, apply_kwargs)
  return CheckedPredictor(evaluator, jax.jit(evaluator.predictions))


def default_chunk() -> int:
  """Number of candidates side by side where nothing else says how many.

  It is 1 on CPU, where that was measured to be the fastest, and 8 elsewhere.
  """
  return 1 if jax.default_backend() == 'cpu' else _DEFAULT_CHUNK
