"""The batches of training steps: their kinds, their order, and how they get to the device.

`source_of` turns the batches that `fit` accepts into one of three sources: `Resident` (arrays),
`Streamed` (an object with `batches(indices)`) and `Loader` (an iterable of batches). Each has
`blocks(...)`, which yields the batches of consecutive steps for one compiled call.

The order of a data set is a function of the key and the step number alone. It is the same for both
kinds of data sets, and for a run that starts at a later step.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.checks import shown
from glora_jax.method.validation import (
  as_batch,
  as_data,
  check_list_of_batches,
  is_data,
  size_of,
)

MOST_STEPS = 50  # of a compiled call
# The same if its batches are not on the device yet. While it runs, those of the next are read.
MOST_STREAMED_STEPS = 8
# About how many examples a stream reads per call of `batches`, each of which may start workers.
_READ_AT_ONCE = 2**20

# (key, epoch, number of examples) -> the examples of that epoch, in their order.
Draw = Callable[[jax.Array, int, int], Any]


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
    stop: number of steps of the training that are completed at the end of the block.
    data: tree of arrays: the data set [n, ...], or the batches [steps, batch, ...].
    indices: the examples of every step, int32 [steps, batch], or of n runs [steps, n, batch]; None
      if `data` holds the batches.
    weight: factor on the gradients of these steps; None for 1.
  """

  stop: int
  data: Any
  indices: np.ndarray | None
  weight: np.float32 | None = None


def source_of(batches: Any, batch_size: int, parts: int, draw: Draw | None = None) -> Source:
  """The source of batches for the argument `batches` of `fit`.

  Args:
    batches: see `fit`.
    batch_size: number of examples in a step, of a data set.
    parts: number of equal parts that every batch must divide into.
    draw: see `batch_indices`, of a data set.

  Raises:
    TypeError: it is none of the kinds, or not all numbers.
    ValueError: a data set has no examples, or arrays of different lengths; or there are no batches,
      or their list looks like a data set.
  """
  if isinstance(batches, Stream):
    return Streamed(batches, batch_size, draw)
  if is_data(batches):
    data = as_data(batches)
    return Resident(data, batch_size, size_of(data), draw)
  if not isinstance(batches, Iterable) or isinstance(batches, str):
    raise TypeError(
      f'batches={shown(batches)} must be a data set (an array, or a tuple or dictionary of '
      'arrays), an iterable of batches, or an object with batches(indices).'
    )
  check_list_of_batches(batches)
  loader = Loader(batches, parts)
  if loader.per_epoch == 0:
    raise ValueError('There are no batches; pass at least one.')
  return loader


