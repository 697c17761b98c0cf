"""The record of a run's images: a line for each, with which a later start finds changes.

Files are compared by a digest of their bytes. A file with the same stamp is not read again.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from glora_jax.checks import listed, printable
from glora_jax.files import open_regular
from glora_jax.vision.data import image
from glora_jax.vision.data.task import Example
from glora_jax.vision.files import write_csv

RECORD = 'images.csv'
_NAMED_COPIES = 10  # in a sentence


class Row(NamedTuple):
  """A line of the record.

  Attributes:
    split: name of the split.
    label: name of the class.
    image: see `Example.key`.
    stamp: size, number and times of the file, as a text; empty if the image has no file.
    digest: digest of the bytes of the file; empty if it cannot be read.
    fault: why the image cannot be decoded and is left out; empty if it can.
  """

  split: str
  label: str
  image: str
  stamp: str
  digest: str
  fault: str

  @property
  def content(self) -> tuple[str, ...]:
    """The fields that identify the image, wherever its file is."""
    return self.split, self.label, self.image, self.digest


def read(folder: str | None) -> list[Row]:
  """The lines of a record; none if it is missing, damaged or not a record."""
  if folder is None:
    return []
  try:
    with open_regular(os.path.join(folder, RECORD)) as file:
      text = file.read().decode(errors='surrogateescape')
    header, *lines = csv.reader(io.StringIO(text, newline=''))
    if tuple(header) != Row._fields:
      return []
    return [Row(*line) for line in lines]
  except (OSError, ValueError, TypeError, csv.Error):
    return []


def write(folder: str, rows: Sequence[Row]) -> None:
  """Writes a record."""
  write_csv(os.path.join(folder, RECORD), Row._fields, rows)


def describe(
  split: str, label: str, example: Example, old: Mapping[str, Row], is_opened: bool
) -> Row:
  """The line of an image; its file is read only if its stamp is not that of its old line.

  Args:
    split: name of its split.
    label: name of its class.
    example: the image.
    old: lines of the split from an earlier start, by `Row.image`.
    is_opened: whether to check that it can be decoded, unless its old line has that already.
  """
  path, before = example.path, old.get(example.key)
  stamp, digest = '', ''
  with contextlib.suppress(OSError):  # a link to nowhere, or no regular file
    if path is not None:
      stamp = stamp_of(path)
      if before is not None and before.stamp == stamp:
        digest = before.digest
      else:
        digest = hashlib.blake2b(image.read(path), digest_size=16).hexdigest()
  row = Row(split, label, example.key, stamp, digest, fault='')
  if is_opened and (before is None or before.fault or before.content != row.content):
    try:
      example.image(draft=True)
    except OSError as error:
      return row._replace(fault=str(error))
  return row


def stamp_of(path: str) -> str:
  """A text that differs after a file was written or replaced, and for every other file.

  Archives set the time of the last writing (`st_mtime`), so that size and time may be those of
  another image. Nobody can set the time of the last change (`st_ctime`), but files that are written
  at the same moment share it. Their numbers (`st_ino`) differ.

  Raises:
    OSError: there is no such file.
  """
  status = os.stat(path)
  return f'{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}'


def identify(rows: Sequence[Row]) -> str:
  """A digest of labels, names and bytes of the images that are not left out."""
  text = '\0'.join('\0'.join(row.content[1:]) for row in rows if not row.fault)
  return hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()


def compare(old: Sequence[Row], new: Sequence[Row]) -> str:
  """The differences between images and a record, in words; empty if nothing is recorded."""
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


def tell_copies(rows: Sequence[Row]) -> list[str]:
  """A sentence for each two splits that share files, byte for byte."""
  firsts: dict[str, Row] = {}
  shared = collections.defaultdict(list)
  for row in rows:
    if row.digest and not row.fault:
      first = firsts.setdefault(row.digest, row)
      if first.split != row.split:
        shared[row.split, first.split].append(f'{row.image} is {first.image}')
  return [
    f'{len(copies)} images of {later} are byte-for-byte copies of images of {earlier}, which makes '
    'results look too good; remove them from one of the two: '
    f'{printable("; ".join(copies[:_NAMED_COPIES]))}'
    f'{"; and more" if len(copies) > _NAMED_COPIES else ""}.'
    for (later, earlier), copies in shared.items()
  ]
