"""How presets are called: BASE[:RANK][@PLACE], as `lora`, `hira:2`, `lora:2@qkv`."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from typing import Literal, NamedTuple

from glora_jax.limits import printable, shown
from glora_jax.method.placement import PLACES, placed_rows
from glora_jax.method.space import Spec

Choice = Literal['none', 'vector', 'rank', 'largest']


class Alleles(NamedTuple):
  """A form for each tensor, alike in all layers of the place.

  'rank' is the LoRA of the name's rank, or of the largest where the name has none; 'largest' is the
  form with most parameters.
  """

  A: Choice = 'none'
  B: Choice = 'none'
  C: Choice = 'none'
  D: Choice = 'none'
  E: Choice = 'none'


# The methods that GLoRA contains, and the largest subnet of all.
PRESETS: Mapping[str, Alleles] = {
  'linear': Alleles(),
  'bitfit': Alleles(E='vector'),
  'lora': Alleles(B='rank'),
  'ssf': Alleles(A='vector', D='vector', E='vector'),
  'prompt': Alleles(C='vector'),
  'full': Alleles(A='largest', B='largest', C='largest', D='largest', E='largest'),
  'hira': Alleles(A='rank'),
  'scale_shift': Alleles(A='vector', E='vector'),
  'scale_shift_lora': Alleles(A='vector', B='rank', E='vector'),
}
PRESET_NAMES = tuple(PRESETS)
GENOME_ENDING = '.json'  # of a structure that is the path of a file
GRADIENT = 'gradient'  # no preset: the structure that was read off a gradient, as a row's name
_RANKED = tuple(name for name, alleles in PRESETS.items() if 'rank' in alleles)
_KEPT_IN_FILES = ':@'
_LONGEST_NAME = 200


class PresetName(NamedTuple):
  """A preset's name in its parts.

  Attributes:
    base: the method, a key of `PRESETS`.
    rank: rank of its LoRA, or None for the largest.
    place: one of `PLACES`, or a regular expression on the layers' names; None for every layer.
  """

  base: str
  rank: int | None = None
  place: str | None = None


def parse_preset_name(name: str) -> PresetName:
  """The parts of a preset's name.

  Raises:
    ValueError: no preset can have this name, whatever the model; one sentence.

  Example:
    >>> parse_preset_name('lora:2@attn')
    PresetName(base='lora', rank=2, place='attn')
  """
  if not isinstance(name, str) or len(name) > _LONGEST_NAME or name != printable(name):
    raise ValueError(
      f"{shown(name)} is no preset's name; the presets are {', '.join(PRESETS)}, with a rank or a "
      "place behind as in 'lora:2@qkv'."
    )
  method, at, place = name.partition('@')
  base, colon, rank = method.partition(':')
  if base not in PRESETS:
    raise ValueError(
      f"The preset '{name}' is unknown; the presets are {', '.join(PRESETS)}, with a rank or a "
      "place behind as in 'lora:2@qkv'."
    )
  return PresetName(base, _rank(name, base, rank) if colon else None, _place(name, place, at))


def _rank(name: str, base: str, rank: str) -> int:
  if base not in _RANKED:
    raise ValueError(
      f"The preset '{name}' has a rank, and {base} has no LoRA; those with one are "
      f'{", ".join(_RANKED)}.'
    )
  if not re.fullmatch('[1-9][0-9]*', rank):
    raise ValueError(
      f"The preset '{name}' has the rank '{rank}'; it must be a whole number of 1 or more, as in "
      f"'{base}:2'."
    )
  return int(rank)


def _place(name: str, place: str, at: str) -> str | None:
  if not at:
    return None
  try:
    re.compile(place)
  except re.error as error:
    raise ValueError(
      f"The preset '{name}' is placed by '{place}', which is no regular expression ({error}); "
      f'the places are {", ".join(PLACES)} and regular expressions on the names of layers.'
    ) from error
  if not place:
    raise ValueError(
      f"The preset '{name}' has nothing behind its @; the places are {', '.join(PLACES)} and "
      'regular expressions on the names of layers.'
    )
  return place


def check_preset_name(name: str) -> None:
  """Checks a preset's name where there is no model yet.

  Raises:
    ValueError: no preset can have this name; one sentence.

  Example:
    >>> check_preset_name('lora:2@mlp')
  """
  parse_preset_name(name)


def preset_label(spec: Spec, name: str) -> str:
  """What tables call a preset: its name, with its rank where it has one.

  Args:
    spec: the layers.
    name: a preset's name.

  Raises:
    ValueError: no preset can have this name, or no layer is in its place.

  Example:
    >>> from glora_jax import Layer, SearchSpace, Spec, preset_label
    >>> spec = Spec((Layer('attn/qkv', 8, 24, space=SearchSpace(ranks=(2, 4))),))
    >>> preset_label(spec, 'lora@qkv'), preset_label(spec, 'ssf')
    ('lora:4@qkv', 'ssf')
  """
  base, rank, place = parse_preset_name(name)
  if base not in _RANKED or rank is not None or not len(spec):
    return name
  placed = zip(spec, placed_rows(spec, place), strict=True)
  largest = sorted({layer.space.ranks[-1] for layer, is_placed in placed if is_placed})
  return f'{base}:{"/".join(map(str, largest))}' + ('' if place is None else f'@{place}')


def file_name(name: str) -> str:
  """A preset's name as that of a file; a regular expression may hold what names of files may not.

  Example:
    >>> file_name('lora:2@qkv'), file_name('lora@blocks/3')
    ('lora:2@qkv', 'lora@blocks%2F3')
  """
  return urllib.parse.quote(name, safe=_KEPT_IN_FILES)
