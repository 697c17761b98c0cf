"""With what a result was made: the command, the versions, the device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import jax

import glora_jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
_COMMAND, _MODULE = 'glora', 'glora_jax.main'
_OPTIONS_WITH_VALUE = ('-W', '-X', '--check-hash-based-pycs')


class Provenance(NamedTuple):
  """With what a result was made.

  Attributes:
    command: the command line; '' where a program of the user's called this package.
    versions: version of every package that matters, and of Python, by name.
    device: the devices in words.
  """

  command: str = ''
  versions: Mapping[str, str] = {}
  device: str = ''


class Made(TypedDict):
  """A `Provenance` as `provenance.json` keeps it."""

  command: str
  versions: dict[str, str]
  device: str


def distinct(made: Iterable[Made]) -> list[Provenance]:
  """With what results were made, each once, in their order.

  Example:
    >>> made = {'command': 'glora', 'versions': {'jax': '0.10'}, 'device': '1 x cpu'}
    >>> distinct([made, made])
    [Provenance(command='glora', versions={'jax': '0.10'}, device='1 x cpu')]
  """
  found: list[Provenance] = []
  for each in made:
    provenance = Provenance(each['command'], each['versions'], each['device'])
    if provenance not in found:
      found.append(provenance)
  return found


def current() -> Provenance:
  """The provenance of what this process makes."""
  versions = {'glora_jax': glora_jax.__version__, 'Python': platform.python_version()}
  versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
  return Provenance(command_of(sys.orig_argv), versions, _device())


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


def _device() -> str:
  kinds = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
  return f'{kinds}; {os.cpu_count()} cores of {platform.machine()}, {platform.system()}'
