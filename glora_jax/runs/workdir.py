"""The folder that belongs to one run: who holds it, and for which config."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

try:
  import fcntl
except ImportError:  # Windows has no such locks
  fcntl = None

import flax
import ml_collections

from glora_jax.files import Path, read_json, write_json, writing
from glora_jax.mesh import primary
from glora_jax.runs.config import default_config, values_when_absent
from glora_jax.runs.sections import SpaceSettings

log = logging.getLogger(__name__)

# Fields that change no result: a run may go on with other values of them.
FREE_FIELDS = ('distributed.', 'mesh.', 'suite.prepare', 'watch.')


class Stopped(RuntimeError):
  """A run was asked to stop, and did, with everything saved."""

  def __init__(self, where: str, workdir: str):
    super().__init__(
      f'Stopped {where}. Everything is saved in {workdir}, and the same command goes on from there.'
    )


def claim_workdir(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes `config.json`, or compares it where there is one already.

  Another machine, or other values of `watch`, make no other run. A field that an older
  `config.json` lacks has the meaning that it had then (`config.values_when_absent`).

  Raises:
    ValueError: the workdir belongs to another config; the sentence has the differences.
  """
  path = os.path.join(workdir, 'config.json')
  given = json.loads(config.to_json())
  if not os.path.exists(path):
    if primary():
      write_json(path, given)
    return
  old, new = _meaning(read_json(path)), _meaning(given)
  changed = [
    f'{name} was {old.get(name)!r} and is now {new.get(name)!r}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and not name.startswith(FREE_FIELDS)
  ]
  if changed:
    raise ValueError(
      f'The workdir {workdir} belongs to another config: {"; ".join(changed)}. Choose another '
      '--workdir, or remove that one.'
    )


def read_config(workdir: Path) -> ml_collections.ConfigDict:
  """The config of a workdir; a field that its file lacks has the meaning that it had then.

  Raises:
    OSError: there is no `config.json`, or it cannot be read.
  """
  config = default_config()
  config.update_from_flattened_dict(values_when_absent())
  config.update(read_json(os.path.join(workdir, 'config.json')))
  return config


def _meaning(config: dict[str, Any]) -> dict[str, Any]:
  """A config's values by dotted name, with what stands for another value replaced by that."""
  values = {**values_when_absent(), **flax.traverse_util.flatten_dict(config, sep='.')}
  if values['space.ranks'] is None:
    values['space.ranks'] = list(SpaceSettings().ranks_of(values.get('structure', 'search')))
  return values


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[None]:
  """Holds a folder for this process alone, and makes it where it is missing.

  The system lets go of it when the process ends, however it ends. What `whole` could not move into
  place in it, since its process was killed, is removed.

  Raises:
    ValueError: another process holds it.
    OSError: it cannot be written.
  """
  with writing(folder):
    os.makedirs(folder, exist_ok=True)
    file = open(os.path.join(folder, 'lock'), 'a+')  # noqa: SIM115, open while it is held
  with file:
    try:
      if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.seek(0)
      holder = file.read().strip() or 'another process'
      raise ValueError(
        f'The workdir {folder} is in use by {holder}. Wait for it to end, or choose another '
        '--workdir.'
      ) from error
    except OSError as error:  # some network file systems
      log.warning(
        '%s: no locks on this file system (%s); see to it that one process at a time uses it.',
        folder,
        error.strerror,
      )
    with writing(folder):
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
      file.flush()
      _remove_partial_files(folder)
    yield


def _remove_partial_files(folder: Path) -> None:
  for name in glob.glob('**/*.partial', root_dir=folder, recursive=True):
    if re.search(r'\.\d+\.partial$', name):
      os.remove(os.path.join(folder, name))
