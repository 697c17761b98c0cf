"""All that a command line can name: configs, structures, presets, tasks and weights."""

from __future__ import annotations

import ast
import os
import textwrap
import urllib.parse
from collections.abc import Iterable, Iterator

from glora_jax.data import catalog
from glora_jax.data.task import Source
from glora_jax.method.presets import PLACES, PRESETS
from glora_jax.models import fetch
from glora_jax.models.weights import EMBEDDED
from glora_jax.runs import config_files
from glora_jax.runs.sections import GENOME_ENDING, GRADIENT, SEARCH

_COLUMN, _WIDTH = 28, 100


def text() -> str:
  """What there is, and what of it is ready on this machine; nothing is fetched or prepared."""
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
  for name in config_files.names():
    with open(config_files.path_of(name), encoding='utf-8') as file:
      docstring = ast.get_docstring(ast.parse(file.read())) or ''
    yield name, docstring.partition('\n')[0]


def _structures() -> Iterator[tuple[str, str]]:
  yield SEARCH, 'a supernet of all forms is trained and searched'
  yield GRADIENT, 'what to train is read off one gradient'
  yield 'a preset', 'see below'
  yield f'PATH{GENOME_ENDING}', 'what an earlier run found'


def _tasks(source: Source) -> Iterator[tuple[str, str]]:
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
  yield EMBEDDED, 'comes with the package: a small ViT of Fashion-MNIST'
  for name, published in fetch.SHORTCUTS.items():
    is_here = os.path.exists(fetch.path_in_cache(published.url))
    host = urllib.parse.urlsplit(published.url).hostname
    yield name, f'{"here, downloaded" if is_here else "not here yet, is downloaded"} from {host}'
  yield 'PATH', 'a file or folder of timm, transformers, big_vision, ...'
  yield 'hf:OWNER/NAME', "from the Hugging Face hub; needs the package 'huggingface_hub'"
