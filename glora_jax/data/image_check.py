"""Every image of every split of a task opened once, before anything is computed with them.

What could be decoded is remembered in a file by the image's path, size and modification time, so
that a run that goes on opens none again. What was left out is remembered by its position: a run
that has begun leaves out the same images, whatever has become of them since.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib

import numpy as np

from glora_jax.data.copies import warn_of_copies
from glora_jax.data.examples import Examples, Joined, OpenedSplit, Part, state_of
from glora_jax.data.pipeline import (
  FEWEST_WITH_PROGRESS,
  UnreadableImages,
  undecodable,
  without_broken,
)
from glora_jax.data.task import Task, require_measurable
from glora_jax.files import write_arrays
from glora_jax.limits import listed, printable
from glora_jax.records import Array, read_if_whole

KIND = 'checked images'  # of the file that remembers
_ADVICE = 'Put them back as they were, or take a new workdir.'


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
  readable, left_out = _read(record) if record else (keys[:0], None)
  messages, num_opened = _look_at(
    task.name, everything, keys, readable, left_out if has_begun else None
  )

  def remember() -> None:
    if record and write:
      is_readable = np.array([message is None for message in messages])
      found = np.unique(keys[is_readable & (keys != _NO_KEY)])
      write_arrays(record, {'readable': found, 'is_left_out': ~is_readable}, KIND)

  # Where the task is refused, the workdir stays as it was, unless opening so many took long.
  took_long = num_opened >= FEWEST_WITH_PROGRESS
  if took_long:
    remember()
  broken = [message for message in messages if message is not None]
  if broken and not skip_broken:
    raise UnreadableImages(broken, len(messages))
  kept, start = {}, 0
  for split, examples in splits.items():
    of_split = messages[start : start + len(examples.labels)]
    kept[split] = Part(examples, without_broken(of_split)) if any(of_split) else examples
    start += len(of_split)
  labels = {split: examples.labels for split, examples in kept.items()}
  lost = np.setdiff1d(splits['train'].labels, labels['train'])
  if len(lost):
    names = listed(task.classes[label] for label in lost)
    raise ValueError(
      f'{task.name}: no image of {names} in train can be decoded; replace them, or remove these '
      'classes.'
    )
  require_measurable(task.name, task.classes, labels)
  if num_opened and not took_long:
    remember()
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
    path = examples.file(index)
    with contextlib.suppress(OSError):
      state = examples.name(index) if path is None else state_of(path)
      digest = hashlib.blake2b(state.encode(errors='surrogateescape'), digest_size=8).digest()
      keys[index] = int.from_bytes(digest, 'big')
  return keys


def _look_at(
  name: str,
  examples: Examples,
  keys: np.ndarray,
  readable: np.ndarray,
  left_out: np.ndarray | None,
) -> tuple[list[str | None], int]:
  """What is wrong with each image, None where it can be decoded; and how many were opened for it.

  Args:
    name: name of the task.
    examples: all images.
    keys: see `_keys`.
    readable: keys of images that were decoded before.
    left_out: of a run that has begun, which images it leaves out, bool [n].

  Raises:
    ValueError: a run has begun with other images, or with some that cannot be decoded now.
  """
  is_left_out = np.zeros(len(keys), bool) if left_out is None else left_out
  if len(is_left_out) != len(keys):
    raise ValueError(
      f'{name}: this run has begun with {len(is_left_out)} images, and there are {len(keys)} now. '
      f'{_ADVICE}'
    )
  messages: list[str | None] = [None] * len(keys)
  for index in np.flatnonzero(is_left_out):
    messages[index] = f'{printable(examples.name(int(index)))}: left out since the run began'
  is_known = np.isin(keys, readable) & (keys != _NO_KEY)
  unknown = np.flatnonzero(~is_left_out & ~is_known)
  found = undecodable(examples, unknown, 'opening every image once')
  for index, message in zip(unknown, found, strict=True):
    messages[index] = message
  if left_out is not None and any(found):
    raise ValueError(
      f'{name}: this run has begun with images that cannot be decoded now: '
      f'{listed(filter(None, found))}. {_ADVICE}'
    )
  return messages, len(unknown)


def _read(path: str) -> tuple[np.ndarray, np.ndarray | None]:
  """The keys of readable images, and which were left out; none where the file is damaged."""
  expected = {'readable': Array('u', ('known',)), 'is_left_out': Array('b', ('image',))}
  if (arrays := read_if_whole(path, KIND, expected)) is None:
    return np.zeros(0, np.uint64), None
  return arrays['readable'], arrays['is_left_out']
