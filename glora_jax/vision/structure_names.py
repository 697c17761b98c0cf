"""Names of structures in a run: in its config, its tables, its folders and its stages."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

from glora_jax.checks import shown
from glora_jax.method.presets import RANKED, mask_of_target, parse_preset_name
from glora_jax.method.space import Spec

GENOME_ENDING = '.json'  # of a structure that is the path of a file
# No presets, but names of rows: structures from a search, a gradient, and other tasks' scores.
SEARCH, GRADIENT, TRANSFER = 'search', 'gradient', 'transfer'
FOUND = (SEARCH, GRADIENT, TRANSFER)  # within a budget
FINETUNING = 'finetuning'  # the base itself is trained
SUPERNET = 'supernet'  # the searched structure with the supernet's weights
TITLES = {  # in tables, of structures that have no rank
  SEARCH: 'searched',
  GRADIENT: 'gradient',
  TRANSFER: 'transferred',
  SUPERNET: "searched, with the supernet's weights",
  'linear': 'linear probe',
  'bitfit': 'BitFit',
  'ssf': 'SSF-like',
  'prompt': 'prompts',
  'scale_shift': 'scale and shift',
  'full': 'all of GLoRA',
  FINETUNING: 'full fine-tuning',
}
_KEPT_IN_FILES = ':@'
_LONGEST_NAME = 200  # as a file


def check_preset(name: str) -> None:
  """Raises ValueError unless a name is that of a preset, and fit for a folder."""
  parse_preset_name(name)
  if len(file_name(name)) > _LONGEST_NAME:
    raise ValueError(
      f'The preset {shown(name)} is too long for the name of its folder; give a shorter target.'
    )


def preset_label(spec: Spec, name: str) -> str:
  """The name of a preset in tables: its title, with its rank if it has one.

  Args:
    spec: the layers.
    name: a preset's name.

  Raises:
    ValueError: no preset can have this name, or its target matches no layer.

  Example:
    >>> from glora_jax import Layer, SearchSpace, Spec
    >>> spec = Spec((Layer('attn/qkv', 8, 24, space=SearchSpace(ranks=(2, 4))),))
    >>> preset_label(spec, 'lora@qkv'), preset_label(spec, 'ssf')
    ('lora:4@qkv', 'SSF-like')
  """
  base, rank, place = parse_preset_name(name)
  if base not in RANKED or rank is not None or not len(spec):
    return TITLES.get(base, base) + name.removeprefix(base)
  placed = zip(spec, mask_of_target(spec, place), strict=True)
  largest = sorted({layer.space.ranks[-1] for layer, is_placed in placed if is_placed})
  return f'{base}:{"/".join(map(str, largest))}{name.removeprefix(base)}'


def file_name(name: str) -> str:
  """A preset's name as that of a file, without characters that names of files may not have.

  Example:
    >>> file_name('lora:2@qkv'), file_name('lora@blocks/3')
    ('lora:2@qkv', 'lora@blocks%2F3')
  """
  return urllib.parse.quote(name, safe=_KEPT_IN_FILES)


def shortest_end(path: str, others: Iterable[str]) -> str:
  """The shortest end of a path that no other path has, for tables.

  Example:
    >>> shortest_end('runs/a/genome.json', ['runs/b/genome.json', 'mine.json'])
    'a/genome.json'
  """
  parts, rest = path.split('/'), [other.split('/') for other in others]
  for number in range(1, len(parts)):
    if all(other[-number:] != parts[-number:] for other in rest):
      return '/'.join(parts[-number:])
  return path


def stage_title(stage: str, structures: Mapping[str, Mapping[str, Any]]) -> str:
  """The title of a stage.

  Args:
    stage: its name, 'supernet' or 'training/lora' for instance.
    structures: their entries in `result.json`, by name.

  Example:
    >>> stage_title('training/lora', {'lora': {'label': 'lora:4'}}), stage_title('head', {})
    ('lora:4', 'linear probe for the gradient')
  """
  name = structure_of(stage)
  titles = {'head': 'linear probe for the gradient', 'finetune': 'finetuning'}
  return structures[name]['label'] if name in structures else titles.get(stage) or name or stage


def structure_of(stage: str) -> str:
  """The name of the structure that a stage trains; empty for other stages.

  Example:
    >>> structure_of('training/lora@blocks%2F3'), structure_of('finetune'), structure_of('head')
    ('lora@blocks/3', 'search', '')
  """
  return 'search' if stage == 'finetune' else urllib.parse.unquote(stage.partition('/')[2])
