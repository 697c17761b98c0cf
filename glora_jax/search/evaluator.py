"""How structures answer images: the computation that all scorers and predictors share."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from glora_jax.limits import check_callable, check_type, check_whole, shown
from glora_jax.mesh import require_mesh
from glora_jax.method.adapted import Adapted, Call
from glora_jax.method.equation import platform
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import check_logits, check_scored, is_known, right_answers

CANDIDATE = 'candidate'  # the axis of a mesh that structures are dealt to


class Batch(NamedTuple):
  """Some of the labelled images, [image] each; blocks of one size have an axis before that.

  Attributes:
    rows: which of the images, int32.
    labels: their classes, int.
    is_image: False for the padding that fills up the last block, bool.
  """

  rows: jax.Array
  labels: jax.Array
  is_image: jax.Array


class Bound(NamedTuple):
  """A structure and its values, ready for as many forward passes as there are blocks.

  Attributes:
    variables: the folded model's variables, or, where a genome is given, the supernet's.
    genome: int [layer, 5], for supports that are merged in the forward pass; None once folded.
  """

  variables: Mapping[str, Any]
  genome: jax.Array | None


class Answers(NamedTuple):
  """What each answer is worth, [..., image]; padding is wrong and costs nothing.

  Attributes:
    correct: whether the most probable class is the label, bool; False where the loss is not finite.
    loss: cross-entropy, float32.
  """

  correct: jax.Array
  loss: jax.Array


class Scores(NamedTuple):
  """What all answers of each candidate are worth.

  Attributes:
    correct: number of correct answers, int32 [candidate].
    loss: summed cross-entropy, float32 [candidate].
  """

  correct: jax.Array
  loss: jax.Array


class Predictions(NamedTuple):
  """What one structure says of each image.

  Attributes:
    classes: the most probable class, int32 [image].
    probabilities: its probability, float32 [image].
  """

  classes: Any
  probabilities: Any

  def are(self, labels: Any) -> Any:
    """Which of them are these labels, bool [image]; none whose probability is not finite."""
    return (self.classes == labels) & np.isfinite(self.probabilities)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """Scores and predictions of an adapted model's structures, as functions to be compiled.

  Attributes:
    adapted: the adapted model.
    preprocess: `(images, None) -> inputs` of the model.
    block: number of images evaluated at a time.
    classes: which classes an answer is taken among, bool [class]; None for all.
    mesh: devices, whose axis 'candidate', if there is one, is dealt candidates, and whose others
      are dealt images; None for one device.
    apply_kwargs: keyword arguments that the model is called with.
    traced_classes: number of classes of the logits, once they have been traced.

  Raises:
    ValueError: an argument is of another type, a block has no image, or no class is an answer.
  """

  adapted: Adapted
  preprocess: Preprocess = unchanged
  block: int = 256
  classes: Any = None
  mesh: Mesh | None = None
  apply_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  traced_classes: set[int] = dataclasses.field(default_factory=set)

  def __post_init__(self):
    check_type(self.adapted, Adapted, 'adapted')
    check_callable(self.preprocess, 'preprocess')
    object.__setattr__(self, 'block', check_whole(self.block, 'block', 1))
    object.__setattr__(self, 'classes', _as_mask(self.classes))
    if self.mesh is not None:
      require_mesh(self.mesh)

  @property
  def candidate_shards(self) -> int:
    """Number of groups of devices that candidates are dealt to."""
    return 1 if self.mesh is None else self.mesh.shape.get(CANDIDATE, 1)

  @property
  def data_shards(self) -> int:
    """Number of devices that the images of one candidate are dealt to."""
    return 1 if self.mesh is None else self.mesh.size // self.candidate_shards

  @property
  def _candidate_axes(self) -> tuple[str, ...]:
    """Axes of the mesh that candidates are dealt to."""
    return tuple(name for name in self._axes if name == CANDIDATE)

  @property
  def _data_axes(self) -> tuple[str, ...]:
    """Axes of the mesh that the images of one candidate are dealt to."""
    return tuple(name for name in self._axes if name != CANDIDATE)

  @property
  def _axes(self) -> tuple[str, ...]:
    return () if self.mesh is None else self.mesh.axis_names

  def bind(self, variables: Mapping[str, Any], genome: jax.Array) -> Bound:
    """The structure as it is scored: folded once, or merged in every pass, which holds less."""
    if isinstance(self.adapted.model, nn.Module) and platform() != 'cpu':
      return Bound(variables, genome)
    others = {
      name: value for name, value in variables.items() if name not in ('params', COLLECTION)
    }
    return Bound({'params': self.adapted.folded(variables, genome), **others}, None)

  def logits(self, bound: Bound, inputs: jax.Array) -> jax.Array:
    """The structure's logits, float32 [image, class]; -inf for classes that are no answers."""
    if bound.genome is None:
      logits: Any = self.adapted.call_model(bound.variables, inputs, **self.apply_kwargs)
    else:
      call = Call((inputs,), self.apply_kwargs)
      logits = self.adapted.run(call, bound.variables, bound.genome)
    check_logits(logits)
    logits = logits.astype(jnp.float32)
    if self.classes is not None and self.classes.shape != logits.shape[-1:]:
      raise ValueError(
        f'classes has {len(self.classes)} truths, and the model answers with {logits.shape[-1]} '
        'classes; give one for each.'
      )
    self.traced_classes.add(logits.shape[-1])
    return logits if self.classes is None else jnp.where(self.classes, logits, -jnp.inf)

  def answers(self, bound: Bound, images: jax.Array, batch: Batch) -> Answers:
    """What the structure's answers to one block of all images are worth, [image]."""
    logits = self.logits(bound, self.preprocess(images[batch.rows], None))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return Answers(
      correct=right_answers(logits, batch.labels, losses) & batch.is_image,
      loss=jnp.where(batch.is_image, losses, 0),
    )

  def blocks(self, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Batch]:
    """All images, whole on every device, and which of them each block has, [block, image].

    The rows of a block are dealt to the data shards, each of which takes its own images.

    Raises:
      ValueError: there is no image, or not one label for each, a whole number.
    """
    check_scored(images, labels)
    number = len(labels)
    rows, is_image = _in_blocks(number, self._block_size(number, self.data_shards))
    blocks = Batch(jnp.asarray(rows), jnp.asarray(labels)[rows], jnp.asarray(is_image))
    dealt = jax.tree.map(lambda part: self._place(part, None, self._data_axes), blocks)
    return self._place(jnp.asarray(images)), dealt

  def totals(
    self,
    variables: Mapping[str, Any],
    genomes: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    chunk: int,
  ) -> Scores:
    """The scores of a population; on a mesh, whole in every process.

    Args:
      variables: the supernet's variables.
      genomes: int8 [candidate, layer, 5].
      images: [image, ...].
      labels: int [image].
      chunk: number of candidates evaluated side by side on each device.
    """
    total = functools.partial(self._shard_totals, variables, *self.blocks(images, labels))
    genomes = jnp.asarray(genomes)
    if self.mesh is None:
      by_shard = jax.lax.map(total, genomes, batch_size=_vmapped(chunk))
    else:
      by_shard = self._dealt_totals(total, genomes, chunk)
    return jax.tree.map(lambda sums: self._place(sums.sum(1, dtype=sums.dtype)), by_shard)

  def _shard_totals(
    self, variables: Mapping[str, Any], images: jax.Array, blocks: Batch, genome: jax.Array
  ) -> Scores:
    """One candidate's sums over all blocks, [data shard].

    With a sum for each shard nothing crosses devices until all blocks are done.
    """
    bound = self.bind(variables, genome)

    def add(sums: Scores, block: Batch) -> tuple[Scores, None]:
      answers = self.answers(bound, images, block)
      correct = answers.correct.reshape(self.data_shards, -1).sum(1, dtype=jnp.int32)
      loss = answers.loss.reshape(self.data_shards, -1).sum(1)
      return Scores(sums.correct + correct, sums.loss + loss), None

    zeros = Scores(
      correct=jnp.zeros(self.data_shards, jnp.int32), loss=jnp.zeros(self.data_shards, jnp.float32)
    )
    return jax.lax.scan(add, zeros, blocks)[0]

  def _dealt_totals(
    self, total: Callable[[jax.Array], Scores], genomes: jax.Array, chunk: int
  ) -> Scores:
    """The sums of candidates that are dealt to the mesh, [candidate, data shard]."""
    number = len(genomes)
    side_by_side = self.candidate_shards * min(chunk, ceil_div(number, self.candidate_shards))
    padding = -number % side_by_side
    padded = jnp.pad(genomes, ((0, padding), (0, 0), (0, 0)), mode='edge')

    def dealt_total(genomes: jax.Array) -> Scores:
      by_shard = jax.vmap(total)(self._place(genomes, self._candidate_axes))
      axes = self._candidate_axes, self._data_axes
      return jax.tree.map(lambda sums: self._place(sums, *axes), by_shard)

    by_shard = jax.lax.map(dealt_total, padded.reshape(-1, side_by_side, *genomes.shape[1:]))
    return jax.tree.map(lambda sums: sums.reshape(-1, self.data_shards)[:number], by_shard)

  def per_image(
    self,
    variables: Mapping[str, Any],
    genomes: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    *,
    chunk: int,
  ) -> Answers:
    """What every single answer of a population is worth, [candidate, image]; see `totals`."""
    images, blocks = self.blocks(images, labels)

    def answer(genome: jax.Array) -> Answers:
      bound = self.bind(variables, genome)
      answers = jax.lax.map(functools.partial(self.answers, bound, images), blocks)
      return jax.tree.map(lambda part: part.reshape(-1)[: len(labels)], answers)

    return jax.lax.map(answer, jnp.asarray(genomes), batch_size=_vmapped(chunk))

  def predictions(
    self, variables: Mapping[str, Any], genome: jax.Array, images: jax.Array
  ) -> Predictions:
    """The predictions of one structure, int8 [layer, 5], for images [image, ...].

    The images of a block are dealt to all devices of the mesh; the result is whole on every one.
    """
    number, devices = len(images), 1 if self.mesh is None else self.mesh.size
    bound, images = self.bind(variables, genome), self._place(jnp.asarray(images))

    def predict(rows: jax.Array) -> Predictions:
      inputs = self.preprocess(images[self._place(rows, self._axes)], None)
      logits = self.logits(bound, inputs)
      return Predictions(
        classes=logits.argmax(-1).astype(jnp.int32),
        probabilities=jax.nn.softmax(logits).max(-1),
      )

    rows, _ = _in_blocks(number, self._block_size(number, devices))
    by_block = jax.lax.map(predict, jnp.asarray(rows))
    return jax.tree.map(lambda part: self._place(part.reshape(-1)[:number]), by_block)

  def _block_size(self, number: int, shards: int) -> int:
    """Number of images in a block, which comes out even over the shards."""
    return ceil_div(min(self.block, number), shards) * shards

  def _place(self, x: jax.Array, *axes: Any) -> jax.Array:
    """The array dealt to the named axes of the mesh, whole along all others."""
    if self.mesh is None:
      return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec(*axes)))


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


def _in_blocks(number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """The numbers of so many images in blocks, int32, and whether each is one, bool [block, size].

  The last image fills up the last block.

  Example:
    >>> rows, is_image = _in_blocks(5, 3)
    >>> rows.tolist(), is_image.sum().item()
    ([[0, 1, 2], [3, 4, 4]], 5)
  """
  rows = np.arange(ceil_div(number, size) * size, dtype=np.int32).reshape(-1, size)
  return np.minimum(rows, number - 1), rows < number


def _vmapped(chunk: int) -> int | None:
  """The `batch_size` of `jax.lax.map`, which maps without `vmap` where it is None."""
  return chunk if chunk > 1 else None
