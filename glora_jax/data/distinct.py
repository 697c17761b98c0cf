"""Files that are the same under several paths: written otherwise, links, links to folders."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple


class Repetition(NamedTuple):
  """A file that occurs twice.

  Attributes:
    first: position of the path that has it first.
    second: position of the path that has it again.
  """

  first: int
  second: int


def repetitions(paths: Iterable[str]) -> Iterable[Repetition]:
  """The files that occur more than once, each with its first occurrence.

  Args:
    paths: paths of files; of one that cannot be asked for, its path decides.

  Example:
    >>> list(repetitions(['a.png', 'b.png', './a.png']))
    [Repetition(first=0, second=2)]
  """
  seen: dict[tuple, tuple[int, str]] = {}
  for position, path in enumerate(paths):
    first, first_path = seen.setdefault(_identity(path), (position, path))
    if first != position and _are_same(first_path, path):
      yield Repetition(first, position)


def _identity(path: str) -> tuple:
  try:
    status = os.stat(path)
  except (OSError, ValueError):  # ValueError: a NUL in the path
    return (os.path.normpath(path),)
  return (status.st_dev, status.st_ino)


def _are_same(first: str, second: str) -> bool:
  """Whether files with one number are one: some file systems give several files the same."""
  if os.path.realpath(first) == os.path.realpath(second):
    return True
  return os.stat(first).st_nlink > 1
