"""The folder of one run: which process holds it, and for which config."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

try:
  import fcntl
except ImportError:  # Windows has no such locks
  fcntl = None


from glora_jax.data.catalog import expand
from glora_jax.data.task import require_printable
from glora_jax.errors import UserError
from glora_jax.files import (
  STAMP,
  Path,
  is_partial,
  load_json,
  write_json,
  writing,
)
from glora_jax.limits import printable, shown
from glora_jax.mesh import primary
from glora_jax.records import read_record
from glora_jax.runs.config import RunSettings
from glora_jax.runs.fields import as_json, by_name, is_among, values_of

log = logging.getLogger(__name__)

# Folders that a job or a suite writes into besides those of its stages.
WRITTEN = ('compiled', 'folded', 'profile', 'replaced', 'tensorboard')

LOCK = 'lock'
TEST_LIST = 'test_list.json'  # written before the test images are read
_REMEDY = 'restore it, or choose another --workdir'
_HOLDER = b'process '  # how a lock begins
_LONGEST_HOLDER = 200


class Stopped(RuntimeError):
  """A run stopped on request, with everything saved."""

  def __init__(self, where: str, workdir: str):
    super().__init__(
      f'Stopped {where}. Everything is saved in {workdir}; the same command resumes.'
    )


class InUseError(UserError):
  """Another process holds a workdir."""


class Change(NamedTuple):
  """A field whose value differs from the one in its workdir.

  Attributes:
    name: dotted name.
    old: its value in `config.json`; None if it has none.
    new: the given value.
  """

  name: str
  old: Any
  new: Any

  def __str__(self):
    return f'{printable(self.name)} was {shown(self.old)} and is now {shown(self.new)}'


def changes_of(
  settings: RunSettings, workdir: Path, read: Iterable[str], tasks: Sequence[Path] = ()
) -> tuple[Change, ...]:
  """The fields in which a config differs from the `config.json` of its workdir.

  Fields that change no result, `fields.FREE`, are not listed. Until the test images are read, what
  a stage reads may be corrected, and the stage runs again. The job and the tasks of a suite may not
  change.

  Args:
    settings: the given config.
    workdir: folder of the job.
    read: fields and sections that its stages read.
    tasks: folders of the runs of a suite, whose tests count as well.

  Raises:
    ValueError: the workdir belongs to another config; the sentence lists the differences.
  """
  if not os.path.exists(os.path.join(workdir, 'config.json')):
    return ()
  old, new = read_values(workdir), values_of(settings)
  changes = tuple(
    Change(name, old.get(name), new.get(name))
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  )
  was_tested = any(os.path.exists(os.path.join(x, TEST_LIST)) for x in (workdir, *tasks))
  is_suite = any(len(expand(str(values.get('task')))) > 1 for values in (old, new))
  fixed = ('job', *(['task'] if is_suite else []), *(read if was_tested else []))
  if refused := [change for change in changes if is_among(change.name, fixed)]:
    reason = ' Its test images were read.' if was_tested else ''
    raise ValueError(
      f'The workdir {workdir} belongs to another config: {"; ".join(map(str, refused))}.{reason} '
      'Choose another --workdir, or remove this one.'
    )
  return changes


def write_config(settings: RunSettings, workdir: Path) -> None:
  """Writes `config.json`, unless it has the same content already.

  Raises:
    OSError: it cannot be written.
  """
  path = os.path.join(workdir, 'config.json')
  content = as_json(settings)
  if not os.path.exists(path) or _read(path) != content:
    write_json(path, content, 'config')


def read_values(workdir: Path) -> dict[str, Any]:
  """The fields of a workdir's config that can change a result, by dotted name.

  Raises:
    OSError: `config.json` is missing or cannot be read.
    ValueError: it is damaged, or of a later version.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path} is missing; {_REMEDY}.')
  return by_name(_read(path))


def read_task(workdir: Path) -> str:
  """The task in a workdir's config, with its path."""
  return _read(os.path.join(workdir, 'config.json'))['task']


def _read(path: str) -> dict[str, Any]:
  return read_record(path, 'config', dict[str, Any], _REMEDY)


@contextlib.contextmanager
def claim(folder: Path, tasks: Sequence[str] = (), names: Iterable[str] = ()) -> Iterator[None]:
  """Holds a folder for the primary process alone, and makes it if it is missing.

  The system releases it when the process ends, however it ends. Partial files of killed processes
  are removed. If the block raises before anything is in the folder, it is left as it was.

  Args:
    folder: path of the folder.
    tasks: folders in it that are workdirs of a suite's runs.
    names: folders in it that are written into, besides `WRITTEN`.

  Raises:
    InUseError: another process holds it.
    ValueError: its name cannot be printed, it is a file, it has files but is not a workdir, or a
      link in it leads out of it.
    OSError: it cannot be written.
  """
  if not primary():
    yield
    return
  # Training states cannot be saved below a name that is not UTF-8.
  for name in os.path.abspath(folder).split(os.sep):
    require_printable('The path of the workdir', [name])
  if os.path.lexists(folder) and not os.path.isdir(folder):
    raise ValueError(f'{printable(folder)} is not a folder; choose another --workdir.')
  before = names_in(folder)
  inside = [os.path.join(folder, name) for name in (*WRITTEN, *names)]
  _refuse_links(folder, inside, tasks)
  _refuse_strangers(folder, tasks)
  with writing(folder):
    os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, LOCK)
  with _open_lock(path) as file:
    _lock(file, path)
    with writing(folder):
      file.seek(0)
      file.write(_HOLDER + f'{os.getpid()} on {socket.gethostname()}\n'.encode())
      file.truncate()  # last: an empty lock says nothing, and a kill may come in between
      _remove_partial_files(folder, inside)
    try:
      yield
    except BaseException:
      abandon(folder, before)
      raise


