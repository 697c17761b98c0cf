"""Scores of whole populations of structures."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glora_jax.checks import shown, validate
from glora_jax.compiling import reported, staged_like
from glora_jax.mesh import least_of_all, require_mesh
from glora_jax.method.adapted import Adapted, Call, call_model, check_params, fold_params, run
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.genomes import check_population
from glora_jax.method.groups import check_storage
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.method.validation import (
  as_numbers,
  check_classes,
  check_collections,
  check_logits,
  check_only_arrays,
  check_scored,
  is_known,
  right_answers,
)

CANDIDATE = 'candidate'  # the axis of a mesh that structures are split over
_DEFAULT_CHUNK = 8  # where memory is not known; on CPU 1 was measured to be the fastest

# Some of the labelled images: which of them (int32), their classes, and False for the padding that
# fills up the last block, each [image]. All blocks together have an axis before that.
Block = tuple[jax.Array, jax.Array, jax.Array]


class Scores(NamedTuple):
  """The scores of each candidate, over all images.

  Attributes:
    correct: number of right answers, int32 [candidate]: those whose most probable class is the
      label, and whose loss is finite.
    loss: summed cross-entropies, float32 [candidate].
  """

  correct: jax.Array
  loss: jax.Array


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
    preprocess: `(images, None) -> inputs` of the model, called for each block; None for images that
      are inputs already.
    chunk: number of candidates evaluated side by side by `vmap` on each device of the mesh's
      candidate axis; this controls memory. None for 1 on CPU, where that was measured to be the
      fastest, and elsewhere for as many as fit into `memory` (`fitting_chunk`), decided at the
      first call with so many genomes and images.
    block: number of images evaluated at a time.
    classes: the classes that may be answered, bool [class]; None for all.
    mesh: devices; None for one. Candidates are split over its axis 'candidate', if it has one, the
      images of a block over all others; both are padded, and the padding is masked. Sums are added
      up across devices once, at the end.
    memory: bytes of a device that the evaluation may use; None for half of the free memory.
    **apply_kwargs: keyword arguments that the model is called with.

  Returns:
    The function `(variables, genomes, images, labels) -> Scores`, with genomes int8
    [candidate, layer, 5], images [image, ...] and labels int [image]. `Scores` is the pair of
    correct answers, int32 [candidate], and summed cross-entropies, float32 [candidate].

  Raises:
    TypeError: an argument has another type.
    ValueError: `chunk`, `block` or `memory` is out of range. The returned function raises it if
      there are no images, the numbers of images and labels differ, a label is not a class, or a
      genome does not fit the model or the ranks of the variables.

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
  evaluator = _Evaluator(adapted, preprocess, block, classes, mesh, apply_kwargs)
  chunk = validate(chunk, int | None, 'chunk', least=1)
  memory = validate(memory, float | None, 'memory', least=0)  # 1e9 is a number of bytes, too
  if chunk is None and memory is None and _platform_of(mesh) == 'cpu':
    chunk = 1

  @functools.cache
  def scorer_of_chunk(chunk: int) -> Callable[..., Scores]:
    return reported('scoring', jax.jit(functools.partial(evaluator.totals, chunk=chunk)))

  # By what the memory depends on: a call with one genome or image must not decide for others.
  chunks: dict[Any, int] = {}

  def score_in_memory(variables: Any, genomes: Any, images: Any, labels: Any) -> Scores:
    arguments = variables, genomes, images, labels
    shape = len(genomes), images.shape, images.dtype
    if shape not in chunks:
      most = ceil_div(len(genomes), evaluator.candidate_shards)
      chunks[shape] = fitting_chunk(scorer_of_chunk, arguments, most, memory)
    return scorer_of_chunk(chunks[shape])(*arguments)

  return evaluator.checked(score_in_memory if chunk is None else scorer_of_chunk(chunk))


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
  """What a scorer compiles, for an adapted model; the arguments are those of `make_scorer`.

  Attributes:
    candidate_shards: number of groups of devices that candidates are split over.
    data_shards: number of devices that the images of one candidate are split over.
    num_classes: number of classes of the logits, once they have been traced.
  """

  def __init__(
    self,
    adapted: Adapted,
    preprocess: Preprocess | None,
    block: int,
    classes: Any,
    mesh: Mesh | None,
    apply_kwargs: Mapping[str, Any],
  ):
    validate(adapted, Adapted, 'adapted')
    self.adapted, self.apply_kwargs = adapted, apply_kwargs
    self.preprocess = preprocess or unchanged
    validate(self.preprocess, Callable, 'preprocess')
    self.block = validate(block, int, 'block', least=1)
    self.classes = _as_mask(classes)
    self.num_classes = 0
    if mesh is not None:
      require_mesh(mesh)
    self.mesh = mesh
    sizes = {} if mesh is None else mesh.shape
    self.candidate_axes = tuple(name for name in sizes if name == CANDIDATE)
    self.data_axes = tuple(name for name in sizes if name != CANDIDATE)
    self.candidate_shards = sizes.get(CANDIDATE, 1)
    self.data_shards = math.prod(sizes.values()) // self.candidate_shards

  def checked(self, compiled: Callable[..., Scores]) -> Callable[..., Scores]:
    """A compiled scorer, which looks at what it is given before anybody believes its scores."""

    @staged_like(compiled)
    def score(variables: Any, genomes: Any, images: Any, labels: Any) -> Scores:
      if is_known(genomes):  # not where they are traced
        check_population(self.adapted.spec, genomes)
        check_collections(variables)
        check_storage(self.adapted.places.groups, variables[COLLECTION], genomes)
      check_only_arrays('variables', variables)
      genomes = as_numbers('genomes', genomes)  # lists would be an argument for each number
      images, labels = as_numbers('images', images), as_numbers('labels', labels)
      scores = compiled(variables, genomes, images, labels)
      # How many classes there are is known once the model has been traced, and nothing waits here.
      check_classes(labels, self.num_classes)
      return scores

    return score

  def totals(
    self,
    variables: Mapping[str, Any],
    genomes: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    chunk: int,
  ) -> Scores:
    """The scores of a population; on a mesh, whole in every process."""
    total = functools.partial(self._shard_totals, variables, *self._blocks(images, labels))
    genomes = jnp.asarray(genomes)
    if self.mesh is None:
      by_shard = jax.lax.map(total, genomes, batch_size=chunk if chunk > 1 else None)
    else:
      by_shard = self._split_totals(total, genomes, chunk)
    return jax.tree.map(lambda sums: self._place(sums.sum(1, dtype=sums.dtype)), by_shard)

  def _shard_totals(
    self, variables: Mapping[str, Any], images: jax.Array, blocks: Block, genome: jax.Array
  ) -> Scores:
    """One candidate's sums over all blocks, [data shard].

    With a sum for each shard nothing crosses devices until all blocks are done.
    """
    logits_of = self._forward(variables, genome)

    def add(sums: Scores, block: Block) -> tuple[Scores, None]:
      rows, labels, is_image = block
      logits = logits_of(images[rows])
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      # Padding is wrong and costs nothing.
      answers = right_answers(logits, labels, losses) & is_image, jnp.where(is_image, losses, 0)
      new = (
        part.reshape(self.data_shards, -1).sum(1, dtype=total.dtype)
        for part, total in zip(answers, sums, strict=True)
      )
      return jax.tree.map(jnp.add, sums, Scores(*new)), None

    zeros = Scores(*(jnp.zeros(self.data_shards, dtype) for dtype in (jnp.int32, jnp.float32)))
    return jax.lax.scan(add, zeros, blocks)[0]

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

  def _forward(
    self, variables: Mapping[str, Any], genome: jax.Array
  ) -> Callable[[jax.Array], jax.Array]:
    """A structure's logits by images, float32 [image, class]; -inf for classes that do not count.

    It is folded once, or merged in every pass, which holds less.
    """
    check_params(self.adapted, variables['params'])
    is_folded = not isinstance(self.adapted.model, nn.Module) or _platform_of(self.mesh) == 'cpu'
    if is_folded:
      variables = {**variables, 'params': fold_params(self.adapted, variables, genome)}

    def logits_of(images: jax.Array) -> jax.Array:
      inputs = self.preprocess(images, None)
      if is_folded:
        logits: Any = call_model(self.adapted, variables, inputs, **self.apply_kwargs)
      else:
        logits = run(self.adapted, Call((inputs,), self.apply_kwargs), variables, genome)
      check_logits(logits, len(images))
      logits = logits.astype(jnp.float32)
      self.num_classes = logits.shape[-1]
      if self.classes is None:
        return logits
      if len(self.classes) != self.num_classes:
        raise ValueError(
          f'classes has {len(self.classes)} values, but the model has {self.num_classes} classes; '
          'pass one for each.'
        )
      return jnp.where(self.classes, logits, -jnp.inf)

    return logits_of

  def _blocks(self, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Block]:
    """All images, whole on every device, and which of them each block has, [block, image].

    The rows of a block are split over the data shards, each of which takes its own images. Blocks
    come out even over the shards: the last image fills up the last block.
    """
    check_scored(images, labels)
    number = len(labels)
    size = ceil_div(min(self.block, number), self.data_shards) * self.data_shards
    rows = np.arange(ceil_div(number, size) * size, dtype=np.int32).reshape(-1, size)
    is_image, rows = rows < number, np.minimum(rows, number - 1)
    blocks = jnp.asarray(rows), jnp.asarray(labels)[rows], jnp.asarray(is_image)
    split = jax.tree.map(lambda part: self._place(part, None, self.data_axes), blocks)
    return self._place(jnp.asarray(images)), split

  def _place(self, x: jax.Array, *axes: Any) -> jax.Array:
    """The array split over the named axes of the mesh, whole along all others."""
    if self.mesh is None:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))


def _platform_of(mesh: Mesh | None) -> str:
  """'cpu', 'gpu' or 'tpu'; of a mesh that of its devices, which need not be here."""
  return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _as_mask(classes: Any) -> Any:
  """Which classes are answers as an array, which may be traced; None for all."""
  if classes is None:
    return None
  mask = classes if isinstance(classes, jax.Array) else np.asarray(classes)
  if mask.dtype != bool or mask.ndim != 1 or (is_known(mask) and not np.any(mask)):
    raise ValueError(
      f'classes={shown(classes)} must be True or False for each class, True for one at least; None '
      'takes all.'
    )
  return mask


def ceil_div(number: int, divisor: int) -> int:
  """The quotient, rounded up."""
  return -(-number // divisor)
