"""Config fields by dotted name: their values, those that are read, and the help page of all."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax

from glora_jax.checks import expected, kinds_of, shown
from glora_jax.files import json_default
from glora_jax.vision.data.catalog import canonical
from glora_jax.vision.models.weights import EMBEDDED
from glora_jax.vision.runs.settings import RunSettings

log = logging.getLogger(__name__)

_LARGE_RATE = 2e-3  # above it only the small backbone of the package was tuned

# Fields that change no result: a job may resume with other values, and no key contains them.
FREE = (
  'checkpoint_epochs',
  'data.cache',
  'data.dir',
  'data.root',
  'data.workers',
  'distributed.',
  'mesh.',
  'suite.prepare',
  'watch.',
)
# The fields that the context is made from, which every stage uses.
COMMON = (
  'data.',
  'model.',
  'protocol',
  'seed',
  'space.',
  'structure',
  'task',
)


NEEDED = (  # most often; `--help_config` shows these
  'task',
  'protocol',
  'structure',
  'seed',
  'budget',
  'presets',
  'model.weights',
  'model.image_size',
  'model.dtype',
  'augment.flip',
  'training.epochs',
  'training.batch_size',
  'training.learning_rate',
  'finetune.epochs',
)
HELP_WIDTH = 100


def as_json(settings: RunSettings) -> dict[str, Any]:
  """A config's values as `config.json` has them; the task is valid from every directory."""
  values = json.loads(json.dumps(dataclasses.asdict(settings), default=json_default))
  return {**values, 'task': canonical(settings.task)}


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
  """Nested values of a config by dotted name, without the free ones and the place of images."""
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(dict(values), sep='.')
  kind, _, path = str(flat.get('task')).partition(':')
  if path and kind in ('folder', 'csv'):  # compared by content, wherever they are
    flat['task'] = f'{kind}:PATH'
  return {name: value for name, value in flat.items() if not is_among(name, FREE)}


def values_of(settings: RunSettings) -> dict[str, Any]:
  """The values of all fields except the free ones, by dotted name."""
  return by_name(as_json(settings))


def fields_called(name: str) -> list[str]:
  """The dotted names of all fields of a name.

  Example:
    >>> fields_called('learning_rate')
    ['training.learning_rate', 'finetune.learning_rate']
  """
  names = (field.name for _, _, fields in sections(RunSettings()) for field in fields)
  return [full for full in names if full.endswith(f'.{name}')]


def is_among(name: str, fields: Iterable[str]) -> bool:
  """Whether a dotted name is among some fields and sections.

  Example:
    >>> is_among('finetune.epochs', ('budget', 'finetune.')), is_among('budget', ('finetune.',))
    (True, False)
  """
  return any(name == field or (field.endswith('.') and name.startswith(field)) for field in fields)


def warn_of_unread(settings: RunSettings, read: Iterable[str], given: Collection[str]) -> None:
  """Warns of fields that are set on a command line and have no effect.

  Args:
    settings: the config.
    read: fields and sections that the stages read.
    given: names of the fields. If another backbone is among them, learning rates that are not are
      named, too.
  """
  job = 'a suite' if settings.is_grid else f'a run of structure={shown(settings.structure)}'
  _warn_of_rates(settings, given)
  used = (*read, *FREE)
  for name in given:
    if not is_among(name, used):
      log.warning('--config.%s has no effect in %s.', name, job)


def _warn_of_rates(settings: RunSettings, given: Collection[str]) -> None:
  """Warns of learning rates that were chosen for another backbone or another task."""
  is_other = settings.model.weights != EMBEDDED
  if any(settings.suite.rate.values()):
    name, changing = 'suite.rate', {'model.weights', 'task'}
    advice = 'on the digits, with the small backbone; compare:tune chooses rates on your images'
    is_other = is_other or settings.task != RunSettings().task
  elif settings.training.learning_rate > _LARGE_RATE:
    name, changing = 'training.learning_rate', {'model.weights'}
    advice = 'for the small backbone of the package; others often need about 1e-3'
  else:
    return
  is_given = any(is_among(field, (name, f'{name}.')) for field in given)
  if is_other and not changing.isdisjoint(given) and not is_given:
    log.warning('%s was chosen %s.', name, advice)


class Field(NamedTuple):
  """A field of a config.

  Attributes:
    name: its dotted name.
    value: its default.
    expected: its type and limits in words: 'an integer or None, at least 1'.
    limits: those of its numbers, see `checks.validate`.
    meaning: its line in the docstring of its section.
  """

  name: str
  value: Any
  expected: str
  limits: Mapping[str, float]
  meaning: str


def sections(settings: Any, prefix: str = '') -> Iterator[tuple[str, str, list[Field]]]:
  """(prefix of dotted names, summary, fields) of settings and of nested settings."""
  inner, fields = [], []
  kinds, meanings = kinds_of(type(settings)), meanings_of(type(settings))
  for each in dataclasses.fields(settings):
    name, value = each.name, getattr(settings, each.name)
    if dataclasses.is_dataclass(value):
      inner.append((value, f'{prefix}{name}.'))
    else:
      words, meaning = expected(kinds[name], **each.metadata), meanings.get(name, '')
      fields.append(Field(prefix + name, value, words, each.metadata, meaning))
  summary = (inspect.getdoc(type(settings)) or '').partition('\n\n')[0]
  yield prefix, ' '.join(summary.split()), fields
  for value, its_prefix in inner:
    yield from sections(value, its_prefix)


def meanings_of(section: type) -> dict[str, str]:
  """The lines below `Attributes:` in the docstrings of a class and its bases, by field."""
  found = {}
  for each in reversed(section.__mro__):
    _, _, attributes = inspect.cleandoc(each.__doc__ or '').partition('\nAttributes:\n')
    for entry in re.split(r'\n(?=  \w)', attributes.partition('\n\n')[0]):
      name, _, meaning = entry.strip().partition(': ')
      found[name] = ' '.join(meaning.split()).removesuffix('.')
  return found


def describe(only: Collection[str] = ()) -> str:
  """The help text of a config: name, default, type, range and meaning of every field.

  Args:
    only: dotted names of the fields to show; empty for all.
  """
  lines = []
  for prefix, summary, fields in sections(RunSettings()):
    fields = [field for field in fields if not only or field.name in only]
    if prefix and fields:
      lines += ['', textwrap.fill(f'--config.{prefix}*: {summary}', HELP_WIDTH), '']
    for field in fields:
      lines += [
        f'  --config.{field.name}={field.value}    ({field.expected})',
        textwrap.indent(textwrap.fill(field.meaning, HELP_WIDTH - 6), ' ' * 6),
      ]
  return '\n'.join(lines)
