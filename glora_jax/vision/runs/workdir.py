"""The folder of one run: the process that holds it, and the config that it belongs to."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict

import filelock

from glora_jax.checks import printable, shown
from glora_jax.errors import UserError
from glora_jax.files import PARTIAL, Path, read_json, write_json, writing
from glora_jax.mesh import primary
from glora_jax.vision.data.catalog import expand
from glora_jax.vision.data.task import require_printable
from glora_jax.vision.runs.fields import as_json, by_name, is_among, values_of
from glora_jax.vision.runs.settings import RunSettings

SHARED = 'shared'  # folder of the stages that runs of a suite have in common
# Folders that a job or a suite writes into besides those of its stages.
WRITTEN = ('compiled', 'folded', 'profile', 'replaced', SHARED, 'tensorboard')

MARK = 'stage.json'  # in the folder of a stage
LOCK = 'glora_jax.lock'  # stays, and marks a folder as a workdir
TEST_LIST = 'test_list.json'  # once it exists, test images may have been read
_REMEDY = 'restore it, or choose another --workdir'


# Called whenever everything is saved; if it returns True, a run ends.
Stop = Callable[[], bool]


class Stopped(RuntimeError):
  """A run stopped on request, with everything saved."""

  def __init__(self, where: str, workdir: str):
    super().__init__(
      f'Stopped {where}. Everything is saved in {workdir}; the same command resumes.'
    )


class InUseError(UserError):
  """Another process holds a workdir."""


class _Row(TypedDict):
  """The fields of a structure in `test_list.json` that are read."""

  val_accuracy: float | None
  val_loss: float | None
  genome: list[list[int]]
  weights: str


class _TestList(TypedDict):
  """The content of `test_list.json`.

  Attributes:
    version: version of this package that made the structures.
    result: name of the one that is the result.
    structures: facts of each, by name, with a fingerprint of its weights.
  """

  version: str
  result: str
  structures: dict[str, _Row]


def changes_of(
  settings: RunSettings, workdir: Path, fields: Iterable[str], tasks: Sequence[Path] = ()
) -> dict[str, str]:
  """The fields that stages read and that differ from the `config.json` of the workdir.

  Each has a sentence with its old and its new value, by its dotted name.

  Until the list of tested structures is frozen, fields may be corrected; the stages that read them
  run again. The tasks of a suite may not change.

  Args:
    settings: the given config.
    workdir: folder of the job.
    fields: fields and sections that its stages read.
    tasks: folders of the runs of a suite, whose tests count as well.

  Raises:
    ValueError: the workdir belongs to another config; the message lists the differences.
  """
  is_new = not os.path.exists(os.path.join(workdir, 'config.json'))
  if is_new and not is_finished(workdir):  # a result without its config is an error below
    return {}
  old, new = by_name(read_config(workdir)), values_of(settings)
  changes = {
    name: f'{printable(name)} was {shown(old.get(name))} and is now {shown(new.get(name))}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and is_among(name, fields)
  }
  was_tested = any(map(has_test_list, (workdir, *tasks)))
  is_suite = any(len(expand(str(values.get('task')))) > 1 for values in (old, new))
  refused = [
    change for name, change in changes.items() if was_tested or (is_suite and name == 'task')
  ]
  if refused:
    reason = ' Its test images were read.' if was_tested else ''
    raise ValueError(
      f'The workdir {workdir} belongs to another config: {"; ".join(refused)}.{reason} '
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
  if not os.path.exists(path) or read_config(workdir) != content:
    write_json(path, content, 'config')


def read_config(workdir: Path) -> dict[str, Any]:
  """The content of `config.json`, see `as_json`.

  Raises:
    OSError: `config.json` is missing or cannot be read.
    ValueError: it is damaged, or of a later version.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    raise FileNotFoundError(f'{path} is missing; {_REMEDY}.')
  return read_json(path, 'config', dict[str, Any], _REMEDY)


