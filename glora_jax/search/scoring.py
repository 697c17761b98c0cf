"""Scoring: how many images each subnet of a population gets right, as one compiled function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from glora_jax.mesh import least_of_all
from glora_jax.method.adapted import Adapted

Scores = tuple[jax.Array, jax.Array]


class Predictions(NamedTuple):
  """For every image the most probable class, int32 [n], and its probability, float32 [n]."""

  classes: Any
  probabilities: Any


def make_scorer(
  adapted: Adapted,
  preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
  *,
  chunk: int | None = None,
  block: int = 256,
  classes: Any = None,
  mesh: jax.sharding.Mesh | None = None,
  memory: int | None = None,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], Scores]:
  """A compiled `(variables, genomes, images, labels) -> (correct, loss)`.

  The genomes are traced: one compilation serves every population of the same size. Candidates run in chunks, the images of
  a chunk in blocks, and only the two sums per candidate are kept.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: images to inputs of the model, applied once.
    chunk: candidates evaluated side by side by `vmap` on each device of the mesh's candidate axis; the one memory knob. None: 1
      on CPU, where it was measured to be the fastest; elsewhere as many as `memory` holds (`fitting_chunk`), decided at the first call with
      a number of genomes.
    block: images evaluated at a time.
    classes: bool [classes], those that an answer is taken among; None for all.
    mesh: with the axes 'candidate' and 'data': candidates are dealt to the first, the images of a block to the second; both are padded, and the
      padding is masked. Sums stay where they are until the end, when they are added up once. None for one device.
    memory: bytes of a device that the evaluation may take. None: half of what is free.
    **apply_kwargs: handed on to the model.

  Returns:
    The function: genomes int8 [candidate, rows, 5], images [n, ...], labels int [n], giving the number of correct answers,
    int32 [candidate], and the summed cross-entropy, float32 [candidate].
  """
  answers = make_answers(adapted, classes, apply_kwargs)
  candidates, shards = (1, 1) if mesh is None else (mesh.shape['candidate'], mesh.shape['data'])

  def place(x, *axes):
    return (
      x
      if mesh is None
      else jax.lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
      )
    )

  def score_one(variables, genome, images, labels, valid):
    answer = answers(variables, genome)

    def add(sums, batch):
      right, losses = answer(*batch)
      # One sum for each shard of the block: nothing crosses devices until all blocks are done.
      part = lambda x: x.reshape(shards, -1).sum(1)
      return (sums[0] + part(right), sums[1] + part(losses)), None

    start = jnp.zeros(shards, jnp.int32), jnp.zeros(shards, jnp.float32)
    return jax.lax.scan(add, start, (images, labels, valid))[0]

  def score(chunk, variables, genomes, images, labels):
    size = -(-min(block, len(labels)) // shards) * shards
    batches = tuple(place(x, None, 'data') for x in in_blocks(preprocess(images), labels, size))
    one = lambda genome: score_one(variables, genome, *batches)
    genomes = jnp.asarray(genomes)
    if mesh is None:
      correct, loss = jax.lax.map(one, genomes, batch_size=chunk if chunk > 1 else None)
    else:
      number = len(genomes)
      together = candidates * min(chunk, -(-number // candidates))
      padding = -number % together
      chunks = jnp.pad(genomes, ((0, padding), (0, 0), (0, 0)), mode='edge').reshape(
        -1, together, *genomes.shape[1:]
      )
      several = lambda some: jax.tree.map(
        lambda x: place(x, 'candidate', 'data'), jax.vmap(one)(place(some, 'candidate'))
      )
      correct, loss = (x.reshape(-1, shards)[:number] for x in jax.lax.map(several, chunks))
    return place(correct.sum(1)), place(loss.sum(1))  # whole in every process

  of_chunk = functools.cache(lambda chunk: jax.jit(functools.partial(score, chunk)))
  if chunk is None and memory is None and jax.default_backend() == 'cpu':
    chunk = 1
  if chunk is not None:
    return of_chunk(chunk)

  decided: dict[
    int, int
  ] = {}  # by the number of genomes: a call with one must not decide for a whole population

  def score_in_memory(*arguments):
    number = len(arguments[1])
    if number not in decided:
      decided[number] = fitting_chunk(of_chunk, arguments, -(-number // candidates), memory)
    return of_chunk(decided[number])(*arguments)

  return score_in_memory


def fitting_chunk(
  of_chunk: Callable[[int], Any], arguments: Sequence[Any], most: int, memory: int | None = None
) -> int:
  """How many candidates fit side by side into a device's memory, by what the compiler says of one and of two.

  Args:
    of_chunk: number of candidates -> compiled function.
    arguments: of that function.
    most: candidates that there are; they are dealt to chunks of about equal size.
    memory: bytes for temporaries; None for half of what is free on the device, or 8 candidates where it does not say.

  Returns:
    The chunk, from 1 to `most`.
  """
  if most == 1:
    return 1
  if memory is None:
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' not in stats:
      return min(8, most)
    free = stats['bytes_limit'] - stats.get('bytes_in_use', 0)
    memory = least_of_all(free // 2 // 2**20) * 2**20  # all processes must decide alike
  one, two = (
    of_chunk(n).lower(*arguments).compile().memory_analysis().temp_size_in_bytes for n in (1, 2)
  )
  fits = 1 + max(0, memory - one) // max(1, two - one)
  return -(-most // -(-most // int(min(fits, most))))


def make_image_scorer(
  adapted: Adapted,
  preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
  *,
  chunk: int | None = None,
  block: int = 256,
  classes: Any = None,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], Scores]:
  """As `make_scorer`, but nothing is summed: right answers, bool [candidate, n], and cross-entropies, float32 [candidate, n]."""
  chunk = default_chunk() if chunk is None else chunk
  answers = make_answers(adapted, classes, apply_kwargs)

  @jax.jit
  def score(variables, genomes, images, labels):
    batches = in_blocks(preprocess(images), labels, min(block, len(labels)))

    def one(genome):
      answer = answers(variables, genome)
      right, losses = jax.lax.map(lambda batch: answer(*batch), batches)
      return right.reshape(-1)[: len(labels)], losses.reshape(-1)[: len(labels)]

    return jax.lax.map(one, jnp.asarray(genomes), batch_size=chunk if chunk > 1 else None)

  return score


def make_predictor(
  adapted: Adapted,
  preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
  *,
  block: int = 256,
  classes: Any = None,
  mesh: jax.sharding.Mesh | None = None,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array], Predictions]:
  """A compiled `(variables, genome, images) -> Predictions` of one subnet; of what it computes it keeps two numbers an image.

  Args:
    adapted, preprocess, block, classes, **apply_kwargs: see `make_scorer`.
    mesh: the images of a block are dealt to all its devices; what comes back is whole on every one. None for one device.
  """
  forwards, shards = (
    _make_forwards(adapted, classes, apply_kwargs),
    1 if mesh is None else mesh.size,
  )

  @jax.jit
  def predict(variables, genome, images):
    logits = forwards(variables, genome)
    place = lambda x, *axes: (
      x
      if mesh is None
      else jax.lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
      )
    )

    def answer(some):
      found = logits(preprocess(place(some, mesh and mesh.axis_names)))
      return found.argmax(-1).astype(jnp.int32), jax.nn.softmax(found).max(-1)

    size = -(-min(block, len(images)) // shards) * shards
    return Predictions(
      *(place(x.reshape(-1)[: len(images)]) for x in jax.lax.map(answer, _blocks(images, size)))
    )

  return predict


def default_chunk() -> int:
  """Candidates side by side where nothing else says how many: 1 on CPU, where that was measured to be the fastest, and 8 elsewhere."""
  return 1 if jax.default_backend() == 'cpu' else 8


def in_blocks(inputs, labels, size):
  """(inputs, labels, whether they count) as [blocks, size, ...], the last block padded."""
  return (
    _blocks(inputs, size),
    _blocks(jnp.asarray(labels), size),
    _blocks(jnp.ones(len(labels), bool), size),
  )


def _blocks(x, size):
  padding = -len(x) % size
  return jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1)).reshape(-1, size, *x.shape[1:])


def _make_forwards(adapted, classes, apply_kwargs):
  """`(variables, genome) -> (inputs -> logits)`, float32 [n, classes]; -inf for the classes that are no answers."""

  def forwards(variables, genome):
    # Up front the subnet is folded once for all blocks; lazily the supports stay apart until the layer that needs them.
    if adapted.merge == 'up_front':
      rest = {name: value for name, value in variables.items() if name not in ('params', 'glora')}
      folded = {'params': adapted.fold(variables, genome), **rest}
      forward = lambda x: adapted.model.apply(folded, x, **apply_kwargs)
    else:
      forward = lambda x: adapted.apply(variables, x, genome=genome, **apply_kwargs)
    among = (
      (lambda logits: logits)
      if classes is None
      else lambda logits: jnp.where(classes, logits, -jnp.inf)
    )
    return lambda inputs: among(forward(inputs).astype(jnp.float32))

  return forwards


def make_answers(adapted, classes, apply_kwargs):
  """`(variables, genome) -> ((inputs, labels, counts) -> (right, losses))`; what does not count is wrong and costs nothing."""
  forwards = _make_forwards(adapted, classes, apply_kwargs)

  def answers(variables, genome):
    forward = forwards(variables, genome)

    def answer(inputs, labels, counts):
      logits = forward(inputs)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return (logits.argmax(-1) == labels) & counts, jnp.where(counts, losses, 0)

    return answer

  return answers


def score(
  adapted: Adapted,
  variables: Any,
  genomes: Any,
  images: jax.Array,
  labels: jax.Array,
  **options: Any,
) -> Scores:
  """Correct counts int32 [candidate] and summed loss float32 [candidate] of genomes [candidate, rows, 5].

  Compiles on every call; `make_scorer`, which takes the same options, is for those who call often.
  """
  return make_scorer(adapted, **options)(variables, genomes, images, labels)
