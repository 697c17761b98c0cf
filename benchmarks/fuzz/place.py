"""The folders of a fuzzer: what a case may write, what it is given, and what is none of its own."""

import os
import shutil
import stat
from collections.abc import Iterator

WORKDIR = 'work'
GIVEN = 'given'  # the files of a case
MADE_ONCE = ('home', 'here', 'temporary', 'shared')  # `here` is the current folder

Snapshot = dict[str, tuple]


class Place:
  """A folder with one for each purpose.

  Attributes:
    root: path of all of it.
  """

  def __init__(self, root: str):
    self.root = os.path.abspath(root)
    for name in MADE_ONCE:
      os.makedirs(self.path(name), exist_ok=True)
    self.clear()

  def path(self, *names: str) -> str:
    """A path within."""
    return os.path.join(self.root, *names)

  @property
  def workdir(self) -> str:
    """Path of the workdir, which is not there before a case makes it."""
    return self.path(WORKDIR)

  @property
  def given(self) -> str:
    """Path of the folder for the files of a case."""
    return self.path(GIVEN)

  def clear(self) -> None:
    """Removes what the last case has left, so that the next one finds what it would alone."""
    for name in (WORKDIR, GIVEN, *MADE_ONCE[:-1]):
      shutil.rmtree(self.path(name), ignore_errors=True)
    for name in (GIVEN, *MADE_ONCE[:-1]):
      os.makedirs(self.path(name), exist_ok=True)

  def write(self, *names: str, content: bytes) -> str:
    """Writes a file for a case; the path."""
    path = os.path.join(self.given, *names)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'wb') as file:
      file.write(content)
    return path

  def inside(self) -> Snapshot:
    """The state of the workdir: every name, with its bytes."""
    return {name: _state(os.path.join(self.root, name)) for name in _names(self.root, [WORKDIR])}

  def outside(self) -> Snapshot:
    """The state of everything else: every name, with type, size and time of its last change."""
    folders = sorted(set(os.listdir(self.root)) - {WORKDIR})
    return {name: _status(os.path.join(self.root, name)) for name in _names(self.root, folders)}


def _names(root: str, folders: list[str]) -> Iterator[str]:
  """All paths below folders of a root, themselves included, links not followed."""
  for folder in folders:
    path = os.path.join(root, folder)
    if os.path.lexists(path):
      yield folder
    if os.path.islink(path):
      continue
    for parent, below, files in os.walk(path):
      yield from (os.path.relpath(os.path.join(parent, name), root) for name in (*below, *files))


def _state(path: str) -> tuple:
  status = os.lstat(path)
  if stat.S_ISLNK(status.st_mode):
    return 'link', os.readlink(path)
  if not stat.S_ISREG(status.st_mode):
    return (stat.S_IFMT(status.st_mode),)
  with open(path, 'rb') as file:
    return 'file', file.read()


def _status(path: str) -> tuple:
  status = os.lstat(path)
  if stat.S_ISDIR(status.st_mode):
    return ('folder',)
  target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ''
  return stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns, target
