"""Reads every image of a task once, before anything is computed with them.

Splits that stay in memory are decoded, which is the check; images that are streamed are only
opened, which takes less time. Their bytes are digested meanwhile. A file records digests, sizes and
times, and which images were left out: later starts read only files of another size or time, and
images are the same if their names and bytes are.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from glora_jax.checks import listed, printable
from glora_jax.vision.data import pipeline
from glora_jax.vision.data.examples import SEEN, Examples, Joined, Part
from glora_jax.vision.data.image import ResizeRule
from glora_jax.vision.data.pipeline import Split, UnreadableImages
from glora_jax.vision.data.task import Task, require_measurable
from glora_jax.vision.files import Array, read_if_whole, write_arrays, write_json

log = logging.getLogger(__name__)

_NAMED_COPIES = 10  # in a warning
IMAGES = 'images.npz'  # the record
SPLIT = 'split.json'  # which examples are in the splits that were made, by number
_KIND = 'checked images'
_RECORD = {
  'identity': Array('U'),
  'is_left_out': Array('b', ('image',)),
  'names': Array('u', ('byte',)),  # of all files, each with a zero behind it
  'seen': Array('V', ('file',)),
}


def open_images(
  task: Task,
  image_size: int,
  fits: Callable[[int], bool],
  *,
  rule: ResizeRule = 'squash',
  skip_broken: bool = False,
  cache: str | None = None,
  folder: str | None = None,
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
    folder: where the record is, beside a list of the splits that were made; None for none.
    write: whether they are written, and not only read.
    has_begun: whether something was computed with the images already, so that they must be the
      same.

  Returns:
    The task, its splits opened, and of images that can be decoded alone; and the images and labels
    of those splits that were decoded for it. A warning names files that two splits share.

  Raises:
    UnreadableImages: there are images that cannot be decoded, or in a split no others.
    ValueError: what is left lacks a class of train, or cannot measure anything. Or a run has begun
      with other images.
  """
  splits = {split: task.open(split) for split in task.splits}
  everything = Joined(list(splits.values()))
  known = _compare(everything, folder)
  if has_begun:
    _require_same(task.name, known.difference)
  is_checked = known.is_same and (skip_broken or known.is_readable.all())
  is_readable = known.is_readable if is_checked else np.ones(len(everything.labels), bool)
  arrays = {}

  def read(split: str, examples: Examples) -> np.ndarray:
    if is_checked:
      return np.arange(len(examples.labels))
    if fits(len(examples.labels)):
      images, indices = pipeline.decode(examples, image_size, rule, skip_broken, cache, split)
      arrays[split] = Split(images, examples.labels[indices])
      return indices
    look = functools.partial(examples.image, draft=True)
    return pipeline.readable(examples, look, skip_broken, 'opening every image once')

  kept, broken = {}, []
  ends = np.cumsum([len(examples.labels) for examples in splits.values()])
  parts = np.split(is_readable, ends[:-1])
  for (split, examples), of_split in zip(splits.items(), parts, strict=True):
    chosen = np.flatnonzero(of_split)
    try:
      rest = examples if of_split.all() else Part(examples, chosen)
      chosen = chosen[read(split, rest)]
    except UnreadableImages as error:
      if skip_broken:
        raise
      broken += error.messages
    of_split[:] = np.isin(np.arange(len(of_split)), chosen)
    kept[split] = examples if of_split.all() else Part(examples, chosen)
  if broken:
    raise UnreadableImages(broken, is_readable.size)
  _require_enough(task, kept)
  if write and not (is_checked and known.is_current):
    warn_of_copies(task.name, kept)
    _write_record(folder, splits, ~is_readable)
  note = f'{(~is_readable).sum()} of {is_readable.size} images cannot be decoded and are left out.'
  notes = task.notes if is_readable.all() else (*task.notes, note)
  return dataclasses.replace(task, splits=kept, notes=notes), arrays


def differences(task: Task, folder: str) -> str:
  """How the images of a task differ from those that a run recorded in its workdir, in words.

  Nothing is written. Empty if they are the same, or nothing is recorded.
  """
  return _compare(Joined([task.open(split) for split in task.splits]), folder).difference


