"""The folder that belongs to one run: who holds it, and for which config."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import operator
import os
import pathlib
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

try:
  import fcntl
except ImportError:  # Windows has no such locks
  fcntl = None

import flax
import ml_collections

from glora_jax.data.catalog import canonical
from glora_jax.data.task import require_printable
from glora_jax.files import (
  STAMP,
  Path,
  damaged,
  is_partial,
  json_default,
  load_json,
  write_json,
  writing,
)
from glora_jax.limits import printable, shown
from glora_jax.mesh import primary
from glora_jax.records import read_record
from glora_jax.runs import schema
from glora_jax.runs.config import RunSettings, default_config
from glora_jax.runs.used_fields import (
  COMMON_FIELDS,
  EVERY_STAGE,
  FREE_FIELDS,
  Stage,
  is_among,
  last_begun,
  stages_of,
  used_by,
)

log = logging.getLogger(__name__)

# Folders that a run, a comparison or a suite writes into; files are written in the workdir itself.
FOLDERS = (
  'baselines',
  'compiled',
  'finetune',
  'finetune_choice',
  'folded',
  'head',
  'profile',
  'search',
  'structure',
  'supernet',
  'tensorboard',
  'trained',
  'training',
  'tuning',
)

LOCK = 'lock'
_FREE_NAMES = ('compare.rate.', 'suite.settings.')  # sections that may have any names
_REMEDY = 'put the right one back, or choose another --workdir'
_HOLDER = b'process '  # how a lock begins
_LONGEST_HOLDER = 200


class Stopped(RuntimeError):
  """A run was asked to stop, and did, with everything saved."""

  def __init__(self, where: str, workdir: str):
    super().__init__(
      f'Stopped {where}. Everything is saved in {workdir}, and the same command goes on from there.'
    )


class InUseError(ValueError):
  """Another process holds a workdir; the text is a sentence for the user."""


class Change(NamedTuple):
  """A field whose value is another than the one that a workdir has.

  Attributes:
    name: dotted name.
    old: its value in `config.json`; None where it has none.
    new: the value that is given.
  """

  name: str
  old: Any
  new: Any

  def __str__(self):
    return f'{printable(self.name)} was {shown(self.old)} and is now {shown(self.new)}'


def changes_of(
  config: ml_collections.ConfigDict, workdir: str, tasks: Sequence[str] = ()
) -> tuple[Change, ...]:
  """What a config has otherwise than the `config.json` of its workdir, where that may be.

  Fields that change no result may always have other values, `used_fields.FREE_FIELDS`; they are
  not listed. All others may as long as no stage that has left something in the workdir has used
  them.

  Args:
    config: the config that is given.
    workdir: folder of the run.
    tasks: folders of the runs of a suite, in which stages count, too.

  Raises:
    ValueError: the workdir belongs to another config; the sentence has the differences. Or nobody
      knows to which: stages have begun, and there is no `config.json`.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    if last := last_begun(EVERY_STAGE, [workdir]):
      raise ValueError(
        f'{path} is gone, and stage {last.name} has left something there that was made by it; put '
        'it back, or choose another --workdir.'
      )
    return ()
  old, new = _by_name(_read(path)), _by_name(_as_json(config))
  changes = tuple(
    Change(name, old.get(name), new.get(name))
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and not is_among(name, FREE_FIELDS)
  )
  stages = stages_of(old)
  last = last_begun(stages, [workdir, *tasks])
  fixed = used_by(stages, last)
  if refused := [
    change for change in changes if is_among(change.name, fixed) or not _is_known(change.name, new)
  ]:
    used = '' if last is None else f': its stage {last.name} depends on what has changed'
    raise ValueError(
      f'The workdir {workdir} belongs to another config: {"; ".join(map(str, refused))}. '
      f'Choose another --workdir, or remove that one{used}.'
      f'{_way_back(stages, refused, new, workdir)}'
    )
  return changes


