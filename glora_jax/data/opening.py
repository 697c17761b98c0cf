"""Reads every image of a task once, before anything is computed with them.

Splits that stay in memory are decoded, which is the check; images that are streamed are only
opened, which takes less time. A file records this and the images that were left out: a resumed run
reads only what it needs, and leaves out the same images, whatever has become of them.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from glora_jax.data import pipeline
from glora_jax.data.examples import Examples, Joined, Part
from glora_jax.data.image import ResizeRule
from glora_jax.data.pipeline import Split, UnreadableImages
from glora_jax.data.task import Task, require_measurable
from glora_jax.files import open_regular, write_arrays
from glora_jax.limits import listed, printable
from glora_jax.records import Array, read_if_whole

log = logging.getLogger(__name__)

_NAMED_COPIES = 10  # in a warning
KIND = 'checked images'  # of the file that remembers
_REMEMBERED = {'identity': Array('U'), 'is_left_out': Array('b', ('image',))}


def open_images(
  task: Task,
  image_size: int,
  fits: Callable[[int], bool],
  *,
  rule: ResizeRule = 'squash',
  skip_broken: bool = False,
  cache: str | None = None,
  record: str | None = None,
  write: bool = True,
  has_begun: bool = False,
) -> tuple[Task, dict[str, Split]]:
  """Reads every image of every split once, in parallel.

  Args:
    task: the task.
    image_size: see `pipeline.load`.
    fits: whether a split of so many images stays in memory; others are streamed.
    rule: see `pipeline.load`.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    cache: see `pipeline.load`.
    record: path of the npz file that remembers; None for none.
    write: whether the file is written, and not only read.
    has_begun: whether something was computed with the images already, so that the same must be left
      out.

  Returns:
    The task, its splits opened, and of images that can be decoded alone; and the images and labels
    of those splits that were decoded for it. A warning names files that two splits share.

  Raises:
    UnreadableImages: there are images that cannot be decoded, or in a split no others.
    ValueError: what is left lacks a class of train, or cannot measure anything. Or a run has begun
      with images that cannot be decoded any more.
  """
  splits = {split: task.open(split) for split in task.splits}
  everything = Joined(list(splits.values()))
  is_readable, is_checked, has_begun = _known(everything, record, skip_broken, has_begun)
  leaves_out = skip_broken and not has_begun
  arrays = {}

  def read(split: str, examples: Examples) -> np.ndarray:
    if is_checked:
      return np.arange(len(examples.labels))
    if fits(len(examples.labels)):
      images, indices = pipeline.decode(examples, image_size, rule, leaves_out, cache, split)
      arrays[split] = Split(images, examples.labels[indices])
      return indices
    look = functools.partial(examples.image, draft=True)
    return pipeline.readable(examples, look, leaves_out, 'opening every image once')

  kept, broken = {}, []
  ends = np.cumsum([len(examples.labels) for examples in splits.values()])
  parts = np.split(is_readable, ends[:-1])
  for (split, examples), of_split in zip(splits.items(), parts, strict=True):
    chosen = np.flatnonzero(of_split)
    try:
      rest = examples if of_split.all() else Part(examples, chosen)
      chosen = chosen[read(split, rest)]
    except UnreadableImages as error:
      if leaves_out:
        raise
      broken += error.messages
    of_split[:] = np.isin(np.arange(len(of_split)), chosen)
    kept[split] = examples if of_split.all() else Part(examples, chosen)
  if broken and not has_begun:
    raise UnreadableImages(broken, is_readable.size)
  _require_enough(task, kept, broken)
  if write and not (has_begun or is_checked):
    warn_of_copies(task.name, kept)
    if record:
      content = {'identity': np.array(everything.identity), 'is_left_out': ~is_readable}
      write_arrays(record, content, KIND)
  note = f'{(~is_readable).sum()} of {is_readable.size} images cannot be decoded and are left out.'
  notes = task.notes if is_readable.all() else (*task.notes, note)
  return dataclasses.replace(task, splits=kept, notes=notes), arrays


def _known(
  everything: Examples, record: str | None, skip_broken: bool, has_begun: bool
) -> tuple[np.ndarray, bool, bool]:
  """Which images are not left out, bool [n]; whether each of them was opened before.

  And whether the run has begun with these, which nobody knows where the record is lost.
  """
  all_of_them = np.ones(len(everything.labels), bool)
  known = read_if_whole(record, KIND, _REMEMBERED) if record else None
  if known is None or known['is_left_out'].size != all_of_them.size:
    return all_of_them, False, False
  is_same = bool(known['identity'] == everything.identity)
  is_checked = is_same and (skip_broken or not known['is_left_out'].any())
  is_readable = ~known['is_left_out'] if has_begun or is_checked else all_of_them
  return is_readable, is_checked, has_begun


def _require_enough(task: Task, kept: Mapping[str, Examples], gone: Sequence[str]) -> None:
  """Raises ValueError where images are gone, or what is left lacks a class or cannot measure."""
  if gone:
    raise ValueError(
      f'{task.name}: images that this run started with can no longer be decoded: {listed(gone)}. '
      'Restore them, or use a new workdir.'
    )
  labels = {split: examples.labels for split, examples in kept.items()}
  lost = np.setdiff1d(task.open('train').labels, labels['train'])
  if len(lost):
    names = listed(task.classes[label] for label in lost)
    raise ValueError(
      f'{task.name}: no image of {names} in train can be decoded; replace them, or remove these '
      'classes.'
    )
  require_measurable(task.name, task.classes, labels)


def warn_of_copies(name: str, splits: Mapping[str, Examples]) -> None:
  """Says which splits of a task share files, byte for byte; files of one size alone are read.

  Args:
    name: name of the task.
    splits: examples by split; first those that are learnt from.
  """
  by_size = collections.defaultdict(list)
  for split, examples in splits.items():
    for path in map(examples.name, range(len(examples.labels))):
      with contextlib.suppress(OSError):  # of what is no file of its own
        by_size[os.path.getsize(path)].append((split, path))
  firsts, shared = {}, collections.defaultdict(list)
  for files in by_size.values():
    for split, path in files if len(dict(files)) > 1 else ():
      with contextlib.suppress(OSError), open_regular(path) as file:
        digest = hashlib.file_digest(file, 'blake2b').digest()
        earlier, original = firsts.setdefault(digest, (split, path))
        if earlier != split:
          shared[split, earlier].append(f'{path} is {original}')
  for (later, earlier), copies in shared.items():
    log.warning(
      '%s: %d images of %s are byte-for-byte copies of images of %s, which makes results look too '
      'good; remove them from one of the two: %s%s.',
      *(name, len(copies), later, earlier, printable('; '.join(copies[:_NAMED_COPIES]))),
      '; and more' if len(copies) > _NAMED_COPIES else '',
    )
