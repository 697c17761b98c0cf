"""With what a run was made, process by process: noted as each begins, kept with the result."""

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
from glora_jax.files import Path, write_json
from glora_jax.mesh import primary
from glora_jax.records import read_record

FILE = 'provenance.json'
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
_COMMAND, _MODULE = 'glora', 'glora_jax.main'
_OPTIONS_WITH_VALUE = ('-W', '-X', '--check-hash-based-pycs')


class Made(TypedDict):
  """With what a process made its part of a result.

  Attributes:
    command: the command line; '' where a program of the user's called this package.
    versions: version of every package that matters, and of Python, by name.
    device: the devices in words.
  """

  command: str
  versions: dict[str, str]
  device: str


class _Record(TypedDict):
  processes: list[Made]


def note(workdir: Path, made: Made | None = None) -> None:
  """Adds a process to `provenance.json`, where none before it was alike.

  Args:
    workdir: folder of the run.
    made: with what the process made its part; None for this process.

  Raises:
    ValueError, OSError: the file is damaged, of a later version, or cannot be written.
  """
  processes, made = recorded(workdir), made or current()
  if made not in processes and primary():
    write_json(os.path.join(workdir, FILE), {'processes': [*processes, made]}, 'provenance')


def recorded(workdir: Path) -> list[Made]:
  """What a run's result says of the processes that made it, in their order."""
  path = os.path.join(workdir, FILE)
  if not os.path.exists(path):
    return []
  remedy = 'remove it; with what the run was made is all that is lost'
  return read_record(path, 'provenance', _Record, remedy)['processes']


def current() -> Made:
  """With what this process makes its part."""
  versions = {'glora_jax': glora_jax.__version__, 'Python': platform.python_version()}
  versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
  kinds = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  device = f'{kinds}; {os.cpu_count()} cores of {platform.machine()}, {platform.system()}'
  return {'command': command_of(sys.orig_argv), 'versions': versions, 'device': device}


def command_of(words: Sequence[str]) -> str:
  """The command of this package that a process was started as; '' where it was another one.

  Args:
    words: the words of the command line, with the interpreter.

  Example:
    >>> command_of(['/usr/bin/python3', '-m', 'glora_jax.main', '--config', 'my own.py'])
    "python -m glora_jax.main --config 'my own.py'"
    >>> command_of(['/usr/bin/python3', '/usr/bin/glora', '--config', 'quickstart'])
    'glora --config quickstart'
    >>> command_of(['python', '-u', '-X', 'dev', '/usr/bin/glora', '--open'])
    'glora --open'
    >>> command_of(['python', 'mine.py', 'glora_jax.main'])
    ''
  """
  if words and os.path.basename(words[0]) == _COMMAND:
    return shlex.join([_COMMAND, *words[1:]])
  rest = _after_options(words[1:])
  if rest[:1] == [_MODULE]:
    return shlex.join(['python', '-m', *rest])
  if rest and os.path.basename(rest[0]) == _COMMAND:
    return shlex.join([_COMMAND, *rest[1:]])
  return ''


def _after_options(words: Sequence[str]) -> list[str]:
  """What follows the interpreter's own options: the script or the module, and its arguments."""
  rest = list(words)
  while rest and rest[0].startswith('-'):
    del rest[: 2 if rest[0] in _OPTIONS_WITH_VALUE else 1]
  return rest