@dataclasses.dataclass(frozen=True)
class Resident:
  """A data set on the device; each step indexes its examples there.

  Attributes:
    data: tree of arrays [n, ...].
    batch_size: number of examples in a step.
    num_examples: n.
    draw: see `batch_indices`.
  """

  data: Any
  batch_size: int
  num_examples: int
  draw: Draw | None = None

  def blocks(
    self,
    key: Any,
    steps: tuple[int, int],
    every: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ) -> Iterator[Block]:
    """The batches of some steps.

    Args:
      key: random key of the order, or a list of keys, one for each run.
      steps: the first step, and the one after the last.
      every: number of steps whose multiples end a block; None if blocks may end anywhere.
      mesh: devices that every batch is split over; the data set is replicated.
    """
    data, (first, last) = meshes.hold(mesh, self.data), steps
    size = steps_per_call(every or self.num_examples // self.batch_size, every)

    def in_order(key):
      return batch_indices(key, first, last, self.num_examples, self.batch_size, self.draw)

    rows = zip(*map(in_order, key), strict=True) if isinstance(key, list) else in_order(key)
    for start, stop in _ends(steps, size, every):
      yield Block(stop, data, np.stack([*itertools.islice(rows, stop - start)]))


@dataclasses.dataclass(frozen=True)
class Streamed:
  """A data set that is read when it is needed, in the order of a resident one.

  Attributes:
    stream: the data set; each process reads the examples of its own devices.
    batch_size: number of examples in a step.
    draw: see `batch_indices`.
  """

  stream: Stream
  batch_size: int
  draw: Draw | None = None

  @property
  def num_examples(self) -> int:
    """Number of examples."""
    return len(self.stream)

  def blocks(
    self,
    key: Any,
    steps: tuple[int, int],
    every: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ) -> Iterator[Block]:
    """The batches of some steps, see `Resident`.

    A block that is shorter than an epoch ends with the epoch, at the latest.
    """
    per_epoch = self.num_examples // self.batch_size
    size = steps_per_call(every or per_epoch, every, MOST_STREAMED_STEPS)
    in_order = batch_indices(key, *steps, self.num_examples, self.batch_size, self.draw)
    batches = read(self.stream, in_order, self.batch_size, mesh)
    for start, stop in _ends(steps, size, every or (per_epoch if size < per_epoch else None)):
      yield Block(stop, _stack([*itertools.islice(batches, stop - start)], mesh), None)


@dataclasses.dataclass(frozen=True)
class Loader:
  """Batches from the caller: a list, or a data loader, which is iterated anew in each epoch.

  Attributes:
    batches: an iterable of trees of arrays [batch, ...].
    parts: number of equal parts that every batch must divide into.
  """

  batches: Iterable[Any]
  parts: int

  @property
  def per_epoch(self) -> int | None:
    """Number of batches; None if it is unknown."""
    try:
      return len(self.batches)  # pyrefly: ignore
    except TypeError:  # no `__len__`, or one that raises, as tf.data's and PyTorch's may
      return None

  @property
  def is_one_pass(self) -> bool:
    """Whether it is an iterator, which is empty after one pass."""
    return isinstance(self.batches, Iterator)

  def blocks(
    self,
    key: Any,
    steps: tuple[int, int],
    every: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
  ) -> Iterator[Block]:
    """The batches of some steps, see `Resident`; a block has consecutive batches of one shape.

    The weight of a step is its number of examples, relative to the first batch of its epoch.
    """
    del key
    first, last = steps
    # To resume, whole epochs are skipped without reading them, if their length is known.
    skipped = first if self.per_epoch is None else first % self.per_epoch
    weighted = itertools.islice(self._passes(), skipped, skipped + last - first)
    for (_, weight), alike in itertools.groupby(weighted, key=_shapes_and_weight):
      while block := [batch for batch, _ in itertools.islice(alike, _most_loaded(first, every))]:
        first += len(block)
        if mesh is not None:
          local = meshes.local_rows(mesh, size_of(block[0]))
          block = jax.tree.map(operator.itemgetter(local), block)
        yield Block(first, _stack(block, mesh), None, None if weight == 1 else np.float32(weight))

  def _passes(self) -> Iterator[tuple[Any, float]]:
    """(batch, its size relative to the first batch of its pass), pass after pass."""
    while True:
      first_size, number = None, 0
      for batch in self.batches:
        number += 1
        arrays = as_batch(batch)
        size = size_of(arrays)
        if size % self.parts:
          raise ValueError(
            f'A batch of {size} examples cannot be divided into {self.parts} equal parts (devices '
            'times accumulate); leave it out, or change its size.'
          )
        first_size = first_size or size
        yield jax.tree.map(np.asarray, arrays), size / first_size
      if first_size is None:
        raise ValueError(
          'There are no batches left; pass a list or another iterable that starts anew in each '
          'epoch, with at least one batch.'
        )
      if self.per_epoch not in (None, number):
        raise ValueError(
          f'batches has a length of {self.per_epoch}, but yielded {number} in an epoch; correct '
          'it, or pass batches without one and Recipe(steps=...).'
        )


Source = Resident | Streamed | Loader


def _shapes_and_weight(weighted: tuple[Any, float]) -> tuple[Any, float]:
  """What the batches of a block have in common."""
  batch, weight = weighted
  leaves, structure = jax.tree.flatten(batch)
  return (structure, [(leaf.shape, leaf.dtype) for leaf in leaves]), weight


def _stack(batches: Sequence[Any], mesh: jax.sharding.Mesh | None) -> Any:
  """Batches as arrays [steps, batch, ...], sent to the device without waiting for it."""
  stacks = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
  if mesh is None:
    return jax.device_put(stacks)
  return jax.tree.map(lambda stack: meshes.from_hosts(mesh, stack, axis=1), stacks)


def read(
  stream: Stream,
  in_order: Iterator[np.ndarray],
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Iterator[Any]:
  """The batches of some steps, many per call of the stream.

  Args:
    stream: the data set.
    in_order: the examples of every step, each int [batch].
    batch_size: number of examples in a step.
    mesh: devices that every batch is split over.

  Raises:
    ValueError: the stream does not return a batch for each row, with an example for each index.
  """
  local = slice(None) if mesh is None else meshes.local_rows(mesh, batch_size)
  while rows := [*itertools.islice(in_order, max(1, _READ_AT_ONCE // batch_size))]:
    indices = np.stack(rows)[:, local]
    number = 0
    for batch in stream.batches(indices):
      lengths = [len(leaf) for leaf in jax.tree.leaves(batch)]
      if set(lengths) - {indices.shape[1]}:
        raise ValueError(
          f'The stream returned arrays of {shown(lengths)} rows for a row of {indices.shape[1]} '
          'indices; its batches(indices) must return an example for each.'
        )
      number += 1
      yield batch
    if number != len(rows):
      raise ValueError(
        f'The stream returned {number} batches for {len(rows)} rows of indices; its '
        'batches(indices) must return one for each.'
      )


def batch_indices(
  key: jax.Array,
  first: int,
  last: int,
  num_examples: int,
  batch_size: int,
  draw: Draw | None = None,
) -> Iterator[np.ndarray]:
  """The examples of the steps `first` to `last - 1`, one step after another, each int32 [batch].

  Every epoch is its own permutation or draw, a function of the key and the epoch alone; the partial
  batch at its end is dropped.

  Args:
    key: random key of the order.
    first: the first step.
    last: the step after the last.
    num_examples: number of examples in the data set.
    batch_size: number of examples in a step.
    draw: draws the examples of an epoch; None for a permutation of all.
  """
  per_epoch = num_examples // batch_size
  for epoch in range(first // per_epoch, -(-last // per_epoch)):
    order = np.asarray((draw or _permutation)(key, epoch, num_examples))[: per_epoch * batch_size]
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


def _ends(steps: tuple[int, int], size: int, every: int | None) -> Iterator[tuple[int, int]]:
  """The first step of each block, and the one after its last: of `size` steps, or to a multiple."""
  start, last = steps
  while start < last:
    stop = min(start + size, last)
    if every is not None:
      stop = min(stop, start - start % every + every)
    yield start, stop
    start = stop


def _most_loaded(first: int, every: int | None) -> int:
  """Maximum number of steps of a block of loaded batches that begins with this step."""
  left = MOST_STREAMED_STEPS if every is None else every - first % every
  return min(left, MOST_STREAMED_STEPS)


def steps_per_call(steps_per_epoch: int, every: int | None = None, most: int = MOST_STEPS) -> int:
  """The number of steps of a compiled call: at most `most`, and the same in nearly every call.

  Calls of one length are compiled once. So a call has one or more complete epochs if they are
  short, and otherwise a number of steps that divides the epoch, if a large one does. With `every`
  it has no more steps than that.
  """
  most = min(most, every or most)
  if steps_per_epoch < most:
    return steps_per_epoch * (most // steps_per_epoch)
  largest_fraction = max(n for n in range(1, most + 1) if steps_per_epoch % n == 0)
  return largest_fraction if largest_fraction > most // 4 else most