def _open_lock(path: str) -> BinaryIO:
  """Opens the lock file, and makes it if it is missing; no other file is touched.

  Raises:
    ValueError: a link or another program's file has its name.
    OSError: it cannot be written.
  """
  refusal = ValueError(
    f'{path} is not a lock of glora_jax; remove it, or choose another --workdir.'
  )
  if os.path.islink(path) or os.path.isdir(path):
    raise refusal
  with writing(os.path.dirname(path)):
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b', buffering=0)
  if file.read(len(_HOLDER)) not in (b'', _HOLDER):
    file.close()
    raise refusal
  return file


def _lock(file: BinaryIO, path: str) -> None:
  """Locks an open file.

  Raises:
    InUseError: another process has locked it, or has just released it.
  """
  folder = os.path.dirname(path)
  try:
    if fcntl:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.seek(0)
    holder = file.read(_LONGEST_HOLDER).decode(errors='replace').strip() or 'another process'
    raise InUseError(
      f'The workdir {folder} is in use by {holder}. Wait for it to end, or choose another '
      '--workdir.'
    ) from error
  except OSError as error:  # some network file systems
    log.warning(
      '%s: the file system has no locks (%s); make sure that no two processes use the folder.',
      folder,
      error.strerror,
    )
  # A process with nothing to do removes the lock, and the folder if it made that.
  if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
    raise InUseError(f'The workdir {folder} was in use until just now; run the same command again.')


def is_finished(workdir: Path) -> bool:
  """Whether a run or a comparison has written its result, which comes last."""
  return os.path.exists(os.path.join(workdir, 'result.json'))


def names_in(folder: Path) -> set[str] | None:
  """The names in a folder; None if it does not exist."""
  return set(os.listdir(folder)) if os.path.isdir(folder) else None


def abandon(folder: Path, before: set[str] | None) -> None:
  """Restores a folder to which only the lock was added.

  Args:
    folder: path of the folder.
    before: what `names_in` returned before it was held or prepared.
  """
  with contextlib.suppress(OSError):
    added = set(os.listdir(folder)) - (before or set())
    if added == {LOCK}:
      os.remove(os.path.join(folder, LOCK))
    if before is None and added <= {LOCK}:
      os.rmdir(folder)


def _refuse_links(folder: Path, written: Sequence[str], tasks: Sequence[str]) -> None:
  """Raises ValueError if a folder that a run writes into is a link."""
  # 'WORKDIR/food101/4/0' lies in folders of the suite.
  above = [str(path) for task in tasks for path in (task, *pathlib.PurePath(task).parents)]
  inside = [path for path in above if len(path) > len(os.fspath(folder))]
  if links := [path for path in (*written, *inside) if os.path.islink(path)]:
    raise ValueError(
      f'{links[0]} is a link, and a run writes only within its workdir; remove the link, or choose '
      'another --workdir.'
    )


def _refuse_strangers(folder: Path, tasks: Sequence[str]) -> None:
  """Raises ValueError if a folder is not a workdir and contains more than workdirs of tasks."""
  names = names_in(folder) or set()
  if names_in(os.path.join(folder, 'compiled')) == set():
    names.discard('compiled')  # made by JAX in another process of a suite, before there is a lock
  if all(name == LOCK or is_partial(name) for name in names) or _is_workdir(folder):
    return
  for name in sorted(names - {LOCK}):
    path = os.path.join(folder, name)
    if not any(task == path or task.startswith(os.path.join(path, '')) for task in tasks):
      raise ValueError(
        f'{printable(folder)} is not a workdir of glora_jax and has {printable(name)}; choose a '
        'new or empty folder as --workdir.'
      )
    _refuse_strangers(path, tasks)


def _is_workdir(folder: Path) -> bool:
  """Whether a folder has our lock, which is the first file in a workdir, or a config."""
  lock, config = (os.path.join(folder, name) for name in (LOCK, 'config.json'))
  if os.path.isfile(lock):
    with open(lock, 'rb') as file:
      if file.read(len(_HOLDER)) == _HOLDER:
        return True
  content = load_json(config, _REMEDY) if os.path.isfile(config) else None
  stamp = content.get(STAMP) if isinstance(content, dict) else None
  return isinstance(stamp, dict) and stamp.get('kind') == 'config'


def _remove_partial_files(folder: Path, written: Sequence[str]) -> None:
  """Removes partial files from a folder and from those in it that a run writes into."""
  below = map(os.walk, written)
  parents = [folder, *(parent for walk in below for parent, _, _ in walk)]
  for parent in parents:
    for item in list(os.scandir(parent)):
      if is_partial(item.name) and item.is_file(follow_symlinks=False):
        os.remove(item.path)
