"""Scores of populations of structures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glora_jax.checks import validate
from glora_jax.compiling import reported, staged_like
from glora_jax.mesh import least_of_all, require_mesh
from glora_jax.method.adapted import Adapted, Call, call_model, check_params, fold_params, run
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.forward import Forward, Loss, check_data, loss_and_metrics
from glora_jax.method.genomes import check_population
from glora_jax.method.groups import check_storage
from glora_jax.method.validation import (
  as_data,
  as_numbers,
  check_collections,
  check_only_arrays,
  is_known,
  size_of,
)

CANDIDATE = 'candidate'  # the axis of a mesh that structures are split over
_DEFAULT_CHUNK = 8  # if memory is not known; on CPU 1 was measured to be the fastest


class Scores(NamedTuple):
  """The scores of each candidate, over all examples.

  Attributes:
    correct: number of right answers, int32 [candidate]: the metric 'accuracy' of each block, times
      its examples, rounded. None if the loss has no accuracy.
    loss: summed losses, float32 [candidate]: the mean of each block, times its examples.
  """

  correct: jax.Array | None
  loss: jax.Array


def make_scorer(
  adapted: Adapted,
  loss: Loss,
  *,
  chunk: int | None = None,
  block: int = 256,
  mesh: jax.sharding.Mesh | None = None,
  memory: int | None = None,
) -> Callable[[Any, Any, Any], Scores]:
  """Returns a compiled function that scores populations, with the same kind of loss as `fit`.

  The genomes are traced: one compilation serves every population of the same size. Candidates run
  in chunks, the examples of a chunk in blocks, and only the two sums per candidate are kept.

  Args:
    adapted: the adapted model.
    loss: `loss(forward, batch, key)`, see `fit`; `classification()` for pairs (images, labels). Its
      key is always the same, so run the model without dropout and the like.
    chunk: number of candidates evaluated side by side (`vmap`) on each device of the mesh's
      candidate axis; this controls memory. None is for 1 on CPU, which was measured to be the
      fastest there. On other devices it is for as many as fit into `memory` (`fitting_chunk`),
      decided at the first call with so many genomes and examples.
    block: most examples of a call of the loss. Blocks are smaller, but more than half as large, if
      they then have the same size; else the remaining examples are another, smaller block.
    mesh: devices; None for one. Candidates are split over its axis 'candidate', if it has one, the
      examples of a block over all others, and the loss is called with the examples of one device.
      Examples that do not divide are evaluated on each device, and counted once. Sums are added up
      across devices once, at the end.
    memory: bytes of a device that the evaluation may use; None for half of the free memory.

  Returns:
    The function `(variables, genomes, data) -> Scores`, with genomes int8 [candidate, layer, 5],
    and as data an array, or a tuple or dictionary of arrays [n, ...]. `Scores` is the pair of
    correct answers, int32 [candidate], and summed losses, float32 [candidate].

  Raises:
    TypeError: an argument has another type.
    ValueError: `chunk`, `block` or `memory` is out of range. The returned function raises it if
      there are no examples, the arrays of the data have different lengths, a label is not a class,
      the loss or a metric is not one number, or a genome does not fit the model or the ranks of the
      variables.

  Example:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> import glora_jax
    >>> model, images, labels = nn.Dense(3), jnp.eye(3), jnp.arange(3)
    >>> adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace())
    >>> params = {'kernel': jnp.eye(3), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> genomes = glora_jax.random_genomes(np.random.default_rng(0), adapted.spec, 4)
    >>> score = glora_jax.make_scorer(adapted, glora_jax.classification())
    >>> correct, loss = score(variables, genomes, (images, labels))
    >>> correct.tolist()  # without training every structure is the base model
    [3, 3, 3, 3]
  """
  evaluator = _Evaluator(adapted, loss, block, mesh)
  chunk = validate(chunk, int | None, 'chunk', least=1)
  memory = validate(memory, float | None, 'memory', least=0)  # 1e9 is a number of bytes, too
  if chunk is None and memory is None and _platform_of(mesh) == 'cpu':
    chunk = 1

  @functools.cache
  def scorer_of_chunk(chunk: int) -> Callable[..., Scores]:
    return reported('scoring', jax.jit(functools.partial(evaluator.totals, chunk=chunk)))

  # Keyed by all that the memory depends on: a call with one genome must not decide for others.
  chunks: dict[Any, int] = {}

  def score_in_memory(variables: Any, genomes: Any, data: Any) -> Scores:
    arguments = variables, genomes, data
    leaves, structure = jax.tree.flatten(data)
    types = len(genomes), structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if types not in chunks:
      most = ceil_div(len(genomes), evaluator.candidate_shards)
      chunks[types] = fitting_chunk(scorer_of_chunk, arguments, most, memory)
    return scorer_of_chunk(chunks[types])(*arguments)

  return evaluator.checked(score_in_memory if chunk is None else scorer_of_chunk(chunk))


def fitting_chunk(
  scorer_of_chunk: Callable[[int], Any],
  arguments: Sequence[Any],
  most: int,
  memory: int | None = None,
) -> int:
  """How many candidates fit side by side into a device's memory.

  The compiler's numbers for one candidate and for two are extrapolated.

  Args:
    scorer_of_chunk: function from a number of candidates to a compiled function.
    arguments: arguments of the compiled function.
    most: number of candidates that there are; chunks are of about equal size.
    memory: bytes for temporaries; None for half of the free memory of the device, or for 8
      candidates if it is unknown.

  Returns:
    The chunk, from 1 to `most`.
  """
  if most == 1:
    return 1
  if memory is None:
    stats = jax.local_devices()[0].memory_stats() or {}
    if 'bytes_limit' not in stats:
      return min(_DEFAULT_CHUNK, most)
    free, mebibyte = stats['bytes_limit'] - stats.get('bytes_in_use', 0), 2**20
    memory = least_of_all(free // 2 // mebibyte) * mebibyte  # all processes must decide alike
  of_one, of_two = (
    scorer_of_chunk(chunk).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
    for chunk in (1, 2)
  )
  fitting = 1 + max(0, memory - of_one) // max(1, of_two - of_one)
  num_chunks = ceil_div(most, int(min(fitting, most)))
  return ceil_div(most, num_chunks)


class _Evaluator:
  """The compiled function of a scorer, for an adapted model; for the arguments see `make_scorer`.

  Attributes:
    candidate_shards: number of groups of devices that candidates are split over.
    data_shards: number of devices that the examples of one candidate are split over.
  """

  def __init__(self, adapted: Adapted, loss: Loss, block: int, mesh: Mesh | None):
    self.adapted = validate(adapted, Adapted, 'adapted').fix(None)
    self.loss = validate(loss, Callable, 'loss')
    self.block = validate(block, int, 'block', least=1)
    if mesh is not None:
      require_mesh(mesh)
    self.mesh = mesh
    sizes = {} if mesh is None else mesh.shape
    self.candidate_axes = tuple(name for name in sizes if name == CANDIDATE)
    self.data_axes = tuple(name for name in sizes if name != CANDIDATE)
    self.candidate_shards = sizes.get(CANDIDATE, 1)
    self.data_shards = math.prod(sizes.values()) // self.candidate_shards

  def checked(self, compiled: Callable[..., Scores]) -> Callable[..., Scores]:
    """A compiled scorer that checks its arguments."""

    @staged_like(compiled)
    def score(variables: Any, genomes: Any, data: Any) -> Scores:
      if is_known(genomes):  # not if they are traced
        check_population(self.adapted.spec, genomes)
        check_collections(variables)
        check_storage(self.adapted.places.groups, variables[COLLECTION], genomes)
      check_only_arrays('variables', variables)
      genomes = as_numbers('genomes', genomes)  # lists would be an argument for each number
      data = as_data(data)
      check_data(self.loss, data, self.adapted)
      scores = compiled(variables, genomes, data)
      check_data(self.loss, data, self.adapted)  # now the loss knows how many classes there are
      return scores

    return score

  def totals(
    self, variables: Mapping[str, Any], genomes: jax.Array, data: Any, *, chunk: int
  ) -> Scores:
    """The scores of a population; on a mesh, replicated."""
    total = functools.partial(self._shard_totals, variables, jax.tree.map(self._place, data))
    genomes = jnp.asarray(genomes)
    if self.mesh is None:
      by_shard = jax.lax.map(total, genomes, batch_size=chunk if chunk > 1 else None)
    else:
      by_shard = self._split_totals(total, genomes, chunk)
    return jax.tree.map(lambda sums: self._place(sums.sum(1, dtype=sums.dtype)), by_shard)

  def _split_totals(
    self, total: Callable[[jax.Array], Scores], genomes: jax.Array, chunk: int
  ) -> Scores:
    """The sums of candidates that are split over the mesh, [candidate, data shard]."""
    number, shards = len(genomes), self.candidate_shards
    side_by_side = shards * min(chunk, ceil_div(number, shards))
    padding = -number % side_by_side
    padded = jnp.pad(genomes, ((0, padding), (0, 0), (0, 0)), mode='edge')

    def split_total(genomes: jax.Array) -> Scores:
      by_shard = jax.vmap(total)(self._place(genomes, self.candidate_axes))
      axes = self.candidate_axes, self.data_axes
      return jax.tree.map(lambda sums: self._place(sums, *axes), by_shard)

    by_shard = jax.lax.map(split_total, padded.reshape(-1, side_by_side, *genomes.shape[1:]))
    return jax.tree.map(lambda sums: sums.reshape(-1, self.data_shards)[:number], by_shard)

  def _shard_totals(self, variables: Mapping[str, Any], data: Any, genome: jax.Array) -> Scores:
    """One candidate's sums over all examples, [data shard].

    With a sum for each shard nothing crosses devices until all blocks are done.
    """
    forward = self._forward(variables, genome)

    def of_shard(rows: jax.Array) -> Scores:
      batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], data)
      mean, metrics = loss_and_metrics(self.loss(forward, batch, jax.random.key(0)))
      correct = metrics.get('accuracy')
      if correct is not None:
        correct = jnp.round(correct * len(rows)).astype(jnp.int32)
      return Scores(correct, jnp.float32(mean) * len(rows))

    def of_block(rows: jax.Array) -> Scores:
      if len(rows) > 1:
        return jax.vmap(of_shard)(self._place(rows, self.data_axes))
      return jax.tree.map(lambda one: one[None], of_shard(rows[0]))

    blocks, rest = self._blocks(size_of(data))
    by_block = jax.lax.map(of_block, self._place(jnp.asarray(blocks), None, self.data_axes))
    sums = jax.tree.map(lambda part: part.sum(0, dtype=part.dtype), by_block)
    if not rest.size:
      return sums
    # A rest that every device evaluates counts for the first of them.
    padding = self.data_shards - len(rest)
    return jax.tree.map(
      lambda total, part: total + jnp.pad(part, (0, padding)), sums, of_block(jnp.asarray(rest))
    )

  def _blocks(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The examples of each block, [block, data shard, example], and the rest, [shard, example].

    A rest is compiled as a second program within the first. So blocks are of a size that leaves
    none, if there is one between half of the largest size and that. A rest that does not divide
    over the shards has one, [1, example].
    """
    shards = self.data_shards
    per_shard = number // shards
    largest = max(1, min(self.block // shards, per_shard))
    sizes = range(largest, largest // 2, -1)
    size = next((size for size in sizes if per_shard % size == 0), largest)
    rows = np.arange(number, dtype=np.int32)
    in_blocks = per_shard // size * size * shards
    rest = rows[in_blocks:].reshape(1 if (number - in_blocks) % shards else shards, -1)
    return rows[:in_blocks].reshape(-1, shards, size), rest

  def _forward(self, variables: Mapping[str, Any], genome: jax.Array) -> Forward:
    """The function that the loss of a structure calls.

    It is folded once, or merged in every call, which needs less memory.
    """
    adapted = self.adapted
    check_params(adapted, variables['params'])
    if not isinstance(adapted.model, nn.Module) or _platform_of(self.mesh) == 'cpu':
      folded = {**variables, 'params': fold_params(adapted, variables, genome)}
      call = functools.partial(call_model, adapted, folded)
    else:

      def call(*inputs: Any, **kwargs: Any) -> Any:
        return run(adapted, Call(inputs, kwargs), variables, genome)

    return Forward(adapted, variables, genome, call=call)

  def _place(self, x: jax.Array, *axes: Any) -> jax.Array:
    """The array split over the named axes of the mesh, replicated along all others."""
    if self.mesh is None:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))


def _platform_of(mesh: Mesh | None) -> str:
  """'cpu', 'gpu' or 'tpu'; of a mesh that of its devices, which need not be here."""
  return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def ceil_div(number: int, divisor: int) -> int:
  """The quotient, rounded up."""
  return -(-number // divisor)