class _Known(NamedTuple):
  """What a record says of images.

  Attributes:
    is_same: whether it is of the same images.
    difference: what differs, in words; empty if nothing is recorded.
    is_readable: which images were not left out, bool [image].
    is_current: whether all sizes and times are as recorded.
  """

  is_same: bool = False
  difference: str = ''
  is_readable: np.ndarray = np.ones(0, bool)
  is_current: bool = False


def _compare(everything: Examples, folder: str | None) -> _Known:
  """Compares images with a record; only files of another size or time are read."""
  record = read_if_whole(os.path.join(folder, IMAGES), _KIND, _RECORD) if folder else None
  if record is None or record['seen'].dtype != SEEN:
    return _Known()
  old_names = record['names'].tobytes().decode(errors='surrogateescape').split('\0')
  old = dict(zip(old_names, record['seen'], strict=False))
  names = _names(everything)
  files = [(files, index) for files in everything.files for index in range(len(files.paths))]
  for name, (of_files, index) in zip(names, files, strict=True):
    if name in old:
      of_files.recall(index, old[name])
  is_current = all(files.seen['time'].all() for files in everything.files)
  pipeline.digest(everything)
  is_same = everything.identity == record['identity']
  if is_same and record['is_left_out'].size == len(everything.labels):
    return _Known(True, '', ~record['is_left_out'], is_current)
  new = {name: of_files.digest(index) for name, (of_files, index) in zip(names, files, strict=True)}
  kinds = {
    'added': new.keys() - old.keys(),
    'missing': old.keys() - new.keys(),
    'changed': {name for name in new.keys() & old.keys() if new[name] != old[name]['digest']},
  }
  counts = [f'{len(names)} {kind}' for kind, names in kinds.items() if names]
  instances = [min(names).partition('/')[2] for names in kinds.values() if names]
  what = f'{", ".join(counts)}; {listed(instances)}' if counts else 'other labels, splits or order'
  return _Known(difference=what)


def _require_same(name: str, difference: str) -> None:
  if difference:
    raise ValueError(
      f'{name}: the images are not those that this run began with ({difference}). Restore them, or '
      f'choose another --workdir; without {IMAGES} in it, this one begins anew.'
    )


def _names(everything: Examples) -> list[str]:
  """The names of all files, which are unique."""
  return [f'{n}/{name}' for n, files in enumerate(everything.files) for name in files.names]


def _write_record(
  folder: str | None, splits: Mapping[str, Examples], is_left_out: np.ndarray
) -> None:
  """Writes which examples are in the splits that were made, and what was read."""
  if folder is None:
    return
  if made := {split: x.indices.tolist() for split, x in splits.items() if isinstance(x, Part)}:
    write_json(os.path.join(folder, SPLIT), made, 'split')
  everything = Joined(list(splits.values()))
  text = ''.join(f'{name}\0' for name in _names(everything))
  seen = [files.seen for files in everything.files]
  content = {
    'identity': np.array(everything.identity),
    'is_left_out': is_left_out,
    'names': np.frombuffer(text.encode(errors='surrogateescape'), np.uint8),
    'seen': np.concatenate([np.zeros(0, SEEN), *seen]),
  }
  write_arrays(os.path.join(folder, IMAGES), content, _KIND)


def _require_enough(task: Task, kept: Mapping[str, Examples]) -> None:
  """Raises ValueError if what is left lacks a class or cannot measure."""
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
  """Says which splits of a task share files, byte for byte.

  Args:
    name: name of the task.
    splits: examples by split; first those that are learnt from.
  """
  firsts, shared = {}, collections.defaultdict(list)
  for split, examples in splits.items():
    for index in range(len(examples.labels)):
      if digest := examples.digest(index):
        earlier, original = firsts.setdefault(digest, (split, examples.name(index)))
        if earlier != split:
          shared[split, earlier].append(f'{examples.name(index)} is {original}')
  for (later, earlier), copies in shared.items():
    log.warning(
      '%s: %d images of %s are byte-for-byte copies of images of %s, which makes results look too '
      'good; remove them from one of the two: %s%s.',
      *(name, len(copies), later, earlier, printable('; '.join(copies[:_NAMED_COPIES]))),
      '; and more' if len(copies) > _NAMED_COPIES else '',
    )
