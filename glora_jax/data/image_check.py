"""Every image of every split of a task opened once, before anything is computed with them.

What could be decoded is remembered in a file by the image's path, size and modification time, so
that a run that goes on opens none again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from glora_jax.data.copies import warn_of_copies
from glora_jax.data.examples import Examples, Joined, OpenedSplit, Part
from glora_jax.data.pipeline import (
  FEWEST_WITH_PROGRESS,
  UnreadableImages,
  in_parallel,
  without_broken,
)
from glora_jax.data.task import Task, require_measurable
from glora_jax.files import write_arrays
from glora_jax.limits import listed, printable
from glora_jax.records import read_if_whole

KIND = 'checked images'  # of the file that remembers


def with_readable_images(
  task: Task, record: str | None = None, *, skip_broken: bool = False, write: bool = True
) -> Task:
  """Opens every image of every split once, in parallel.

  Args:
    task: the task.
    record: path of the npz file that remembers which images can be decoded; None for none.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    write: whether the file is written, and not only read.

  Returns:
    The task, its splits opened, and of images that can be decoded alone. A warning names files that
    two splits share, where any image was not remembered.

  Raises:
    UnreadableImages: there are images that cannot be decoded, or in a split no others.
    ValueError: what is left lacks a class of train, or cannot measure anything.
  """
  splits = {split: task.open(split) for split in task.splits}
  everything = Joined(list(splits.values()))
  keys = _keys(everything)
  remembered = _read(record) if record else np.zeros(0, np.uint64)
  unknown = np.flatnonzero(~np.isin(keys, remembered) | (keys == _NO_KEY))
  messages: list[str | None] = [None] * len(keys)
  for index, message in zip(unknown, _check(everything, unknown), strict=True):
    messages[index] = message
  readable = np.array([message is None for message in messages])
  arrays = {'readable': np.unique(keys[readable & (keys != _NO_KEY)])}
  # Where the task is refused, the workdir stays as it was, unless opening so many took long.
  took_long = len(unknown) >= FEWEST_WITH_PROGRESS
  if record and write and took_long:
    write_arrays(record, arrays, KIND)
  broken = [message for message in messages if message is not None]
  if broken and not skip_broken:
    raise UnreadableImages(broken, len(messages))
  ends = np.cumsum([len(examples.labels) for examples in splits.values()])
  kept = {
    split: _readable_part(examples, messages[end - len(examples.labels) : end])
    for (split, examples), end in zip(splits.items(), ends, strict=True)
  }
  labels = {split: examples.labels for split, examples in kept.items()}
  lost = np.setdiff1d(splits['train'].labels, labels['train'])
  if len(lost):
    names = listed(task.classes[label] for label in lost)
    raise ValueError(
      f'{task.name}: no image of {names} in train can be decoded; replace them, or remove these '
      'classes.'
    )
  require_measurable(task.name, task.classes, labels)
  if record and write and len(unknown) and not took_long:
    write_arrays(record, arrays, KIND)
  if write and len(unknown):
    warn_of_copies(task.name, kept)
  opened = {split: OpenedSplit(examples) for split, examples in kept.items()}
  return dataclasses.replace(task, splits=opened)


_NO_KEY = np.uint64(0)  # of an image that is not there


def _keys(examples: Examples) -> np.ndarray:
  """Digests of what the images are and in which state, uint64 [n]."""
  keys = np.zeros(len(examples.labels), np.uint64)
  for index in range(len(keys)):
    with contextlib.suppress(OSError):
      state = examples.state(index).encode(errors='surrogateescape')
      keys[index] = int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), 'big')
  return keys


def _read(path: str) -> np.ndarray:
  """The digests in a file; none where it is missing or damaged.

  Raises:
    LaterVersionError: a later version wrote it.
  """
  digests = (read_if_whole(path, KIND) or {}).get('readable')
  if digests is not None and digests.dtype == np.uint64 and digests.ndim == 1:
    return digests
  return np.zeros(0, np.uint64)


def _check(examples: Examples, indices: np.ndarray) -> list[str | None]:
  """For each index what is wrong with the image; None where it can be decoded."""

  def check(position: int) -> str | None:
    index = int(indices[position])
    try:
      examples.check(index)
    except OSError as error:
      return f'{printable(examples.name(index))}: {error}'
    return None

  return in_parallel(check, len(indices), 'opening every image once')


def _readable_part(examples: Examples, messages: Sequence[str | None]) -> Examples:
  if not any(messages):
    return examples
  return Part(examples, without_broken(messages))
