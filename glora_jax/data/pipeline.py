"""From examples to arrays: small splits decoded once and kept as uint8, large ones streamed batch by batch.

Both give the same pixels for the same indices, so what is trained does not depend on which of the two it was.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags
from tqdm.auto import tqdm

from glora_jax.data.examples import Examples, Part
from glora_jax.data.image import resize
from glora_jax.files import read_arrays, write_arrays

log = logging.getLogger(__name__)


class Split(NamedTuple):
  """images uint8 [n, size, size, 3], labels int32 [n]."""

  images: np.ndarray
  labels: np.ndarray


class UnreadableImages(OSError):
  """Images that cannot be decoded: how many, and which first."""

  def __init__(self, messages: list[str], total: int):
    shown = '; '.join(messages[:3]) + ('; and more' if len(messages) > 3 else '')
    super().__init__(
      f'{len(messages)} of {total} images cannot be decoded: {shown}. Replace them, or set data.skip_broken=True to leave '
      'them out.'
    )


def load(
  examples: Examples,
  image_size: int,
  *,
  rule: str = 'squash',
  skip_broken: bool = False,
  cache: str | None = None,
  title: str = 'images',
) -> Split:
  """All examples, decoded in parallel and resized, in their order.

  Args:
    examples: to be read.
    image_size: side of the square.
    rule: see `image.resize`.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    cache: folder in which the arrays are kept, keyed by the examples' identity, size and rule; None keeps none. A writer that is
      killed leaves no file that looks whole.
    title: of the progress bar.

  Raises:
    UnreadableImages: some cannot be decoded.
  """
  path = None
  if cache is not None:
    key = hashlib.sha256(
      f'{examples.identity}|{image_size}|{rule}|{skip_broken}|1'.encode()
    ).hexdigest()[:32]
    path = os.path.join(os.path.expanduser(cache), f'{key}.npz')
    if os.path.exists(path):
      with contextlib.suppress(ValueError):
        return Split(**read_arrays(path))
      log.warning('%s is damaged; its images are read again.', path)
  labels = examples.labels
  images, broken = np.empty((len(labels), image_size, image_size, 3), np.uint8), {}

  def read(index):
    try:
      images[index] = resize(examples.image(index), image_size, rule)
    except OSError as error:
      broken[index] = f'{examples.name(index)}: {error}'

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    list(
      tqdm(
        pool.map(read, range(len(labels))),
        total=len(labels),
        desc=title,
        unit='image',
        disable=len(labels) < 2000,
      )
    )
  if broken:
    messages = [broken[index] for index in sorted(broken)]
    if not skip_broken or len(broken) == len(labels):
      raise UnreadableImages(messages, len(labels))
    log.warning(
      '%d of %d images cannot be decoded and are left out: %s',
      len(broken),
      len(labels),
      '; '.join(messages[:10]),
    )
    kept = np.setdiff1d(np.arange(len(labels)), list(broken))
    images, labels = images[kept], labels[kept]
  if path is not None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_arrays(path, {'images': images, 'labels': labels})
  return Split(images, labels)


class _Decoded:
  """The random access that grain wants: index -> (image, label)."""

  def __init__(self, examples, labels, image_size, rule):
    self.examples, self.labels, self.image_size, self.rule = examples, labels, image_size, rule

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, index):
    try:
      return resize(self.examples.image(int(index)), self.image_size, self.rule), self.labels[index]
    except OSError as error:
      raise UnreadableImages(
        [f'{self.examples.name(int(index))}: {error}'], len(self.labels)
      ) from error


class Stream:
  """Examples that are decoded when they are needed, by threads or worker processes of grain, a few batches ahead.

  Takes the place of a resident `Split` in `training.fit` and in scoring: `images` there is a `Stream`, `labels` its labels.

  Attributes:
    labels: int32 [n].
  """

  def __init__(
    self,
    examples: Examples,
    image_size: int,
    *,
    rule: str = 'squash',
    skip_broken: bool = False,
    workers: int = 0,
    prefetch: int = 4,
    title: str = 'images',
  ):
    """See `load` for the arguments it has, too.

    Args:
      workers: processes that decode; 0 decodes in threads of this one, which is enough where Pillow releases the lock.
      prefetch: batches that are held ready.
    """
    self.labels = examples.labels
    if skip_broken:  # found out once, before anything depends on the numbering
      examples, self.labels = _without_broken(examples, self.labels, title)
    self._source = _Decoded(examples, self.labels, image_size, rule)
    self.workers, self.prefetch = workers, prefetch

  def __len__(self) -> int:
    return len(self.labels)

  def batches(self, indices: np.ndarray) -> Iterator[Split]:
    """The images of int [batches, batch] indices, batch by batch; where it starts is where the indices start."""
    batch = indices.shape[1]
    flat = np.asarray(indices).reshape(-1)
    dataset = grain.MapDataset.source(_Ordered(self._source, flat))
    if self.workers:
      if (
        not flags.FLAGS.is_parsed()
      ):  # grain's processes read flags, which only a command line has parsed
        flags.FLAGS.mark_as_parsed()
      iterable = dataset.batch(batch, drop_remainder=True).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
      )
      iterable = iterable.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=self.prefetch)
      )
    else:
      threads = 2 * (os.cpu_count() or 1)
      options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(threads, self.prefetch * batch)
      )
      iterable = dataset.to_iter_dataset(options).batch(batch, drop_remainder=True)
    for images, labels in iterable:
      yield Split(images, labels)

  def blocks(self, size: int) -> Iterator[Split]:
    """All images in their order, `size` at a time; the last block is what is left."""
    whole = len(self) // size * size
    if whole:
      yield from self.batches(np.arange(whole).reshape(-1, size))
    if whole < len(self):
      yield from self.batches(np.arange(whole, len(self))[None])


class _Ordered:
  def __init__(self, source, order):
    self.source, self.order = source, order

  def __len__(self):
    return len(self.order)

  def __getitem__(self, index):
    return self.source[self.order[index]]


def _without_broken(examples, labels, title):
  def check(index):
    try:
      examples.image(index)
    except OSError as error:
      return f'{examples.name(index)}: {error}'
    return None

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = list(
      tqdm(
        pool.map(check, range(len(labels))),
        total=len(labels),
        desc=f'checking {title}',
        unit='image',
      )
    )
  kept = np.array([index for index, message in enumerate(found) if message is None])
  if len(kept) == len(labels):
    return examples, labels
  messages = [message for message in found if message is not None]
  if not len(kept):
    raise UnreadableImages(messages, len(labels))
  log.warning(
    '%d of %d images cannot be decoded and are left out: %s',
    len(messages),
    len(labels),
    '; '.join(messages[:10]),
  )
  return Part(examples, kept), labels[kept]
