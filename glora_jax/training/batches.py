"""The batches of training steps: which there are, their order, and how they come to the device.

A data set's order is a function of the key and the step number alone. It is the same whether it
lies on the device or is read when it is needed, from the first step on or from a later one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.checks import shown
from glora_jax.method.validation import check_only_arrays

# Batches of a stream that one compiled call takes. The next call's are put on the device meanwhile.
MOST_STREAMED_STEPS = 8
# Examples that a stream is asked for at once, about: worker processes start anew for each question.
_ASKED_AT_ONCE = 2**20


@runtime_checkable
class Stream(Protocol):
  """A data set that is read when it is needed; `vision.data.pipeline.Stream` for instance."""

  def __len__(self) -> int:
    """Number of examples."""
    ...

  def batches(self, indices: np.ndarray) -> Iterator[Any]:
    """The examples of each row of indices, int [steps, batch]: trees of arrays [batch, ...]."""
    ...


class Block(NamedTuple):
  """The batches of consecutive training steps.

  Attributes:
    stop: the steps that are done when these are.
    data: a tree, of the whole data set [n, ...], or of the batches [steps, batch, ...].
    indices: the examples of every step, int32 [steps, batch], or of n runs [steps, n, batch]; None
      where `data` are batches.
    weight: what the gradients of these steps are multiplied by; None for 1.
  """

  stop: int
  data: Any
  indices: np.ndarray | None
  weight: float | None = None


def source_of(batches: Any, batch_size: int, parts: int) -> Resident | Streamed | Given:
  """What a `fit` trains on, by its kind.

  Args:
    batches: see `fit`.
    batch_size: number of examples in a step, of a data set.
    parts: number of equal parts that every batch must divide into.

  Raises:
    TypeError: it is none of the kinds.
    ValueError: a data set has no examples, or arrays of different lengths.
  """
  if isinstance(batches, Stream):
    return Streamed(batches, batch_size)
  if isinstance(batches, dict | tuple) or hasattr(batches, 'dtype'):
    data = jax.tree.map(
      lambda leaf: np.asarray(leaf) if isinstance(leaf, list) else leaf,
      batches,
      is_leaf=lambda leaf: isinstance(leaf, list),
    )
    check_only_arrays('data', data)
    return Resident(data, batch_size, size_of(data))
  if isinstance(batches, Iterable):
    if isinstance(batches, Sized) and not len(batches):
      raise ValueError('There are no batches; pass at least one.')
    return Given(batches, parts)
  raise TypeError(
    f'batches={shown(batches)} must be a data set (an array, or a tuple or dictionary of arrays), '
    'an iterable of batches, or an object with batches(indices).'
  )


def size_of(batch: Any) -> int:
  """The number of examples in a tree of arrays [n, ...].

  Raises:
    ValueError: its arrays differ in it, or there are none.
  """
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1 or not (size := sizes.pop()) or not size[0]:
    shapes = [list(np.shape(leaf)) for leaf in jax.tree.leaves(batch)]
    raise ValueError(
      f'The arrays of the data are {shown(shapes)}; each must have one row for each example, and '
      'there must be at least one.'
    )
  return size[0]


@dataclasses.dataclass(frozen=True)
class Resident:
  """A data set that lies on the device; steps take their examples by index.

  Attributes:
    data: tree of arrays [n, ...].
    batch_size: number of examples in a step.
    num_examples: n.
  """

  data: Any
  batch_size: int
  num_examples: int

  def blocks(
    self, key: Any, steps: tuple[int, int], most_steps: int, mesh: jax.sharding.Mesh | None = None
  ) -> Iterator[Block]:
    """The batches of some steps.

    Args:
      key: random key of the order; also a list, of several runs.
      steps: the first step, and the one after the last.
      most_steps: most steps of a block.
      mesh: devices that every batch is split over; the data set lies on each as a whole.
    """
    data, (first, last) = meshes.hold(mesh, self.data), steps
    block_size = steps_per_call(self.num_examples // self.batch_size, most_steps)
    in_order = functools.partial(
      batch_indices,
      first=first,
      last=last,
      num_examples=self.num_examples,
      batch_size=self.batch_size,
    )
    rows = zip(*map(in_order, key), strict=True) if isinstance(key, list) else in_order(key)
    for start in range(first, last, block_size):
      stop = min(start + block_size, last)
      yield Block(stop, data, np.stack([*itertools.islice(rows, stop - start)]))


@dataclasses.dataclass(frozen=True)
class Streamed:
  """A data set that is read when it is needed, in the order of a resident one.

  Attributes:
    stream: the data set; each process reads the examples of its own devices.
    batch_size: number of examples in a step.
  """

  stream: Stream
  batch_size: int

  @property
  def num_examples(self) -> int:
    """Number of examples."""
    return len(self.stream)

  def blocks(
    self, key: Any, steps: tuple[int, int], most_steps: int, mesh: jax.sharding.Mesh | None = None
  ) -> Iterator[Block]:
    """The batches of some steps, see `Resident`.

    A block that is shorter than an epoch ends where the epoch does, at the latest.
    """
    first, last = steps
    steps_per_epoch = self.num_examples // self.batch_size
    block_size = steps_per_call(steps_per_epoch, min(most_steps, MOST_STREAMED_STEPS))
    in_order = batch_indices(key, first, last, self.num_examples, self.batch_size)
    batches = _read(self.stream, in_order, self.batch_size, mesh)
    while first < last:
      left_of_epoch = steps_per_epoch - first % steps_per_epoch
      num_steps = min(block_size, left_of_epoch) if block_size < steps_per_epoch else block_size
      stop = min(first + num_steps, last)
      yield Block(stop, _stacked([*itertools.islice(batches, stop - first)], mesh), None)
      first = stop


@dataclasses.dataclass(frozen=True)
class Given:
  """Batches as somebody else has made them, iterated anew in each epoch.

  Attributes:
    batches: an iterable of trees of arrays [batch, ...].
    parts: number of equal parts that every batch must divide into.
  """

  batches: Iterable[Any]
  parts: int

  @property
  def per_epoch(self) -> int | None:
    """Number of batches; None if it is unknown."""
    return len(self.batches) if isinstance(self.batches, Sized) else None

  @property
  def is_one_pass(self) -> bool:
    """Whether it is an iterator, which is empty after one pass."""
    return iter(self.batches) is self.batches

  def blocks(
    self, key: Any, steps: tuple[int, int], most_steps: int, mesh: jax.sharding.Mesh | None = None
  ) -> Iterator[Block]:
    """The batches of some steps, see `Resident`; those of one shape that follow each other at once.

    A step with fewer examples than the first batch of its pass counts for less, each example alike.
    """
    del key
    first, last = steps
    skipped = first if self.per_epoch is None else first % self.per_epoch
    run = itertools.islice(self._passes(), skipped, skipped + last - first)
    for (_, weight), alike in itertools.groupby(run, key=_kind):
      while batches := [*itertools.islice(alike, min(most_steps, MOST_STREAMED_STEPS))]:
        first += len(batches)
        alone = [batch for batch, _ in batches]
        if mesh is not None:
          own = operator.itemgetter(meshes.local_rows(mesh, size_of(alone[0])))
          alone = jax.tree.map(own, alone)
        yield Block(first, _stacked(alone, mesh), None, None if weight == 1 else weight)

  def _passes(self) -> Iterator[tuple[Any, float]]:
    """(batch, size by that of the first batch of its pass), pass after pass."""
    while True:
      largest = 0
      for batch in self.batches:
        check_only_arrays('batch', batch)
        size = size_of(batch)
        if size % self.parts:
          raise ValueError(
            f'A batch of {size} examples cannot be divided into {self.parts} equal parts (devices '
            'times accumulate); leave it out, or change its size.'
          )
        largest = largest or size
        yield jax.tree.map(np.asarray, batch), size / largest
      if not largest:
        raise ValueError(
          'There are no batches left; pass a list or another iterable that starts anew in each '
          'epoch, with at least one batch.'
        )


def _kind(weighted: tuple[Any, float]) -> tuple[Any, float]:
  """What batches of one compiled call have in common."""
  batch, weight = weighted
  leaves, structure = jax.tree.flatten(batch)
  return (structure, [(leaf.shape, leaf.dtype) for leaf in leaves]), weight


def _stacked(batches: Sequence[Any], mesh: jax.sharding.Mesh | None) -> Any:
  """Batches as arrays [steps, batch, ...], on their way to the device; nothing waits for them."""
  stacks = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
  if mesh is None:
    return jax.device_put(stacks)
  return jax.tree.map(lambda stack: meshes.from_hosts(mesh, stack, axis=1), stacks)


def _read(
  stream: Stream,
  in_order: Iterator[np.ndarray],
  batch_size: int,
  mesh: jax.sharding.Mesh | None,
) -> Iterator[Any]:
  """The batches of some steps, asked of the stream many at a time."""
  rows = slice(None) if mesh is None else meshes.local_rows(mesh, batch_size)
  while asked := [*itertools.islice(in_order, max(1, _ASKED_AT_ONCE // batch_size))]:
    yield from given(stream, np.stack(asked)[:, rows])


def given(stream: Stream, indices: np.ndarray) -> Iterator[Any]:
  """The batches that a stream gives for rows of indices, int [rows, batch].

  Raises:
    ValueError: it does not give a batch for each row, with an example for each index.
  """
  rows, size = indices.shape
  number = 0
  for batch in stream.batches(indices):
    if any(len(leaf) != size for leaf in jax.tree.leaves(batch)):
      lengths = [len(leaf) for leaf in jax.tree.leaves(batch)]
      raise ValueError(
        f'The stream returned arrays of {shown(lengths)} rows for a row of {size} indices; its '
        'batches(indices) must return an example for each.'
      )
    number += 1
    yield batch
  if number != rows:
    raise ValueError(
      f'The stream returned {number} batches for {rows} rows of indices; its batches(indices) must '
      'return one for each.'
    )


def batch_indices(
  key: jax.Array, first: int, last: int, num_examples: int, batch_size: int
) -> Iterator[np.ndarray]:
  """The examples of the steps `first` to `last - 1`, one step after another, each int32 [batch].

  Every epoch is its own permutation, a function of the key and the epoch alone; the partial batch
  at its end is dropped.

  Args:
    key: random key of the order.
    first: the first step.
    last: the step after the last.
    num_examples: number of examples in the data set.
    batch_size: number of examples in a step.
  """
  per_epoch = num_examples // batch_size
  for epoch in range(first // per_epoch, -(-last // per_epoch)):
    order = np.asarray(_permutation(key, epoch, num_examples))[: per_epoch * batch_size]
    rows = order.reshape(per_epoch, batch_size).astype(np.int32)
    start = epoch * per_epoch
    yield from rows[max(first - start, 0) : last - start]


@functools.partial(jax.jit, static_argnums=2)
def _permutation(key: jax.Array, epoch: int, num_examples: int) -> jax.Array:
  return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def split_traced(mesh: jax.sharding.Mesh | None, rows: jax.Array, axis: int = 0) -> jax.Array:
  """The same array, within a compiled function, with an axis split over all devices of a mesh."""
  if mesh is None:
    return rows
  return jax.lax.with_sharding_constraint(rows, meshes.split_over(mesh, axis))


def steps_per_call(steps_per_epoch: int, most: int) -> int:
  """How many steps a compiled call takes: at most so many, and the same in nearly every call.

  Whole epochs where they are short, a whole fraction of an epoch where it is long: calls of one
  shape are compiled once.
  """
  if steps_per_epoch < most:
    return steps_per_epoch * (most // steps_per_epoch)
  largest_fraction = max(n for n in range(1, most + 1) if steps_per_epoch % n == 0)
  return largest_fraction if largest_fraction > most // 4 else most
