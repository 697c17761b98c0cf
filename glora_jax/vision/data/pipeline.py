"""From examples to arrays: small splits decoded once and kept as uint8, large ones streamed.

Both give the same pixels for the same indices, so training does not depend on which is used.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from tqdm.auto import tqdm

from glora_jax import mesh as meshes
from glora_jax.checks import printable
from glora_jax.files import writing
from glora_jax.training import batches
from glora_jax.vision.data.examples import Example, Examples
from glora_jax.vision.data.image import CROP, ResizeRule, resize
from glora_jax.vision.files import Array, read_if_whole, write_arrays

log = logging.getLogger(__name__)

T = TypeVar('T')

_FEWEST_WITH_PROGRESS = 2000  # images whose decoding shows a progress bar
_MOST_TOGETHER = 32  # images that a thread decodes at a time
_THREADS = 2 * (os.cpu_count() or 1)  # that decode
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
  title: str = 'images',
) -> Split:
  """All examples, decoded in parallel and resized, in their order.

  Args:
    examples: examples to be read.
    image_size: side of the square.
    rule: see `image.resize`.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    title: title of the progress bar.

  Raises:
    UnreadableImages: there are images that cannot be decoded.
  """
  images, faults = decode(examples, image_size, rule, title)
  readable = choose_readable({title: examples}, {title: faults}, skip_broken)[title]
  return Split(images[readable], examples.labels[readable])


def decode(
  examples: Examples,
  image_size: int,
  rule: ResizeRule,
  title: str,
  *,
  share: float = CROP,
  path: str | None = None,
) -> tuple[np.ndarray, list[str]]:
  """The images of `load`, and why some of them cannot be decoded.

  Args:
    examples: see `load`.
    image_size: see `load`.
    rule: see `load`.
    title: see `load`.
    share: see `image.resize`.
    path: npz file in which the images are kept if all can be decoded; None keeps none.

  Returns:
    uint8 [image, size, size, 3]; and why each image cannot be decoded, '' for those that can.
  """
  number = len(examples.labels)
  images = np.zeros((number, image_size, image_size, 3), np.uint8)
  if path is not None:
    cached = read_if_whole(path, 'images', {'images': Array('u', images.shape)})
    if cached is not None:
      return cached['images'], [''] * number
    if os.path.exists(path):
      log.warning('%s is damaged; reading its images again.', path)

  def read(index: int) -> None:
    images[index] = resize(examples[index].image(), image_size, rule, share)

  faults = _try_all(read, number, title)
  if path is not None and not any(faults):
    with writing(path):
      os.makedirs(os.path.dirname(path), exist_ok=True)
    write_arrays(path, {'images': images}, 'images')
  return images, faults


def look_at(examples: Examples) -> list[str]:
  """Why each example cannot be decoded, as `decode` returns it, in less time."""
  return _try_all(
    lambda index: examples[index].image(draft=True),
    len(examples.labels),
    'opening every image once',
  )


def _try_all(read: Callable[[int], object], number: int, title: str) -> list[str]:
  """Why each of the examples at 0 to number - 1 cannot be read; '' for those that can."""

  def attempt(index: int) -> str:
    try:
      read(index)
    except OSError as error:
      return str(error)
    return ''

  return in_parallel(attempt, number, title)


def choose_readable(
  splits: Mapping[str, Examples], faults: Mapping[str, Sequence[str]], skip_broken: bool
) -> dict[str, np.ndarray]:
  """Indices of the images that can be decoded, by split; a warning names the others.

  Args:
    splits: the examples of each split.
    faults: why each cannot be decoded, by split; see `decode` and `look_at`.
    skip_broken: whether there may be others.

  Raises:
    UnreadableImages: there are others and may be none, or in a split nothing else.
  """
  number = sum(map(len, faults.values()))
  broken = {
    split: [_sentence(splits[split][n], fault) for n, fault in enumerate(of_split) if fault]
    for split, of_split in faults.items()
  }
  sentences = [sentence for of_split in broken.values() for sentence in of_split]
  if sentences and not skip_broken:
    raise UnreadableImages(sentences, number)
  for split, of_split in broken.items():
    if len(of_split) == len(faults[split]):
      raise UnreadableImages(of_split, len(of_split))
  if sentences:
    log.warning(
      '%d of %d images cannot be decoded and are left out: %s',
      *(len(sentences), number, '; '.join(sentences[:_NAMED_IN_WARNING])),
    )
  return {
    split: np.flatnonzero([not fault for fault in of_split]) for split, of_split in faults.items()
  }


def _sentence(example: Example, reason: object) -> str:
  return f'{printable(example.name)}: {reason}'


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


def in_parallel(function: Callable[[int], T], number: int, title: str) -> list[T]:
  """The results of a function for 0 to number - 1, in their order, computed by threads.

  Args:
    function: function of an index.
    number: number of indices.
    title: title of the progress bar.
  """
  groups = _Groups(function, number, max(1, min(_MOST_TOGETHER, number // (4 * _THREADS))))
  is_short = number < _FEWEST_WITH_PROGRESS
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    results = itertools.chain.from_iterable(pool.map(groups.__getitem__, range(len(groups))))
    return list(tqdm(results, title, total=number, unit='image', disable=is_short))


@dataclasses.dataclass(frozen=True)
class _Groups:
  """The results of a function for 0 to number - 1, some at a time.

  To hand over each of them alone would cost more than decoding a small image. Has what grain needs
  for random access.
  """

  function: Callable[[int], Any]
  number: int
  together: int

  def __len__(self) -> int:
    return -(-self.number // self.together)

  def __getitem__(self, index: int) -> list[Any]:
    start = index * self.together
    return [self.function(n) for n in range(start, min(start + self.together, self.number))]


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
    indices = np.asarray(indices)
    images = self._in_order(indices)
    for row in indices:
      yield Split(np.stack(list(itertools.islice(images, len(row)))), self.labels[row])

  def _in_order(self, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The images of int [batches, batch] indices, one by one, a few batches decoded ahead."""
    import grain  # loads for 0.4 seconds, which `predict`, without a stream, need not wait for

    read = functools.partial(self._read, indices.ravel())
    together = min(16, max(1, (224 // self.image_size) ** 2))
    ahead = _BATCHES_AHEAD * indices.shape[1] // together
    groups = grain.MapDataset.source(_Groups(read, indices.size, together))
    if not self.workers:
      held = max(_THREADS, ahead)
      threads = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=held)
      return itertools.chain.from_iterable(groups.to_iter_dataset(threads))
    if not flags.FLAGS.is_parsed():  # no command line was parsed, and grain's processes read absl's
      flags.FLAGS.mark_as_parsed()
    no_threads = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    held = max(1, ahead // self.workers)
    processes = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=held)
    in_processes = groups.to_iter_dataset(no_threads).mp_prefetch(processes)
    return itertools.chain.from_iterable(in_processes)

  def _read(self, indices: np.ndarray, number: int) -> np.ndarray:
    example = self.examples[int(indices[number])]
    try:
      return resize(example.image(), self.image_size, self.rule)
    except OSError as error:
      raise UnreadableImages([_sentence(example, error)], len(self.labels)) from error


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
