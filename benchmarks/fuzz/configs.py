"""Configs with one or two fields that are odd, at the stage where they are checked."""

import copy
import json
import os
import random
from typing import Any

from benchmarks.fuzz.oracle import Case, Fault
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import NASTY, shown
from glora_jax.limits import Domain
from glora_jax.runs.config import RunSettings, check_config, default_config
from glora_jax.runs.schema import walk
from glora_jax.runs.workdir import changes_of, claim_workdir, read_config

FIELDS = dict(walk(RunSettings()))
DEFAULTS = default_config().to_dict()
SECTIONS = sorted(name for name, value in DEFAULTS.items() if isinstance(value, dict))
TEXTS = (
  *('search', 'gradient', 'lora', 'lora:2@qkv', 'lora:0', 'lora:9' * 40, 'hira@('),
  *('lora@', '@', 'linear', 'x.json', '/', '.', '..', '~', 'digits', 'folder:', 'folder:/', 'csv:'),
  *('vtab/all', 'tfds:', 'hf:', 'hf:a/b', 'https://', 'embedded', 'train', 'loss', '0' * 64),
)
PAIRS = 0.4  # of the cases, which change two fields


class Given:
  """A config whose values may be of any type, as a config file can make it.

  Attributes:
    values: nested, by name.
  """

  def __init__(self, values: dict[str, Any]):
    self.values = values

  def to_dict(self) -> dict[str, Any]:
    """What `ConfigDict.to_dict` returns."""
    return copy.deepcopy(self.values)

  def to_json(self, json_encoder_cls: type[json.JSONEncoder] | None = None) -> str:
    """What `ConfigDict.to_json` returns."""
    return json.dumps(self.values, cls=json_encoder_cls)


def field_values(rng: random.Random, place: Place) -> Case:
  """Odd values in one or two fields, or in the place of a section."""
  values = copy.deepcopy(DEFAULTS)
  changes = {}
  for _ in range(1 + (rng.random() < PAIRS)):
    name = rng.choice(list(FIELDS)) if rng.random() < 0.97 else rng.choice(SECTIONS)
    changes[name] = _value(rng, name)
    _put(values, name, changes[name])
  if rng.random() < 0.03:
    changes['section'] = rng.choice(list(DEFAULTS))
    del values[changes['section']]
  config = Given(values)

  def attempt() -> RunSettings:
    return check_config(config)

  def in_other_order() -> RunSettings:
    names = list(values)
    rng.shuffle(names)
    return check_config(Given({name: values[name] for name in names}))

  def check(settings: RunSettings) -> None:
    os.makedirs(place.workdir)
    claim_workdir(config, place.workdir)
    if check_config(read_config(place.workdir)) != settings:
      raise Fault('config.json does not have the settings that were accepted')
    if changes := changes_of(config, place.workdir):
      raise Fault(f'the same config is another one for its workdir: {changes}')

  alike = {'another order of the fields': in_other_order}
  return Case(shown(changes), attempt, check, alike)


def _put(values: dict[str, Any], name: str, value: Any) -> None:
  """Sets a field by dotted name; nothing where its section is gone."""
  *sections, last = name.split('.')
  for section in sections:
    values = values[section]
    if not isinstance(values, dict):
      return
  values[last] = value


def _value(rng: random.Random, name: str) -> Any:
  """A value for a field: any, one at the edges of its range, a text that means something."""
  if name in SECTIONS or rng.random() < 0.3:
    return rng.choice(NASTY)
  domain = FIELDS[name].domain
  edges = _edges(domain)
  if edges and rng.random() < 0.8:
    value = rng.choice(edges)
    return value if rng.random() < 0.9 else [value]
  value = rng.choice((*TEXTS, *domain.limits.choices))
  return value if rng.random() < 0.7 else rng.choice([(value,), [value, value], {value: 1.0}])


def _edges(domain: Domain) -> list[Any]:
  """Numbers at, just within and just beyond the range of a field."""
  limits = domain.limits
  bounds = [limits.at_least, limits.at_most, limits.above, limits.below]
  known = [bound for bound in bounds if bound is not None]
  steps = (0, 1, -1, 1e-9, -1e-9)
  return [bound + step for bound in known for step in steps]
