"""The images of a task as arrays: small splits decoded once and kept as uint8, large ones streamed.

Both give the same pixels for the same indices, so training does not depend on which is used. Before
anything is computed, `open_images` reads every image once. grain does all decoding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from glora_jax import mesh as meshes
from glora_jax.checks import listed, printable
from glora_jax.progress import progress_bar
from glora_jax.training import batches
from glora_jax.vision.data import record
from glora_jax.vision.data.image import resize
from glora_jax.vision.data.record import Row
from glora_jax.vision.data.task import Example, Examples, Part, Task, require_measurable
from glora_jax.vision.files import read_array, write_array

log = logging.getLogger(__name__)

_FEWEST_WITH_PROGRESS = 2000  # images whose decoding shows a progress bar
_MOST_TOGETHER = 32  # images that a thread decodes at a time
_THREADS = 2 * (os.cpu_count() or 1)  # that decode
_BATCHES_AHEAD = 4  # of a stream that are held ready
_MOST_NAMED = 10  # broken images


class UnreadableImages(OSError):
  """Images that cannot be decoded.

  Args:
    messages: a sentence on each of them.
    total: number of images that were read.
  """

  def __init__(self, messages: Sequence[str], total: int):
    # If all are broken, they cannot be left out.
    advice = (
      ', or leave them out with --config.data.skip_broken=True' if len(messages) < total else ''
    )
    super().__init__(f'{_summary(messages, total)}. Replace them{advice}.')
    self.messages, self.total = messages, total

  def __reduce__(self):
    # So that a process that decodes can return it.
    return UnreadableImages, (self.messages, self.total)


class Split(NamedTuple):
  """The images of a split with their labels.

  Attributes:
    images: uint8 [n, size, size, 3], or a `Stream` if they are not held in memory.
    labels: int32 [n].
  """

  images: Any
  labels: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """The images of a task at the size of a model.

  Attributes:
    task: the task; from `open_images` on without the images that cannot be decoded.
    image_size: side of the square that images are resized to.
    share: see `image.resize`.
    workers: see `Stream`.
    resident: the splits that are kept on the devices; all others are streamed.
    identities: a text for each split that changes when its images do, wherever they are.
  """

  task: Task
  image_size: int
  _: dataclasses.KW_ONLY
  share: float | None = None
  workers: int = 0
  resident: Mapping[str, Split] = dataclasses.field(default_factory=dict)
  identities: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def split(self, name: str) -> Split:
    """A split, or several joined with '+'."""
    if name in self.resident:
      return self.resident[name]
    stream = Stream(self.task.open(name), self.image_size, share=self.share, workers=self.workers)
    return Split(stream, stream.labels)

  def pixels(self, name: str, indices: np.ndarray) -> np.ndarray:
    """The images of a split at indices [image], uint8 [image, size, size, 3].

    One process may call it alone: resident images are replicated.
    """
    images = self.split(name).images
    if isinstance(images, Stream):
      return next(images.batches(indices[None])).images
    return np.asarray(images.addressable_data(0)[indices])


def choose_resident(images: Images, trained_on: Sequence[str], room: int) -> list[str]:
  """The splits that stay on the devices: as many as fit together, those with training images first.

  Args:
    images: the images.
    trained_on: the splits that are trained on, perhaps joined with '+'.
    room: bytes of a device.
  """
  resident = []
  for split in dict.fromkeys((*trained_on, *images.task.splits)):
    size = len(images.task.open(split).labels) * images.image_size**2 * 3
    if size <= room:
      resident.append(split)
      room -= size
  return resident


def open_images(
  images: Images,
  resident: Collection[str] = (),
  *,
  skip_broken: bool = False,
  cache: str | None = None,
  folder: str | None = None,
  is_tested: bool = False,
  mesh: Mesh | None = None,
) -> Images:
  """Reads every image of a task once, and keeps the splits that stay in memory.

  The digest of every file shows whether it is that of an earlier start, and finds it in the cache.
  Resident images are decoded. Streamed ones are only opened, which is faster, and not even that if
  an earlier start has opened them.

  Args:
    images: the images.
    resident: the splits that stay on the devices, perhaps joined with '+'.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    cache: folder in which decoded splits are kept, by their images and how these become square;
      None keeps none.
    folder: folder with the record of all images; None for none.
    is_tested: whether the images were tested on, so that they must match the record.
    mesh: the devices; None for one.

  Returns:
    The images that can be decoded. Warnings name the others, images that have changed, and files
    that two splits share.

  Raises:
    UnreadableImages: images cannot be decoded, and may not be left out or are all of a split.
    ValueError: the remaining images lack a class of train, or cannot measure anything; or images
      have changed after a test.
  """
  if cache is not None:
    _make_folder(cache)
  task = images.task
  splits = {split: task.open(split) for split in task.splits}
  in_memory = dict.fromkeys(part for split in resident for part in split.split('+'))
  # Streamed images are opened by one process, and the others read its record.
  is_streamed = splits.keys() != in_memory.keys()
  with meshes.primary_first('images') if is_streamed else contextlib.nullcontext():
    old = record.read(folder)
    rows = {
      split: _describe(task, split, old, is_opened=split not in in_memory) for split in splits
    }
    _compare(task.name, old, _all(rows), is_tested)
    decoded = {}
    for split in in_memory:
      path = cache and _path_in(cache, rows[split], images)
      decoded[split], faults = decode(
        splits[split], images.image_size, split, share=images.share, path=path
      )
      rows[split] = [
        row._replace(fault=fault) for row, fault in zip(rows[split], faults, strict=True)
      ]
    faults = {split: [row.fault for row in of_split] for split, of_split in rows.items()}
    for split, readable in _readable(splits, faults, skip_broken).items():
      if any(faults[split]):
        splits[split] = Part(splits[split], readable)
        if split in decoded:
          decoded[split] = decoded[split][readable]
    _require_enough(task, splits)
    everything = _all(rows)
    copies = record.tell_copies(everything)
    if everything != old:
      for sentence in copies:
        log.warning('%s: %s', task.name, sentence)
      if folder is not None and meshes.primary():
        record.write(folder, everything)
  if number := sum(bool(row.fault) for row in everything):
    note = f'{number} of {len(everything)} images cannot be decoded and are left out.'
    task = dataclasses.replace(task, notes=(*task.notes, note))
  task = dataclasses.replace(task, splits=splits, notes=(*task.notes, *copies))
  held = {split: _hold(decoded, task, split, mesh) for split in resident}
  identities = {split: record.identify(of_split) for split, of_split in rows.items()}
  return dataclasses.replace(images, task=task, resident=held, identities=identities)


def differences(task: Task, folder: str) -> str:
  """How the images of a task differ from those that a run recorded in its workdir, in words.

  Nothing is written. Empty if they are the same, or nothing is recorded.
  """
  old = record.read(folder)
  return record.compare(old, _all({split: _describe(task, split, old) for split in task.splits}))


def _describe(task: Task, split: str, old: Sequence[Row], is_opened: bool = False) -> list[Row]:
  """The lines of a split; see `record.describe`."""
  before = {row.image: row for row in old if row.split == split}
  examples = task.open(split)
  names = [task.classes[label] for label in examples.labels]

  def describe(index: int) -> Row:
    return record.describe(split, names[index], examples[index], before, is_opened)

  return in_parallel(describe, len(names), f'reading {split}')


def _all(rows: Mapping[str, list[Row]]) -> list[Row]:
  return [row for of_split in rows.values() for row in of_split]


def _path_in(cache: str, rows: Sequence[Row], images: Images) -> str:
  """The file of a decoded split."""
  content = f'{record.identify(rows)}|{images.image_size}|{images.share}'
  name = hashlib.sha256(content.encode()).hexdigest()[:32]
  return os.path.join(os.path.expanduser(cache), f'{name}.npz')


def _compare(name: str, old: Sequence[Row], new: Sequence[Row], is_tested: bool) -> None:
  """Warns if images have changed since the last start; raises ValueError after a test."""
  difference = record.compare(old, new)
  if difference and is_tested:
    raise ValueError(
      f'{name}: the images are not those of this run, whose test images were read ({difference}). '
      'Restore them, or choose another --workdir.'
    )
  if difference:
    log.warning('%s: the images are not those of the last start (%s).', name, difference)


def _hold(decoded: Mapping[str, np.ndarray], task: Task, split: str, mesh: Mesh | None) -> Split:
  """A split on the devices, or several joined with '+'."""
  parts = [decoded[part] for part in split.split('+')]
  pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
  return Split(*meshes.hold(mesh, (pixels, task.open(split).labels)))


def _require_enough(task: Task, left: Mapping[str, Examples]) -> None:
  """Raises ValueError if the remaining images lack a class or cannot measure anything."""
  labels = {split: examples.labels for split, examples in left.items()}
  lost = np.setdiff1d(task.open('train').labels, labels['train'])
  if len(lost):
    names = listed(task.classes[label] for label in lost)
    raise ValueError(
      f'{task.name}: no image of {names} in train can be decoded; replace them, or remove these '
      'classes.'
    )
  require_measurable(task.name, task.classes, labels)


def load(
  examples: Examples,
  image_size: int,
  *,
  share: float | None = None,
  skip_broken: bool = False,
) -> Split:
  """All examples, decoded in parallel and resized, in their order.

  Args:
    examples: examples to be read.
    image_size: side of the square.
    share: see `image.resize`.
    skip_broken: leave out, with a warning, images that cannot be decoded.

  Raises:
    UnreadableImages: images cannot be decoded.
  """
  images, faults = decode(examples, image_size, 'images', share=share)
  readable = _readable({'': examples}, {'': faults}, skip_broken)['']
  return Split(images[readable], examples.labels[readable])


def decode(
  examples: Examples,
  image_size: int,
  title: str,
  *,
  share: float | None = None,
  path: str | None = None,
) -> tuple[np.ndarray, list[str]]:
  """The images of `load`, and the reasons why some cannot be decoded.

  Args:
    examples: see `load`.
    image_size: see `load`.
    title: title of the progress bar.
    share: see `load`.
    path: npz file in which the images are kept if all can be decoded; None keeps none.

  Returns:
    uint8 [image, size, size, 3]; and why each image cannot be decoded, '' for those that can.
  """
  number = len(examples.labels)
  images = np.zeros((number, image_size, image_size, 3), np.uint8)
  if path is not None:
    cached = read_array(path, images.shape, images.dtype)
    if cached is not None:
      return cached, [''] * number
    if os.path.exists(path):
      log.warning('%s is damaged; reading its images again.', path)

  def attempt(index: int) -> str:
    try:
      images[index] = resize(examples[index].image(), image_size, share)
    except OSError as error:
      return str(error)
    return ''

  faults = in_parallel(attempt, number, title)
  if path is not None and not any(faults):
    write_array(path, images)
  return images, faults


def _readable(
  splits: Mapping[str, Examples], faults: Mapping[str, Sequence[str]], skip_broken: bool
) -> dict[str, np.ndarray]:
  """The indices of the images that can be decoded, by split; a warning or an error names the rest.

  Args:
    splits: the examples of each split.
    faults: why each cannot be decoded, by split; see `decode`.
    skip_broken: whether some images may be left out.

  Raises:
    UnreadableImages: images may not be left out, or none of a split can be decoded.
  """
  messages: list[str] = []
  for split, of_split in faults.items():
    broken = [_sentence(splits[split][n], fault) for n, fault in enumerate(of_split) if fault]
    if skip_broken and len(broken) == len(of_split):
      raise UnreadableImages(broken, len(broken))
    messages += broken
  number = sum(map(len, faults.values()))
  if messages and not skip_broken:
    raise UnreadableImages(messages, number)
  if messages:
    log.warning('Left out: %s.', _summary(messages, number))
  return {
    split: np.flatnonzero([not fault for fault in of_split]) for split, of_split in faults.items()
  }


def _summary(messages: Sequence[str], total: int) -> str:
  more = '; and more' if len(messages) > _MOST_NAMED else ''
  named = '; '.join(messages[:_MOST_NAMED])
  return f'{len(messages)} of {total} images cannot be decoded: {named}{more}'


def _sentence(example: Example, reason: object) -> str:
  return f'{printable(example.key)}: {reason}'


def _make_folder(cache: str) -> None:
  """Makes a folder for decoded images.

  Raises:
    OSError: it cannot be written.
  """
  folder = os.path.expanduser(cache)
  with contextlib.suppress(OSError):
    os.makedirs(folder, exist_ok=True)
  if not os.access(os.path.join(folder, os.curdir), os.W_OK | os.X_OK):
    raise OSError(
      f'data.cache={cache!r} is not a writable folder; use another one, or None for no cache.'
    )


def in_parallel(function: Callable[[int], Any], number: int, title: str) -> list[Any]:
  """The results of a function for 0 to number - 1, in their order.

  Args:
    function: function of an index.
    number: number of indices.
    title: title of the progress bar.
  """
  together = max(1, min(_MOST_TOGETHER, number // (4 * _THREADS)))
  results = _in_order(function, number, together)
  is_long = number >= _FEWEST_WITH_PROGRESS
  return list(progress_bar(results, title, total=number, unit='image', wanted=is_long))


def _in_order(
  function: Callable[[int], Any], number: int, together: int, ahead: int = 0, workers: int = 0
) -> Iterator[Any]:
  """The results of a function for 0 to number - 1, in their order, computed by grain.

  Args:
    function: function of an index.
    number: number of indices.
    together: results that are transferred at a time; transferring each alone would be slower than
      decoding a small image.
    ahead: results that are held ready; at least a few for every thread or process.
    workers: processes that compute; 0 for threads.
  """
  import grain  # takes 0.4 seconds, which commands that decode nothing save

  groups = grain.MapDataset.range(number).map(function).batch(together, batch_fn=list)
  held = ahead // together
  threads = grain.ReadOptions(
    num_threads=0 if workers else _THREADS,
    prefetch_buffer_size=0 if workers else max(_THREADS, held),
  )
  results = groups.to_iter_dataset(threads)
  if workers:
    if not flags.FLAGS.is_parsed():  # without a parsed command line, which grain's processes read
      flags.FLAGS.mark_as_parsed()
    processes = grain.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=max(1, held // workers)
    )
    results = results.mp_prefetch(processes)
  return itertools.chain.from_iterable(results)


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
  """Examples that are decoded when they are needed, a few batches ahead.

  Threads or worker processes of grain decode them. It replaces a resident `Split` in `fit` and in
  scoring.

  Attributes:
    examples: see `load`.
    image_size: see `load`.
    share: see `load`.
    workers: processes that decode; 0 decodes in threads of this process, which is enough if Pillow
      releases the lock.
  """

  examples: Examples
  image_size: int
  _: dataclasses.KW_ONLY
  share: float | None = None
  workers: int = 0

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """The class of every example, int32 [n]."""
    return self.examples.labels

  def __len__(self) -> int:
    return len(self.labels)

  def batches(self, indices: np.ndarray) -> Iterator[Split]:
    """The images of int [batches, batch] indices, batch by batch."""
    read = functools.partial(self._read, indices.ravel())
    together = min(16, max(1, (224 // self.image_size) ** 2))
    ahead = _BATCHES_AHEAD * indices.shape[1]
    images = _in_order(read, indices.size, together, ahead, self.workers)
    for row in indices:
      yield Split(np.stack(list(itertools.islice(images, len(row)))), self.labels[row])

  def _read(self, indices: np.ndarray, number: int) -> np.ndarray:
    example = self.examples[int(indices[number])]
    try:
      return resize(example.image(), self.image_size, self.share)
    except OSError as error:
      raise UnreadableImages([_sentence(example, error)], len(self.labels)) from error


def in_rows(split: Split, indices: np.ndarray, mesh: Mesh | None = None) -> Iterator[Split]:
  """The images and labels of every row of indices, split over the devices.

  Args:
    split: the split, resident or streamed.
    indices: int [rows, batch].
    mesh: devices that every batch is split over; None for one device.
  """
  if not isinstance(split.images, batches.Stream):
    for row in indices:
      batch = _take(split, row)
      yield batch if mesh is None else jax.device_put(batch, meshes.split_over(mesh))
    return
  rows = slice(None) if mesh is None else meshes.local_rows(mesh, indices.shape[1])
  for batch in split.images.batches(indices[:, rows]):
    yield Split(*(batch if mesh is None else (meshes.from_hosts(mesh, x) for x in batch)))


@jax.jit
def _take(arrays: Any, row: np.ndarray) -> Any:
  """Some rows of arrays, as one program, which compiles faster than one for each operation."""
  return jax.tree.map(lambda array: array[row], arrays)


def equal_batches(split: Split, size: int, mesh: Mesh | None = None) -> Iterator[Split]:
  """All images and labels of a split in their order, for one program.

  Args:
    split: the split.
    size: number of images in every batch; the last batch is filled up with the first images.
    mesh: see `in_rows`.
  """
  number = len(split.labels)
  rows = np.resize(np.arange(number, dtype=np.int32), (-(-number // size), size))
  return in_rows(split, rows, mesh)


def blocks(split: Split, size: int, mesh: Mesh | None = None) -> Iterator[Split]:
  """All images and labels of a split in their order: at once if it is resident, else in blocks.

  On a mesh every process decodes its part of a block. Each decodes all of the last block, which may
  not divide evenly.

  Args:
    split: the split.
    size: number of images in a block, about.
    mesh: devices that the blocks are split over; None for one device.
  """
  stream = split.images
  if not isinstance(stream, batches.Stream):
    yield split
    return
  shards = 1 if mesh is None else mesh.size
  size = -(-size // shards) * shards
  even = len(stream) // size * size
  if even:
    yield from in_rows(split, np.arange(even).reshape(-1, size), mesh)
  if even < len(stream):
    yield from in_rows(split, np.arange(even, len(stream))[None])
