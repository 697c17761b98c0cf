"""The fields of a config by dotted name: which are read, and a word about those that are not."""

from __future__ import annotations

import dataclasses
import json
import logging
import operator
from collections.abc import Iterable, Mapping
from typing import Any

import flax

from glora_jax.data.catalog import canonical, expand
from glora_jax.files import json_default
from glora_jax.limits import shown
from glora_jax.runs.config import RunSettings

log = logging.getLogger(__name__)

# Fields that change no result: a job may go on with other values of them, and no key has them.
FREE = (
  'checkpoint_epochs',
  'data.cache',
  'data.workers',
  'distributed.',
  'mesh.',
  'suite.prepare',
  'watch.',
)
# What the context is made of, which every stage takes.
COMMON = (
  'data.',
  'job',
  'model.',
  'protocol',
  'seed',
  'space.',
  'structure',
  'suite.settings.',
  'task',
)


def as_json(settings: RunSettings) -> dict[str, Any]:
  """A config's values as its file has them; the task means the same from every directory."""
  values = json.loads(json.dumps(dataclasses.asdict(settings), default=json_default))
  return {**values, 'task': canonical(settings.task)}


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
  """Nested values of a config by dotted name, but for the free ones."""
  flat = flax.traverse_util.flatten_dict(dict(values), sep='.')
  return {name: value for name, value in flat.items() if not is_among(name, FREE)}


def values_of(settings: RunSettings) -> dict[str, Any]:
  """The values of all fields but the free ones, by dotted name."""
  return by_name(as_json(settings))


def is_among(name: str, fields: Iterable[str]) -> bool:
  """Whether a field, by its dotted name, is one of some fields and sections.

  Example:
    >>> is_among('finetune.epochs', ('budget', 'finetune.')), is_among('budget', ('finetune.',))
    (True, False)
  """
  return any(name == field or (field.endswith('.') and name.startswith(field)) for field in fields)


def warn_of_unread(settings: RunSettings, read: Iterable[str], given: Iterable[str]) -> None:
  """Names fields that somebody gives and that do nothing.

  A config file gives fields for other jobs, too; of those that it gives only some are named.

  Args:
    settings: the config.
    read: fields and sections that the stages read.
    given: names of fields that a command line gives.
  """
  compares = settings.job == 'compare'
  job = 'a comparison' if compares else f'a run of structure={shown(settings.structure)}'
  idle = {}
  if compares:
    idle['watch.tensorboard'] = 'what is trained side by side leaves no metrics'
  if len(expand(settings.task)) == 1:
    idle['suite.settings'] = "it is of a task that stands for several, as 'vtab/all'"
  if (base := settings.mesh.base) != 'sharded':
    idle['mesh.fsdp'] = f"mesh.base={base!r} keeps the weights whole; give 'sharded'"
  defaults = RunSettings()
  for name, reason in idle.items():
    value, default = map(operator.attrgetter(name), (settings, defaults))
    if value != default:
      log.warning('%s=%s does nothing in %s: %s.', name, shown(value), job, reason)
  used = (*read, *FREE)
  for name in given:
    if name not in idle and not is_among(name, used):
      log.warning('--config.%s does nothing in %s, which does not read it.', name, job)
