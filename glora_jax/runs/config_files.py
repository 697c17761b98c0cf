"""The configs that come with the package, found by their names: 'quickstart', 'own:photos/'."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

import glora_jax

_FLAGS = ('--config', '-config')  # absl takes one dash, too
_PACKAGE = os.path.dirname(os.path.abspath(glora_jax.__file__))
# A wheel has them in the package; a checkout, installed as it lies or not, at its top.
_PLACES = (os.path.join(_PACKAGE, 'configs'), os.path.join(os.path.dirname(_PACKAGE), 'configs'))
FOLDER = next(filter(os.path.isdir, _PLACES), _PLACES[0])


def names() -> list[str]:
  """The names of all configs that come with the package.

  Example:
    >>> 'quickstart' in names()
    True
  """
  files = os.listdir(FOLDER) if os.path.isdir(FOLDER) else ()
  return sorted(name.removesuffix('.py') for name in files if name.endswith('.py'))


def path_of(name: str) -> str:
  """The path of the config file that `--config` asks for.

  Args:
    name: the name of a config that comes with the package, also where a file in the current folder
      is called the same; else the path of a file.

  Raises:
    ValueError: there is no such file, and no config of this name.

  Example:
    >>> os.path.basename(path_of('quickstart'))
    'quickstart.py'
  """
  if name in names():
    return os.path.join(FOLDER, f'{name}.py')
  if os.path.isfile(name):
    return name
  raise ValueError(
    f'There is no config file {name or "without a name"}; give the path of one, or a name of those '
    f'that come with the package: {", ".join(names())}.'
  )


def with_paths(words: Sequence[str]) -> list[str]:
  """A command line whose `--config` gives a path where it gave a name.

  Args:
    words: the command line; what stands behind a colon, the config's arguments, is left as it is.

  Raises:
    ValueError: see `path_of`; or there are several.
  """
  replaced = [_with_path(word, before) for before, word in itertools.pairwise(['', *words])]
  if len(names := given(words)) > 1:
    raise ValueError(f'--config is there {len(names)} times ({", ".join(names)}); give it once.')
  return replaced


def given(words: Sequence[str]) -> list[str]:
  """The config files of a command line, as they were given, without their arguments."""
  values = [_value(word, before) for before, word in itertools.pairwise(['', *words])]
  return [value.partition(':')[0] for value in values if value is not None]


def _with_path(word: str, before: str) -> str:
  value = _value(word, before)
  if value is None:
    return word
  flag = word.removesuffix(value)
  name, colon, arguments = value.partition(':')
  return f'{flag}{path_of(name)}{colon}{arguments}'


def _value(word: str, before: str) -> str | None:
  """The value of `--config` in a word of the command line that follows another."""
  if before in _FLAGS:
    return word
  flag, equals, value = word.partition('=')
  return value if equals and flag in _FLAGS else None
