"""Config fields section by section, as a `ConfigDict` and as a help page."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from glora_jax.checks import expected, kinds_of, shown, validate
from glora_jax.errors import UserError

HELP_WIDTH = 100


class Field(NamedTuple):
  """A field of a config.

  Attributes:
    name: its dotted name.
    value: its default.
    kind: its annotation.
    limits: those of its numbers, see `checks.validate`.
    meaning: what the docstring of its section says of it.
  """

  name: str
  value: Any
  kind: Any
  limits: Mapping[str, float]
  meaning: str

  @property
  def expected(self) -> str:
    """Type and limits in words: 'an integer or None, at least 1'."""
    return expected(self.kind, **self.limits)


def sections(settings: Any, prefix: str = '') -> Iterator[tuple[str, str, list[Field]]]:
  """(prefix of dotted names, summary, fields) of settings and of nested settings."""
  inner, fields = [], []
  kinds, meanings = kinds_of(type(settings)), meanings_of(type(settings))
  for each in dataclasses.fields(settings):
    name, value = each.name, getattr(settings, each.name)
    if dataclasses.is_dataclass(value):
      inner.append((value, f'{prefix}{name}.'))
    else:
      meaning = meanings.get(name, '')
      fields.append(Field(prefix + name, value, kinds[name], each.metadata, meaning))
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


def walk(settings: Any) -> Iterator[Field]:
  """All fields of settings and of nested settings."""
  for _, _, fields in sections(settings):
    yield from fields


def read(section: type, values: Mapping[str, Any], prefix: str = '') -> Any:
  """Settings from nested values.

  Args:
    section: class of the settings.
    values: values of its fields by name; those of a nested section are a mapping, too.
    prefix: of the dotted names in the sentences of the error.

  Raises:
    UserError: a field is missing or unknown, or a value has another type or is not allowed; a line
      for each mistake.
  """
  fields = {each.name: each for each in dataclasses.fields(section)}
  known, mistakes = {}, []
  for name in dict.fromkeys((*fields, *values)):
    dotted = f'{prefix}{name}'
    try:
      if name not in values:
        raise ValueError(f'{dotted} is missing; start from config.default_config().')
      value = values[name]
      if name not in fields:
        raise ValueError(f'{dotted}={shown(value)} is unknown; remove it, or correct its name.')
      if dataclasses.is_dataclass(kind := kinds_of(section)[name]):
        known[name] = read(kind, validate(value, dict, dotted), f'{dotted}.')
      else:
        known[name] = validate(value, kind, dotted, **fields[name].metadata)
    except (TypeError, ValueError) as error:
      mistakes.append(str(error))
  try:
    if not mistakes:
      return section(**known)
  except (TypeError, ValueError) as error:  # of checks that a section does itself
    mistakes = [prefix + line for line in str(error).splitlines()]
  raise UserError('\n'.join(mistakes))


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
  """Settings as a `ConfigDict`, whose fields accept any value: `read` names those that are wrong.

  A field that is None keeps its type, by which text of a command line is read.
  """
  kinds = kinds_of(type(settings))
  items = {name: _entry(getattr(settings, name), kind) for name, kind in kinds.items()}
  return ml_collections.ConfigDict(items, type_safe=False)


def _entry(value: Any, kind: Any) -> Any:
  """A value as a `ConfigDict` has it; None as a placeholder for the first type of its union."""
  if dataclasses.is_dataclass(value):
    return to_config_dict(value)
  if isinstance(value, Mapping):
    _, kind = typing.get_args(kind)
    items = {name: _entry(item, kind) for name, item in value.items()}
    return ml_collections.ConfigDict(items, type_safe=False)
  if value is not None:
    return value
  first, *_ = typing.get_args(kind)
  origin = typing.get_origin(first) or first
  return ml_collections.config_dict.placeholder(str if origin is typing.Literal else origin)


def describe(settings: Any, only: Collection[str] = ()) -> str:
  """The help text of settings: name, default, type, range and meaning of every field.

  Args:
    settings: an instance, whose values are the defaults.
    only: dotted names of the fields to show; empty for all.
  """
  lines = []
  for prefix, summary, fields in sections(settings):
    fields = [field for field in fields if not only or field.name in only]
    if prefix and fields:
      lines += ['', textwrap.fill(f'--config.{prefix}*: {summary}', HELP_WIDTH), '']
    for field in fields:
      lines += [
        f'  --config.{field.name}={field.value}    ({field.expected})',
        textwrap.indent(textwrap.fill(field.meaning, HELP_WIDTH - 6), ' ' * 6),
      ]
  return '\n'.join(lines)
