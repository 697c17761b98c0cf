"""From examples to arrays: small splits decoded once and kept as uint8, large ones streamed.

Both give the same pixels for the same indices, so training does not depend on which is used.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from tqdm.contrib.concurrent import thread_map

from glora_jax import mesh as meshes
from glora_jax.checks import printable
from glora_jax.files import writing
from glora_jax.training import batches
from glora_jax.vision.data.examples import Examples
from glora_jax.vision.data.image import ResizeRule, resize
from glora_jax.vision.files import Array, read_if_whole, write_arrays

log = logging.getLogger(__name__)

T = TypeVar('T')

_CACHE_VERSION = 2  # a part of the key: raised when the same examples would give other arrays
_FEWEST_WITH_PROGRESS = 2000  # images whose decoding shows a progress bar
_MOST_TOGETHER = 32  # images that a thread takes at a time
_BATCHES_AHEAD = 4  # of a stream that are held ready
_NAMED_IN_ERROR = 3  # broken images that an error names
_NAMED_IN_WARNING = 10


class Split(NamedTuple):
  """The images of a split with their labels.

  Attributes:
    images: uint8 [n, size, size, 3]; a `Stream` of those that are not held in memory.
    labels: int32 [n].
  """

  images: Any
  labels: Any


class UnreadableImages(OSError):
  """Images that cannot be decoded.

  Args:
    messages: a sentence on each of them.
    total: number of images that were read.
  """

  def __init__(self, messages: Sequence[str], total: int):
    shown = '; '.join(messages[:_NAMED_IN_ERROR])
    more = '; and more' if len(messages) > _NAMED_IN_ERROR else ''
    # Without all of them nothing would be left.
    advice = (
      ', or leave them out with data.skip_broken=True in the config'
      if len(messages) < total
      else ''
    )
    super().__init__(
      f'{len(messages)} of {total} images cannot be decoded: {shown}{more}. Replace them{advice}.'
    )
    self.messages, self.total = messages, total

  def __reduce__(self):
    # Or a process that decodes could not hand it over.
    return UnreadableImages, (self.messages, self.total)


def load(
  examples: Examples,
  image_size: int,
  *,
  rule: ResizeRule = 'squash',
  skip_broken: bool = False,
  cache: str | None = None,
  title: str = 'images',
) -> Split:
  """All examples, decoded in parallel and resized, in their order.

  Args:
    examples: examples to be read.
    image_size: side of the square.
    rule: see `image.resize`.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    cache: folder in which the arrays are kept, keyed by the examples' identity, size and rule;
      None keeps none. A writer that is killed leaves no file that looks whole.
    title: title of the progress bar.

  Raises:
    UnreadableImages: there are images that cannot be decoded.
  """
  images, indices = decode(examples, image_size, rule, skip_broken, cache, title)
  return Split(images, examples.labels[indices])


def decode(
  examples: Examples,
  image_size: int,
  rule: ResizeRule,
  skip_broken: bool,
  cache: str | None,
  title: str,
) -> tuple[np.ndarray, np.ndarray]:
  """The images of `load`, uint8 [image, size, size, 3], and their indices among the examples."""
  path, number = None, len(examples.labels)
  if cache is not None:
    digest(examples)
    settings = f'{examples.identity}|{image_size}|{rule}|{skip_broken}|{_CACHE_VERSION}'
    key = hashlib.sha256(settings.encode()).hexdigest()[:32]
    path = os.path.join(os.path.expanduser(cache), f'{key}.npz')
    sides = ('image', image_size, image_size, 3)
    expected = {'images': Array('u', sides), 'indices': Array('i', ('image',))}
    if (cached := read_if_whole(path, 'images', expected)) is not None:
      indices = cached['indices']
      if skip_broken or np.array_equal(indices, np.arange(number)):
        return cached['images'], indices
    if os.path.exists(path):
      log.warning('%s is damaged; reading its images again.', path)
  images = np.empty((number, image_size, image_size, 3), np.uint8)

  def read(index: int) -> None:
    images[index] = resize(examples.image(index), image_size, rule)

  indices = readable(examples, read, skip_broken, title)
  if len(indices) < number:
    images = images[indices]
  if path is not None:
    with writing(path):
      os.makedirs(os.path.dirname(path), exist_ok=True)
    write_arrays(path, {'images': images, 'indices': indices}, 'images')
  return images, indices


def digest(examples: Examples) -> None:
  """Digests the files of examples that were not read yet, in parallel."""
  unseen = [
    functools.partial(files.digest, int(index))
    for files in examples.files
    for index in np.flatnonzero(files.seen['time'] == 0)
  ]
  in_parallel(lambda number: unseen[number](), len(unseen), 'comparing images')


def readable(
  examples: Examples, read: Callable[[int], object], skip_broken: bool, title: str
) -> np.ndarray:
  """Indices of the examples that a function can read, after a warning that names the others.

  Args:
    examples: the examples.
    read: reads the example of an index; raises OSError where that cannot be.
    skip_broken: whether there may be others.
    title: title of the progress bar.

  Raises:
    UnreadableImages: there are others and may be none, or nothing else.
  """

  def try_to_read(index: int) -> str | None:
    try:
      read(index)
    except OSError as error:
      return _sentence(examples, index, error)
    return None

  number = len(examples.labels)
  messages = in_parallel(try_to_read, number, title)
  broken = [message for message in messages if message is not None]
  if broken and (len(broken) == number or not skip_broken):
    raise UnreadableImages(broken, number)
  if broken:
    log.warning(
      '%d of %d images cannot be decoded and are left out: %s',
      len(broken),
      number,
      '; '.join(broken[:_NAMED_IN_WARNING]),
    )
  return np.flatnonzero([message is None for message in messages])


def require_writable(cache: str) -> None:
  """Checks that a folder for decoded images is one, or can be made, before images are decoded.

  Raises:
    OSError: it cannot be written.
  """
  path = os.path.abspath(os.path.expanduser(cache))
  while not os.path.lexists(path):
    path = os.path.dirname(path)
  if not os.path.isdir(path) or not os.access(path, os.W_OK | os.X_OK):
    raise OSError(
      f'data.cache={cache!r} is not writable because of {path}; use another folder, or None for no '
      'cache.'
    )


def _sentence(examples: Examples, index: int, error: OSError) -> str:
  return f'{printable(examples.name(index))}: {error}'


def in_parallel(function: Callable[[int], T], number: int, title: str) -> list[T]:
  """The results of a function for 0 to number - 1, in their order, computed by threads.

  Args:
    function: function of an index.
    number: number of indices.
    title: title of the progress bar.
  """
  threads = os.cpu_count() or 1
  together = max(1, min(_MOST_TOGETHER, number // (4 * threads)))
  parts = thread_map(
    lambda start: [function(index) for index in range(start, min(start + together, number))],
    range(0, number, together),
    max_workers=threads,
    desc=title,
    unit='image',
    unit_scale=together,
    disable=number < _FEWEST_WITH_PROGRESS,
  )
  return [result for part in parts for result in part]


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Examples that are decoded when they are needed, a few batches ahead.

  Threads or worker processes of grain decode them. Takes the place of a resident `Split` in
  `fit` and in scoring.

  Attributes:
    examples: see `load`.
    image_size: see `load`.
    rule: see `load`.
    workers: processes that decode; 0 decodes in threads of this one, which is enough where Pillow
      releases the lock.
  """

  examples: Examples
  image_size: int
  _: dataclasses.KW_ONLY
  rule: ResizeRule = 'squash'
  workers: int = 0

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """The class of every example, int32 [n]."""
    return self.examples.labels

  def __len__(self) -> int:
    return len(self.labels)

  def batches(self, indices: np.ndarray) -> Iterator[Split]:
    """The images of int [batches, batch] indices, batch by batch."""
    # Handing over small images costs more than decoding them.
    most_at_a_time = min(16, max(1, (224 // self.image_size) ** 2))
    parts = -(-indices.shape[1] // most_at_a_time)
    decoded = grain.MapDataset.source(_DecodedInOrder(self, np.asarray(indices), parts))
    if not self.workers:
      threads = 2 * (os.cpu_count() or 1)
      options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, _BATCHES_AHEAD * parts)
      )
      yield from decoded.to_iter_dataset(options).batch(parts, batch_fn=joined)
      return
    if not flags.FLAGS.is_parsed():  # no command line was parsed, and grain's processes read absl's
      flags.FLAGS.mark_as_parsed()
    no_threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    processes = grain.MultiprocessingOptions(
      num_workers=self.workers, per_worker_buffer_size=_BATCHES_AHEAD
    )
    batches = decoded.batch(parts, batch_fn=joined).to_iter_dataset(no_threads)
    yield from batches.mp_prefetch(processes)


@dataclasses.dataclass(frozen=True)
class _DecodedInOrder:
  """The random access that grain wants: parts of batches, one after another."""

  stream: Stream
  indices: np.ndarray
  parts: int

  def __len__(self) -> int:
    return len(self.indices) * self.parts

  def __getitem__(self, index: int) -> Split:
    row, part = divmod(index, self.parts)
    indices = np.array_split(self.indices[row], self.parts)[part]
    images = np.stack([self._read(self.stream, int(index)) for index in indices])
    return Split(images, self.stream.labels[indices])

  def _read(self, stream: Stream, index: int) -> np.ndarray:
    try:
      return resize(stream.examples.image(index), stream.image_size, stream.rule)
    except OSError as error:
      message = _sentence(stream.examples, index, error)
      raise UnreadableImages([message], len(stream.labels)) from error


def joined(parts: Sequence[Split]) -> Split:
  """Splits in memory as one."""
  return Split(*map(np.concatenate, zip(*parts, strict=True)))


def in_rows(
  images: jax.Array | np.ndarray | batches.Stream,
  labels: Any,
  indices: np.ndarray,
  mesh: Mesh | None = None,
) -> Iterator[tuple[Any, Any]]:
  """The images and labels of every row of indices, split over the devices.

  Args:
    images: the whole set [n, ...], or a stream of it.
    labels: int [n]; of a stream it has its own.
    indices: int [rows, batch].
    mesh: devices that every batch is split over; None for one device.
  """
  if not isinstance(images, batches.Stream):
    for row in indices:
      batch = _take((images, labels), row)
      yield batch if mesh is None else jax.device_put(batch, meshes.split_over(mesh))
    return
  rows = slice(None) if mesh is None else meshes.local_rows(mesh, indices.shape[1])
  for local_images, local_labels in images.batches(indices[:, rows]):
    if mesh is None:
      yield local_images, local_labels
    else:
      yield meshes.from_hosts(mesh, local_images), meshes.from_hosts(mesh, local_labels)


@jax.jit
def _take(arrays: Any, row: np.ndarray) -> Any:
  """Some rows of arrays; one program compiles faster than the parts of it that JAX would call."""
  return jax.tree.map(lambda array: array[row], arrays)


def blocks(mesh: Mesh | None, stream: Any, size: int) -> Iterator[tuple[Any, Any]]:
  """All images and labels of a stream in their order, block by block.

  On a mesh every process decodes its part of a block, but all of the last block, which may not
  come out even.

  Args:
    mesh: devices that the blocks are split over, or None.
    stream: a `Stream`.
    size: number of images in a block, about.
  """
  shards = 1 if mesh is None else mesh.size
  size = -(-size // shards) * shards
  even = len(stream) // size * size
  if even:
    yield from in_rows(stream, None, np.arange(even).reshape(-1, size), mesh)
  if even < len(stream):
    yield from stream.batches(np.arange(even, len(stream))[None])
