"""Which images a task has and which can be decoded, before anything is computed with them.

First the bytes of every file are digested and compared with the record of an earlier start: they
say whether a run may go on, and in which file of the cache a split lies decoded. Then splits that
stay in memory are decoded, and streamed images are only opened, which is faster. The record has a
line for every image; later starts digest only files of another size or time, and open no streamed
image again while names and bytes are the same.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from glora_jax.checks import listed, printable
from glora_jax.files import atomic, open_regular
from glora_jax.vision.data import image, pipeline
from glora_jax.vision.data.examples import Examples, Part
from glora_jax.vision.data.image import ResizeRule
from glora_jax.vision.data.pipeline import Split
from glora_jax.vision.data.task import Task, require_measurable

log = logging.getLogger(__name__)

RECORD = 'images.csv'
_NAMED_COPIES = 10  # in a warning


class Row(NamedTuple):
  """A line of the record.

  Attributes:
    split: name of the split.
    label: name of the class.
    image: see `Example.key`.
    size: bytes of the file; 0 if the image has none.
    time: nanoseconds of the last change of the file.
    digest: digest of the bytes of the file; empty if it cannot be read.
    left_out: whether the image could not be decoded.
  """

  split: str
  label: str
  image: str
  size: int
  time: int
  digest: str
  left_out: bool = False

  @property
  def content(self) -> tuple[str, ...]:
    """The fields that say which image it is; size and time do not."""
    return self.split, self.label, self.image, self.digest


class Opened(NamedTuple):
  """A task whose images can be read.

  Attributes:
    task: the task with its splits opened, without the images that cannot be decoded.
    arrays: images and labels of the splits that stay in memory.
    identities: text for each split that changes when its images do, wherever they are.
  """

  task: Task
  arrays: dict[str, Split]
  identities: dict[str, str]


def open_images(
  task: Task,
  image_size: int,
  resident: Collection[str],
  *,
  rule: ResizeRule = 'squash',
  skip_broken: bool = False,
  cache: str | None = None,
  folder: str | None = None,
  write: bool = True,
  has_begun: bool = False,
) -> Opened:
  """Opens all splits of a task, and finds the images that cannot be decoded.

  Args:
    task: the task.
    image_size: side of the square that images are resized to.
    resident: the splits that stay in memory, perhaps joined with '+'; others are streamed.
    rule: see `image.resize`.
    skip_broken: leave out, with a warning, images that cannot be decoded.
    cache: folder in which decoded splits are kept, by their images, size and rule; None keeps none.
    folder: where the record is; None for none.
    write: whether it is written, and not only read.
    has_begun: whether something was computed with the images already, so that they must be the
      same.

  Returns:
    What was opened. A warning names files that two splits share.

  Raises:
    UnreadableImages: there are images that cannot be decoded, or in a split no others.
    ValueError: the images that are left lack a class of train, or cannot measure anything. Or a run
      has begun with other images.
  """
  # Which images are these?
  splits = {split: task.open(split) for split in task.splits}
  old = _read_record(folder)
  rows = {split: _describe(task, split, examples, old) for split, examples in splits.items()}
  difference = _difference(old, _all(rows))
  if has_begun and difference:
    raise ValueError(
      f'{task.name}: the images are not those that this run began with ({difference}). Restore '
      f'them, or choose another --workdir; without {RECORD} in it, this one begins anew.'
    )
  # Which of them can be decoded?
  were_left_out = {row.content for row in old if row.left_out}
  is_known = bool(old) and not difference and (skip_broken or not were_left_out)
  in_memory = {part for split in resident for part in split.split('+')}
  images, faults = {}, {}
  for split, examples in splits.items():
    if split in in_memory:
      path = cache and _path_in(cache, rows[split], image_size, rule)
      images[split], faults[split] = pipeline.decode(examples, image_size, rule, split, path=path)
    elif is_known:
      reason = 'could not be decoded at an earlier start'
      faults[split] = [reason if row.content in were_left_out else '' for row in rows[split]]
    else:
      faults[split] = pipeline.look_at(examples)
  for split, indices in pipeline.choose_readable(splits, faults, skip_broken).items():
    if len(indices) < len(rows[split]):
      splits[split] = Part(splits[split], indices)
      rows[split] = [
        row._replace(left_out=bool(x)) for row, x in zip(rows[split], faults[split], strict=True)
      ]
      if split in images:
        images[split] = images[split][indices]
  # What is left of the task?
  _require_enough(task, splits)
  everything = _all(rows)
  if not is_known:
    _warn_of_copies(task.name, everything)
  if write and folder is not None and everything != old:
    _write_record(folder, everything)
  number = sum(row.left_out for row in everything)
  note = f'{number} of {len(everything)} images cannot be decoded and are left out.'
  notes = (*task.notes, note) if number else task.notes
  return Opened(
    dataclasses.replace(task, splits=splits, notes=notes),
    {split: Split(found, splits[split].labels) for split, found in images.items()},
    {split: _identity(some) for split, some in rows.items()},
  )


def differences(task: Task, folder: str) -> str:
  """How the images of a task differ from those that a run recorded in its workdir, in words.

  Nothing is written. Empty if they are the same, or nothing is recorded.
  """
  old = _read_record(folder)
  rows = {split: _describe(task, split, task.open(split), old) for split in task.splits}
  return _difference(old, _all(rows))


def _all(rows: Mapping[str, list[Row]]) -> list[Row]:
  return [row for of_split in rows.values() for row in of_split]


def _describe(task: Task, split: str, examples: Examples, old: Sequence[Row]) -> list[Row]:
  """The lines of a split; only files of another size or time than in old lines are read."""
  known = {row.image: row for row in old if row.split == split}
  labels = examples.labels

  def describe(index: int) -> Row:
    example = examples[index]
    key, (size, time) = example.key, _status(example.path)
    before = known.get(key)
    is_same = before is not None and (before.size, before.time) == (size, time)
    digest = before.digest if is_same else _digest(example.path)
    return Row(split, task.classes[labels[index]], key, size, time, digest)

  return pipeline.in_parallel(describe, len(labels), 'comparing images')


def _status(path: str | None) -> tuple[int, int]:
  """Size and time of a file."""
  try:
    status = os.stat(path) if path else None
  except OSError:
    status = None
  return (status.st_size, status.st_mtime_ns) if status else (0, 0)


def _digest(path: str | None) -> str:
  """A digest of the bytes of a file; empty if there is none that can be read."""
  try:
    return hashlib.blake2b(image.read(path), digest_size=16).hexdigest() if path else ''
  except OSError:
    return ''


def _identity(rows: Sequence[Row]) -> str:
  """A digest of labels, names and bytes of the images that are not left out."""
  text = '\0'.join('\0'.join(row.content[1:]) for row in rows if not row.left_out)
  return hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()


def _path_in(cache: str, rows: Sequence[Row], image_size: int, rule: ResizeRule) -> str:
  """The file that keeps a split, decoded."""
  key = hashlib.sha256(f'{_identity(rows)}|{image_size}|{rule}'.encode()).hexdigest()[:32]
  return os.path.join(os.path.expanduser(cache), f'{key}.npz')


def _difference(old: Sequence[Row], new: Sequence[Row]) -> str:
  """How images differ from those of a record, in words; empty if nothing is recorded."""
  if not old or [row.content for row in old] == [row.content for row in new]:
    return ''
  were, are = ({row.image: row.digest for row in rows} for rows in (old, new))
  kinds = {
    'added': are.keys() - were.keys(),
    'missing': were.keys() - are.keys(),
    'changed': {name for name in are.keys() & were.keys() if are[name] != were[name]},
  }
  if not any(kinds.values()):
    return 'other labels, splits or order'
  counts = [f'{len(names)} {kind}' for kind, names in kinds.items() if names]
  return f'{", ".join(counts)}; {listed(min(names) for names in kinds.values() if names)}'


def _read_record(folder: str | None) -> list[Row]:
  """The lines of a record; none if it is missing, damaged or another file."""
  if folder is None:
    return []
  try:
    with open_regular(os.path.join(folder, RECORD)) as file:
      text = file.read().decode(errors='surrogateescape')
    header, *lines = csv.reader(io.StringIO(text, newline=''))
    if tuple(header) != Row._fields:
      return []
    return [
      Row(split, label, name, int(size), int(time), digest, left_out == 'True')
      for split, label, name, size, time, digest, left_out in lines
    ]
  except (OSError, ValueError, csv.Error):
    return []


def _write_record(folder: str, rows: Sequence[Row]) -> None:
  path = os.path.join(folder, RECORD)
  text = io.StringIO(newline='')
  csv.writer(text).writerows([Row._fields, *rows])
  with atomic(path) as temporary, open(temporary, 'wb') as file:
    file.write(text.getvalue().encode(errors='surrogateescape'))


def _require_enough(task: Task, left: Mapping[str, Examples]) -> None:
  """Raises ValueError if the images that are left lack a class or cannot measure anything."""
  labels = {split: examples.labels for split, examples in left.items()}
  lost = np.setdiff1d(task.open('train').labels, labels['train'])
  if len(lost):
    names = listed(task.classes[label] for label in lost)
    raise ValueError(
      f'{task.name}: no image of {names} in train can be decoded; replace them, or remove these '
      'classes.'
    )
  require_measurable(task.name, task.classes, labels)


def _warn_of_copies(name: str, rows: Sequence[Row]) -> None:
  """Says which splits of a task share files, byte for byte."""
  firsts: dict[str, Row] = {}
  shared = collections.defaultdict(list)
  for row in rows:
    if row.digest and not row.left_out:
      first = firsts.setdefault(row.digest, row)
      if first.split != row.split:
        shared[row.split, first.split].append(f'{row.image} is {first.image}')
  for (later, earlier), copies in shared.items():
    log.warning(
      '%s: %d images of %s are byte-for-byte copies of images of %s, which makes results look too '
      'good; remove them from one of the two: %s%s.',
      *(name, len(copies), later, earlier, printable('; '.join(copies[:_NAMED_COPIES]))),
      '; and more' if len(copies) > _NAMED_COPIES else '',
    )
