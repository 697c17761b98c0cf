"""The images of every training step: their order, and how they come to the device.

The order is a function of the key and the step number alone. It is the same for a training set that
lies on the device and for one that is streamed to it, from the first step on or from a later one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from glora_jax import mesh as meshes

# Batches of a stream that one compiled call takes. The next call's are put on the device meanwhile.
MOST_STREAMED_STEPS = 8
# Images that a stream is asked for at once, about: worker processes start anew for each question.
_ASKED_AT_ONCE = 2**20


@runtime_checkable
class ImageStream(Protocol):
  """Images that are read when they are needed."""

  def batches(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images [batch, ...] and labels [batch] of each row of indices, int [steps, batch]."""
    ...


class Block(NamedTuple):
  """The images of consecutive training steps.

  Attributes:
    stop: the steps that are done when these are.
    images: the whole training set [n, ...], or the batches [steps, batch, ...].
    labels: its labels, int [n], or those of the batches, int [steps, batch].
    indices: the images of every step, int32 [steps, batch], or of n runs [steps, n, batch]; None
      where `images` are batches.
  """

  stop: int
  images: jax.Array | np.ndarray
  labels: jax.Array | np.ndarray
  indices: np.ndarray | None


def feed(
  images: jax.Array | np.ndarray | ImageStream,
  labels: jax.Array | np.ndarray,
  key: Any,
  batch_size: int,
  steps: tuple[int, int],
  most_steps: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Iterator[Block]:
  """What feeds a training loop, in blocks of steps.

  Args:
    images: the whole training set [n, ...], or a stream, of which each process reads the images of
      its own devices.
    labels: int [n].
    key: random key of the order; for images that are no stream also a list, of several runs.
    batch_size: number of images in a step.
    steps: the first step, and the one after the last.
    most_steps: most steps of a block.
    mesh: devices that every batch is split over. A resident training set lies on each as a whole.
  """
  if isinstance(images, ImageStream):
    return _streamed(images, len(labels), key, batch_size, steps, most_steps, mesh)
  images, labels = meshes.hold(mesh, (images, labels))
  return _resident(images, labels, key, batch_size, steps, most_steps)


def _resident(
  images: Any, labels: Any, key: Any, batch_size: int, steps: tuple[int, int], most_steps: int
) -> Iterator[Block]:
  """Blocks of a training set that lies on the device; steps take their images by index."""
  first, last = steps
  block_size = steps_per_call(len(labels) // batch_size, most_steps)
  in_order = functools.partial(
    batch_indices, first=first, last=last, num_examples=len(labels), batch_size=batch_size
  )
  rows = zip(*map(in_order, key), strict=True) if isinstance(key, list) else in_order(key)
  for start in range(first, last, block_size):
    stop = min(start + block_size, last)
    yield Block(stop, images, labels, np.stack([*itertools.islice(rows, stop - start)]))


def _streamed(
  stream: ImageStream,
  num_examples: int,
  key: jax.Array,
  batch_size: int,
  steps: tuple[int, int],
  most_steps: int,
  mesh: jax.sharding.Mesh | None,
) -> Iterator[Block]:
  """Blocks of batches that are read, in the order of a resident training set.

  A block that is shorter than an epoch ends where the epoch does, at the latest.
  """
  first, last = steps
  steps_per_epoch = num_examples // batch_size
  block_size = steps_per_call(steps_per_epoch, min(most_steps, MOST_STREAMED_STEPS))
  in_order = batch_indices(key, first, last, num_examples, batch_size)
  batches = _read(stream, in_order, batch_size, mesh)
  while first < last:
    left_of_epoch = steps_per_epoch - first % steps_per_epoch
    num_steps = min(block_size, left_of_epoch) if block_size < steps_per_epoch else block_size
    stop = min(first + num_steps, last)
    stacks = map(np.stack, zip(*itertools.islice(batches, stop - first), strict=True))
    # On their way to the device; nothing waits for them to be there.
    if mesh is None:
      images, labels = map(jax.device_put, stacks)
    else:
      images, labels = (meshes.from_hosts(mesh, stack, axis=1) for stack in stacks)
    yield Block(stop, images, labels, None)
    first = stop


def _read(
  stream: ImageStream,
  in_order: Iterator[np.ndarray],
  batch_size: int,
  mesh: jax.sharding.Mesh | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The batches of some steps, asked of the stream many at a time."""
  rows = slice(None) if mesh is None else meshes.local_rows(mesh, batch_size)
  while asked := [*itertools.islice(in_order, max(1, _ASKED_AT_ONCE // batch_size))]:
    yield from given(stream, np.stack(asked)[:, rows])


def given(stream: ImageStream, indices: np.ndarray) -> Iterator[tuple[Any, Any]]:
  """The images and labels that a stream gives for rows of indices, int [rows, batch].

  Raises:
    ValueError: it does not give a batch for each row, with an image and a label for each index.
  """
  rows, size = indices.shape
  number = 0
  for images, labels in stream.batches(indices):
    if not len(images) == len(labels) == size:
      raise ValueError(
        f'The stream returned {len(images)} images and {len(labels)} labels for a row of {size} '
        'indices; its batches(indices) must return an image and a label for each.'
      )
    number += 1
    yield images, labels
  if number != rows:
    raise ValueError(
      f'The stream returned {number} batches for {rows} rows of indices; its batches(indices) must '
      'return one for each.'
    )


def batch_indices(
  key: jax.Array, first: int, last: int, num_examples: int, batch_size: int
) -> Iterator[np.ndarray]:
  """The images of the steps `first` to `last - 1`, one step after another, each int32 [batch].

  Every epoch is its own permutation, a function of the key and the epoch alone; the partial batch
  at its end is dropped.

  Args:
    key: random key of the order.
    first: the first step.
    last: the step after the last.
    num_examples: number of images in the training set.
    batch_size: number of images in a step.
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
