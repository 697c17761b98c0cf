"""What a command line can name: the configs of the package, and all that `--list` shows.

A config is found by its name: 'quickstart', 'own:photos/'.
"""

from __future__ import annotations

import ast
import itertools
import os
import textwrap
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

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


_COLUMN, _WIDTH = 28, 100


def inventory() -> str:
  """What there is, and what of it is ready on this machine; nothing is fetched or prepared."""
  # It imports JAX, for which a command line does not wait.
  from glora_jax.data.task import Source
  from glora_jax.method.presets import PLACES, PRESETS

  return '\n'.join(
    [
      'Configs: --config NAME[:ARGUMENTS]',
      *_rows(_configs()),
      '',
      'Structures: --config.structure=NAME',
      *_rows(_structures()),
      '',
      'Presets: --config.structure=NAME, or as rows beside it --config.presets="(\'NAME\',)"',
      f'  {", ".join(PRESETS)}',
      f'  with a rank, as lora:2, and a place, as lora:2@qkv: {", ".join(PLACES)}, or a regular',
      "  expression on the layers' names",
      '',
      'Tasks: --config.task=NAME',
      *_rows(_tasks(Source())),
      '',
      'Weights: --config.model.weights=NAME',
      *_rows(_weights()),
    ]
  )


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
  lines = []
  for name, meaning in rows:
    first, *further = textwrap.wrap(meaning, _WIDTH - _COLUMN)
    lines += [f'  {name}'.ljust(_COLUMN) + first, *(' ' * _COLUMN + line for line in further)]
  return lines


def _configs() -> Iterator[tuple[str, str]]:
  for name in names():
    with open(path_of(name), encoding='utf-8') as file:
      docstring = ast.get_docstring(ast.parse(file.read())) or ''
    yield name, docstring.partition('\n')[0]


def _structures() -> Iterator[tuple[str, str]]:
  from glora_jax.runs.sections import GENOME_ENDING, GRADIENT, SEARCH

  yield SEARCH, 'a supernet of all forms is trained and searched'
  yield GRADIENT, 'what to train is read off one gradient'
  yield 'a preset', 'see below'
  yield f'PATH{GENOME_ENDING}', 'what an earlier run found'


def _tasks(source: Any) -> Iterator[tuple[str, str]]:
  from glora_jax.data import catalog

  yield 'digits', "scikit-learn's; no download"
  for kind, family in catalog.FAMILIES.items():
    ready = [name for name in catalog.data_sets(kind) if catalog.is_ready(name, source)]
    names = ', '.join(map(str, family.parts.get('NAME', ())))
    which = f' ({", ".join(name.split("/")[1] for name in ready)})' if ready and names else ''
    title = f'{family.title}: {names}' if names else family.title
    yield '/'.join((kind, *family.parts)), f'{title}; ready: {len(ready)}{which}'
  yield 'folder:PATH', 'your own: a folder with a subfolder for each class'
  yield 'csv:PATH', 'your own: paths and labels'
  yield 'tfds:NAME', 'any image classification of TFDS'


def _weights() -> Iterator[tuple[str, str]]:
  from glora_jax.models import fetch
  from glora_jax.models.weights import EMBEDDED

  yield EMBEDDED, 'comes with the package: a small ViT of Fashion-MNIST'
  for name, published in fetch.SHORTCUTS.items():
    is_here = os.path.exists(fetch.path_in_cache(published.url))
    host = urllib.parse.urlsplit(published.url).hostname
    yield name, f'{"here, downloaded" if is_here else "not here yet, is downloaded"} from {host}'
  yield 'PATH', 'a file or folder of timm, transformers, big_vision, ...'
  yield 'hf:OWNER/NAME', "from the Hugging Face hub; needs the package 'huggingface_hub'"
