"""Every image of every split of a task opened once, before anything is computed with them.

What could be decoded is remembered in a file by the image's path, size and modification time, so
that a run that goes on opens none again. What was left out is remembered by its position: a run
that has begun leaves out the same images, whatever has become of them since.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

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
from glora_jax.records import Array, mismatch_of_arrays, read_if_whole

KIND = 'checked images'  # of the file that remembers
_ADVICE = 'Put them back as they were, or take a new workdir.'


class _Remembered(NamedTuple):
  """What the file says.

  Attributes:
    readable: digests of images that can be decoded, and of their states, uint64 [n].
    is_left_out: which images were left out, bool [image], of all splits in their order; None where
      there is no file.
  """

  readable: np.ndarray
  is_left_out: np.ndarray | None


def with_readable_images(
  task: Task,
  record: str | None = None,
  *,
  skip_broken: bool = False,
  write: bool = True,
  has_begun: bool = False,
) -> Task:
  """Opens every image of every split once, in parallel.

  Args:
    task: the task.
    record: path of the npz file that remembers which images can be decoded; None for none.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    write: whether the file is written, and not only read.
    has_begun: whether something was computed with the images already, so that the same must be left
      out.

  Returns:
    The task, its splits opened, and of images that can be decoded alone. A warning names files that
    two splits share, where any image was not remembered.

  Raises:
    UnreadableImages: there are images that cannot be decoded, or in a split no others.
    ValueError: what is left lacks a class of train, or cannot measure anything. Or a run has begun
      with images that cannot be decoded any more.
  """
  splits = {split: task.open(split) for split in task.splits}
  everything = Joined(list(splits.values()))
  keys = _keys(everything)
  remembered = _read(record) if record else _Remembered(np.zeros(0, np.uint64), None)
  if not has_begun:
    remembered = remembered._replace(is_left_out=None)
  messages, num_opened = _look_at(task.name, everything, keys, remembered)
  readable = np.array([message is None for message in messages])
  arrays = {
    'readable': np.unique(keys[readable & (keys != _NO_KEY)]),
    'is_left_out': ~readable,
  }
  # Where the task is refused, the workdir stays as it was, unless opening so many took long.
  took_long = num_opened >= FEWEST_WITH_PROGRESS
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
  if record and write and num_opened and not took_long:
    write_arrays(record, arrays, KIND)
  if write and num_opened:
    warn_of_copies(task.name, kept)
  opened = {split: OpenedSplit(examples) for split, examples in kept.items()}
  note = f'{len(broken)} of {len(messages)} images cannot be decoded and are left out.'
  notes = (*task.notes, note) if broken else task.notes
  return dataclasses.replace(task, splits=opened, notes=notes)


_NO_KEY = np.uint64(0)  # of an image that is not there


def _keys(examples: Examples) -> np.ndarray:
  """Digests of what the images are and in which state, uint64 [n]."""
  keys = np.zeros(len(examples.labels), np.uint64)
  for index in range(len(keys)):
    with contextlib.suppress(OSError):
      state = examples.state(index).encode(errors='surrogateescape')
      keys[index] = int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), 'big')
  return keys


def _look_at(
  name: str, examples: Examples, keys: np.ndarray, remembered: _Remembered
) -> tuple[list[str | None], int]:
  """What is wrong with each image, None where it can be decoded; and how many were opened for it.

  Raises:
    ValueError: a run has begun with other images, or with some that cannot be decoded now.
  """
  number = len(keys)
  has_begun = remembered.is_left_out is not None
  is_left_out = remembered.is_left_out if has_begun else np.zeros(number, bool)
  if len(is_left_out) != number:
    raise ValueError(
      f'{name}: this run has begun with {len(is_left_out)} images, and there are {number} now. '
      f'{_ADVICE}'
    )
  messages: list[str | None] = [None] * number
  for index in np.flatnonzero(is_left_out):
    messages[index] = f'{printable(examples.name(int(index)))}: left out since the run began'
  is_known = np.isin(keys, remembered.readable) & (keys != _NO_KEY)
  unknown = np.flatnonzero(~is_left_out & ~is_known)
  found = _check(examples, unknown)
  for index, message in zip(unknown, found, strict=True):
    messages[index] = message
  if has_begun and any(found):
    raise ValueError(
      f'{name}: this run has begun with images that cannot be decoded now: '
      f'{listed(filter(None, found))}. {_ADVICE}'
    )
  return messages, len(unknown)


def _read(path: str) -> _Remembered:
  """What a file says; nothing where it is missing or damaged.

  Raises:
    LaterVersionError: a later version wrote it.
  """
  arrays = read_if_whole(path, KIND) or {}
  expected = {'readable': Array('u', ('known',)), 'is_left_out': Array('b', ('image',))}
  if mismatch_of_arrays(arrays, expected) is not None:
    return _Remembered(np.zeros(0, np.uint64), None)
  return _Remembered(**arrays)


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