def _way_back(
  stages: tuple[Stage, ...], refused: Sequence[Change], config: Mapping[str, Any], workdir: str
) -> str:
  """What to remove for the stages that have used refused fields to begin anew; empty where all."""
  names = [change.name for change in refused]
  if not all(_is_known(name, config) for name in names) or any(
    is_among(name, COMMON_FIELDS) for name in names
  ):
    return ''
  using = [any(is_among(name, stage.fields) for name in names) for stage in stages]
  later = stages[using.index(True) :]
  traces = [os.path.join(workdir, trace) for stage in later for trace in stage.traces]
  left = [trace for trace in traces if os.path.exists(trace)]
  return f' Without {", ".join(left)} the stage {later[0].name} begins anew.' if left else ''


def _is_known(name: str, config: Mapping[str, Any]) -> bool:
  """Whether a config has a field of this name."""
  return name in config or is_among(name, _FREE_NAMES)


def claim_workdir(
  config: ml_collections.ConfigDict, workdir: str, tasks: Sequence[str] = ()
) -> None:
  """Writes `config.json`, or compares it where there is one already, and logs what changes in it.

  Args:
    config: the config that is given.
    workdir: folder of the run.
    tasks: see `changes_of`.

  Raises:
    ValueError: see `changes_of`.
    OSError: it cannot be written.
  """
  changes = changes_of(config, workdir, tasks)
  path = os.path.join(workdir, 'config.json')
  if not primary() or (os.path.exists(path) and not changes):
    return
  write_json(path, _as_json(config), 'config')
  for change in changes:
    log.info('%s, which no stage has used yet.', change)


def read_config(workdir: Path) -> ml_collections.ConfigDict:
  """The config of a workdir.

  Raises:
    OSError: there is no `config.json`, or it cannot be read.
    ValueError: it is damaged, or of a later version.
  """
  path = os.path.join(workdir, 'config.json')
  config = default_config()
  try:
    config.update(_read(path))
  except (KeyError, TypeError, AttributeError, OverflowError) as error:
    raise damaged(path, error.args[0] if error.args else error, _REMEDY) from error
  return config


def _read(path: str) -> dict[str, Any]:
  return read_record(path, 'config', dict[str, Any], _REMEDY)


def _as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """A config's values as its file has them.

  They are of Python's own types, and the task means the same from every directory.
  """
  values = config.to_dict()
  for name, setting in schema.walk(RunSettings()):
    *sections, last = name.split('.')
    section = functools.reduce(operator.getitem, sections, values)
    section[last] = setting.domain.check(section[last], name)
  values['task'] = canonical(values['task'])
  return json.loads(json.dumps(values, default=json_default))


def _by_name(config: Mapping[str, Any]) -> dict[str, Any]:
  return flax.traverse_util.flatten_dict(dict(config), sep='.')


@contextlib.contextmanager
def claim(folder: Path, tasks: Sequence[str] = ()) -> Iterator[None]:
  """Holds a folder for this process alone, and makes it where it is missing.

  The system lets go of it when the process ends, however it ends. What `whole` could not move into
  place in it, since its process was killed, is removed. Where the block raises before anything is
  in the folder, it is left as it was.

  Args:
    folder: path of the folder.
    tasks: folders in it that are workdirs of a suite's runs.

  Raises:
    InUseError: another process holds it.
    ValueError: its name cannot be printed, it is a file, it has files and is not a workdir, or
      something in it leads out of it.
    OSError: it cannot be written.
  """
  # Training states cannot be saved below a name that is not UTF-8.
  for name in os.path.abspath(folder).split(os.sep):
    require_printable('The path of the workdir', [name])
  if os.path.lexists(folder) and not os.path.isdir(folder):
    raise ValueError(f'{printable(folder)} is no folder; choose another --workdir.')
  before = names_in(folder)
  _refuse_links(folder, tasks)
  _refuse_strangers(folder, tasks)
  with writing(folder):
    os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, LOCK)
  with _open_lock(path) as file:
    _lock(file, path)
    with writing(folder):
      file.seek(0)
      file.write(_HOLDER + f'{os.getpid()} on {socket.gethostname()}\n'.encode())
      file.truncate()  # at last: an empty lock says nothing, and a kill may come in between
      _remove_partial_files(folder)
    try:
      yield
    except BaseException:
      abandon(folder, before)
      raise