@contextlib.contextmanager
def claim(folder: Path, stages: Iterable[str] = (), tasks: Collection[str] = ()) -> Iterator[None]:
  """Holds a folder for the primary process only, and makes it if it is missing.

  The system releases it when the process ends, even if it is killed. Partial files of killed
  processes are removed.

  Args:
    folder: path of the folder.
    stages: names of the folders in it that stages write into.
    tasks: names of the folders in it that are runs of a suite.

  Raises:
    InUseError: another process holds it.
    ValueError: its name cannot be printed, it is a file, it has files but is not a workdir, or a
      stage's folder is a link.
    OSError: it cannot be written.
  """
  if not primary():
    yield
    return
  # Training states cannot be saved below a name that is not UTF-8.
  require_printable('The path of the workdir', os.path.abspath(folder).split(os.sep))
  if os.path.lexists(folder) and not os.path.isdir(folder):
    raise ValueError(f'{printable(folder)} is not a folder; choose another --workdir.')
  names = names_in(folder)
  # JAX may make `compiled` before there is a lock.
  if LOCK not in names and (others := names.difference(tasks, ['compiled'])):
    raise ValueError(
      f'{printable(folder)} is not a workdir of glora_jax and has {printable(min(others))}; choose '
      'a new or empty folder as --workdir.'
    )
  written = [pathlib.Path(folder, name) for name in (*WRITTEN, *stages)]
  for path in written:
    if path.is_symlink():
      raise ValueError(
        f'{path} is a link, and a run writes only within its workdir; remove the link, or choose '
        'another --workdir.'
      )
  try:
    with writing(folder):
      os.makedirs(folder, exist_ok=True)
      lock = filelock.FileLock(os.path.join(folder, LOCK)).acquire(timeout=0)
  except filelock.Timeout as error:
    raise InUseError(
      f'The workdir {folder} is in use by another process. Wait for it to end, or choose another '
      '--workdir.'
    ) from error
  with lock:
    remove_partial_files(folder, written)
    yield


def read_test_list(workdir: Path) -> dict[str, Any] | None:
  """The list of structures that a run tests; None before it is frozen.

  Raises:
    OSError, ValueError: the list cannot be read, is damaged, or of a later version.
  """
  if not has_test_list(workdir):
    return None
  remedy = 'use a new workdir, because the structures that this one tests are no longer known'
  return read_json(os.path.join(workdir, TEST_LIST), 'test list', _TestList, remedy)


def freeze_test_list(workdir: Path, listed: Mapping[str, Any]) -> Mapping[str, Any]:
  """Writes the structures that a run tests, with fingerprints of their weights.

  Args:
    workdir: folder of the run.
    listed: the content of `test_list.json`.

  Returns:
    The frozen list, of this start, an earlier one, or a suite. Its accuracies and its result may
    differ from `listed`: other devices round differently, by an image or two.

  Raises:
    ValueError: another list was frozen before.
  """
  path, frozen = os.path.join(workdir, TEST_LIST), read_test_list(workdir)
  if frozen is None:
    if primary():
      write_json(path, listed, 'test list')
    return listed
  theirs, ours = (
    {name: (row['genome'], row['weights']) for name, row in content['structures'].items()}
    for content in (frozen, listed)
  )
  if theirs != ours:
    raise UserError(
      f'{path} was frozen with other structures than this run has now; use a new workdir.'
    )
  return frozen


def has_test_list(workdir: Path) -> bool:
  """Whether the list of tested structures is frozen, so that test images may have been read.

  The search of protocol='paper' reads them earlier, which all its tables state.
  """
  return os.path.exists(os.path.join(workdir, TEST_LIST))


def is_finished(workdir: Path) -> bool:
  """Whether a run has written its result, which comes last."""
  return os.path.exists(os.path.join(workdir, 'result.json'))


def names_in(folder: Path) -> set[str]:
  """The names in a folder; none if it does not exist."""
  return set(os.listdir(folder)) if os.path.isdir(folder) else set()


def remove_partial_files(folder: Path, written: Iterable[pathlib.Path] = ()) -> None:
  """Removes partial files from a folder and from those in it that a run writes into."""
  pattern = f'*{PARTIAL}'
  partial = [*pathlib.Path(folder).glob(pattern)]
  partial += [path for inside in written for path in inside.rglob(pattern)]
  for path in partial:
    path.unlink(missing_ok=True)
