"""The origins of a run: its weights and its processes.

The weights are recorded because their name, path or URL may later stand for others.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import TypedDict

import jax

import glora_jax
from glora_jax import hub
from glora_jax.files import Path, read_json, write_json
from glora_jax.mesh import primary
from glora_jax.vision.files import sha256_of
from glora_jax.vision.models import weights
from glora_jax.vision.models.checkpoint import JSON_FILES, digest, hub_name, locate
from glora_jax.vision.models.fetch import fetch
from glora_jax.vision.runs.settings import ModelSettings

WEIGHTS = 'weights.json'
PROVENANCE = 'provenance.json'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')


class _Weights(TypedDict):
  weights: str
  revision: str
  sha256: str


def find_weights(settings: ModelSettings, workdir: Path) -> str:
  """The path of a run's weights on this machine, downloaded if needed.

  The checksum of their file is written to `weights.json`, so that a resumed run has the same
  weights. A branch on the hub moves on, so its commit at the first start is written there and used
  from then on.

  Args:
    settings: the section of the config.
    workdir: folder of the run.

  Raises:
    ValueError: the weights are not the recorded or expected ones; see also `fetch`.
  """
  name, revision = settings.weights, ''
  if name == weights.EMBEDDED:
    return fetch(name, settings.sha256)
  record = _read(workdir)
  if record and record['weights'] != name:  # no stage has used the old ones
    record = {}
  if hub.is_hub_name(name := str(hub_name(name))) and record:
    name = str(hub.parse(name)._replace(revision=record['revision']))
  path = fetch(name, settings.sha256)
  if hub.is_hub_name(name):
    revision = os.path.basename(path)
  # `fetch` has checked the file against a given checksum.
  sha256 = settings.sha256.lower() if settings.sha256 else digest(locate(path))
  if record and record['sha256'] != sha256:
    raise ValueError(
      f'{path} has SHA-256 {sha256}, but this run began with weights of {record["sha256"]}; '
      'restore those, or choose another --workdir.'
    )
  if not record and primary():
    record = _Weights(weights=settings.weights, revision=revision, sha256=sha256)
    write_json(os.path.join(workdir, WEIGHTS), record, 'weights')
  return path


def identify_weights(settings: ModelSettings, path: str, workdir: Path) -> str:
  """A text that changes when a run's weights do, or the JSON files next to them, wherever they are.

  Args:
    settings: the section of the config.
    path: see `find_weights`, which has recorded the checksum.
    workdir: folder of the run.
  """
  if settings.weights == weights.EMBEDDED:  # the version of the package stands for them
    return weights.EMBEDDED
  folder = os.path.dirname(locate(path))
  beside = [os.path.join(folder, name) for name in JSON_FILES]
  digests = [sha256_of(file) if os.path.isfile(file) else 'none' for file in beside]
  return ' '.join([_read(workdir)['sha256'], *digests])


def read_weights(workdir: Path) -> dict[str, str]:
  """Facts in a run's result about weights on the hub, besides their name."""
  record = _read(workdir)
  if not record.get('revision'):
    return {}
  return {f'weights_{field}': record[field] for field in ('revision', 'sha256')}


def _read(workdir: Path) -> dict[str, str]:
  path = os.path.join(workdir, WEIGHTS)
  return read_json(path, 'weights', _Weights) if os.path.exists(path) else {}


class Made(TypedDict):
  """The circumstances in which a process made its part of a result.

  Attributes:
    command: the command line; '' if a user's program called this package.
    versions: versions of Python and of the important packages, by name.
    device: the devices in words.
  """

  command: str
  versions: dict[str, str]
  device: str


class _Processes(TypedDict):
  processes: list[Made]


def note_process(workdir: Path) -> None:
  """Adds this process to `provenance.json` in the folder of a run, unless an equal one is there.

  Raises:
    ValueError, OSError: the file is damaged, of a later version, or cannot be written.
  """
  processes, made = read_processes(workdir), current()
  if made not in processes and primary():
    write_json(os.path.join(workdir, PROVENANCE), {'processes': [*processes, made]}, 'provenance')


def read_processes(workdir: Path) -> list[Made]:
  """The processes that made a run's result, in order."""
  path = os.path.join(workdir, PROVENANCE)
  if not os.path.exists(path):
    return []
  remedy = 'remove it; only the record of how the run was made is lost'
  return read_json(path, 'provenance', _Processes, remedy)['processes']


def current() -> Made:
  """The circumstances of this process."""
  versions = {'glora_jax': glora_jax.__version__, 'Python': platform.python_version()}
  versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
  kinds = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  device = f'{kinds}; {os.cpu_count()} cores of {platform.machine()}, {platform.system()}'
  return {'command': command_of(sys.argv), 'versions': versions, 'device': device}


def command_of(words: Sequence[str]) -> str:
  """The command of this package that started a process; '' if another program did.

  Args:
    words: `sys.argv` of the process.

  Example:
    >>> command_of(['/site-packages/glora_jax/main.py', '--config', 'my own.py'])
    "python -m glora_jax.main --config 'my own.py'"
    >>> command_of(['/usr/bin/glora', '--config', 'quickstart'])
    'glora --config quickstart'
    >>> command_of(['mine.py', 'glora'])
    ''
  """
  program, *arguments = words
  if os.path.basename(program) == 'glora':
    return shlex.join(['glora', *arguments])
  is_module = program.endswith(os.path.join('glora_jax', 'main.py'))
  return shlex.join(['python', '-m', 'glora_jax.main', *arguments]) if is_module else ''