def _open_lock(path: str) -> BinaryIO:
  """Opens the file that is locked, and makes it where it is missing; nobody else's is touched.

  Raises:
    ValueError: a link or a file of somebody else has its name.
    OSError: it cannot be written.
  """
  refusal = ValueError(
    f'{path} is no lock that glora_jax wrote; remove it, or choose another --workdir.'
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
  """Locks a file that is open.

  Raises:
    InUseError: another process has locked it, or had until now.
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
      '%s: no locks on this file system (%s); see to it that one process at a time uses it.',
      folder,
      error.strerror,
    )
  # Who found nothing to do removes the lock, and the folder that was made for it.
  if not os.path.exists(path) or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
    raise InUseError(f'The workdir {folder} was in use until now; start the same command again.')


def is_finished(workdir: Path) -> bool:
  """Whether a run or a comparison has written its result, which is the last of all."""
  return os.path.exists(os.path.join(workdir, 'result.json'))


def names_in(folder: Path) -> set[str] | None:
  """The names in a folder; None where there is no such folder."""
  return set(os.listdir(folder)) if os.path.isdir(folder) else None


def abandon(folder: Path, before: set[str] | None) -> None:
  """Leaves a folder as it was before, where nothing but the lock was added to it.

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


def _refuse_links(folder: Path, tasks: Sequence[str]) -> None:
  """Raises ValueError where a folder that a run writes into is a link, which leads out of it."""
  paths = [os.path.join(folder, name) for name in FOLDERS]
  # 'WORKDIR/food101/4/0' lies in folders of the suite.
  above = [str(path) for task in tasks for path in (task, *pathlib.PurePath(task).parents)]
  inside = [path for path in above if len(path) > len(os.fspath(folder))]
  if links := [path for path in (*paths, *inside) if os.path.islink(path)]:
    raise ValueError(
      f'{links[0]} is a link; a run writes into no folder outside of its workdir. Remove the link, '
      'or choose another --workdir.'
    )


def _refuse_strangers(folder: Path, tasks: Sequence[str]) -> None:
  """Raises ValueError where a folder is not a workdir and has more in it than workdirs of tasks."""
  names = names_in(folder) or set()
  if names_in(os.path.join(folder, 'compiled')) == set():
    names.discard('compiled')  # JAX makes it, in another process of a suite before there is a lock
  if all(name == LOCK or is_partial(name) for name in names) or _is_workdir(folder):
    return
  for name in sorted(names - {LOCK}):
    path = os.path.join(folder, name)
    if not any(task == path or task.startswith(os.path.join(path, '')) for task in tasks):
      raise ValueError(
        f'{printable(folder)} is not empty and not a workdir of glora_jax: {printable(name)} is '
        'there. Choose a new or empty folder as --workdir.'
      )
    _refuse_strangers(path, tasks)


def _is_workdir(folder: Path) -> bool:
  """Whether a folder has our lock, the first file that is written into a workdir, or a config."""
  lock, config = (os.path.join(folder, name) for name in (LOCK, 'config.json'))
  if os.path.isfile(lock):
    with open(lock, 'rb') as file:
      if file.read(len(_HOLDER)) == _HOLDER:
        return True
  content = load_json(config, _REMEDY) if os.path.isfile(config) else None
  stamp = content.get(STAMP) if isinstance(content, dict) else None
  return isinstance(stamp, dict) and stamp.get('kind') == 'config'


def _remove_partial_files(folder: Path) -> None:
  """Removes what `whole` has left in a folder and in those below it that a run writes into."""
  below = [os.walk(os.path.join(folder, name)) for name in FOLDERS]
  parents = [folder, *(parent for walk in below for parent, _, _ in walk)]
  for parent in parents:
    for item in list(os.scandir(parent)):
      if is_partial(item.name) and item.is_file(follow_symlinks=False):
        os.remove(item.path)
