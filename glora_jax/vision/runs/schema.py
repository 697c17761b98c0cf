"""The help page of the config: type, default, range and meaning of every field, by section."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from glora_jax.checks import expected, kinds_of

HELP_WIDTH = 100


class Field(NamedTuple):
  """A field of a config.

  Attributes:
    name: its dotted name.
    value: its default.
    expected: its type and limits in words: 'an integer or None, at least 1'.
    limits: those of its numbers, see `checks.validate`.
    meaning: what the docstring of its section says of it.
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


def walk(settings: Any) -> Iterator[Field]:
  """All fields of settings and of nested settings."""
  for _, _, fields in sections(settings):
    yield from fields


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
