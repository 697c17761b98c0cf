"""Config fields section by section, as a `ConfigDict` and as a help page."""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_collections
from pydantic.fields import FieldInfo

from glora_jax.vision.settings import expected

HELP_WIDTH = 100
Fields = list[tuple[str, FieldInfo, Any]]  # dotted name, declaration, value


def sections(settings: Any, prefix: str = '') -> Iterator[tuple[str, str, Fields]]:
  """(prefix of dotted names, summary, fields) of settings and of nested settings."""
  inner, fields = [], []
  for name, info in type(settings).__pydantic_fields__.items():
    value = getattr(settings, name)
    if dataclasses.is_dataclass(value):
      inner.append((value, f'{prefix}{name}.'))
    else:
      fields.append((prefix + name, info, value))
  summary = (inspect.getdoc(type(settings)) or '').partition('\n\n')[0]
  yield prefix, ' '.join(summary.split()), fields
  for value, its_prefix in inner:
    yield from sections(value, its_prefix)


def walk(settings: Any) -> Iterator[tuple[str, FieldInfo, Any]]:
  """(dotted name, declaration, value) of all fields."""
  for _, _, fields in sections(settings):
    yield from fields


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
  """Settings as a `ConfigDict`; fields that are None accept values of their type."""
  config = ml_collections.ConfigDict()
  for name, info in type(settings).__pydantic_fields__.items():
    value, kind = getattr(settings, name), info.annotation
    if dataclasses.is_dataclass(value):
      config[name] = to_config_dict(value)
    elif isinstance(value, Mapping):
      _, kind = typing.get_args(kind)
      items = {key: _or_placeholder(item, kind) for key, item in value.items()}
      config[name] = ml_collections.ConfigDict(items)
    else:
      config[name] = _or_placeholder(value, kind)
  return config


def describe(settings: Any, only: Collection[str] = ()) -> str:
  """The help text of settings: name, default, type, range and meaning of every field.

  Args:
    settings: an instance, whose values are the defaults.
    only: dotted names of the fields to show; empty for all.
  """
  lines = []
  for prefix, summary, fields in sections(settings):
    fields = [field for field in fields if not only or field[0] in only]
    if prefix and fields:
      lines += ['', textwrap.fill(f'--config.{prefix}*: {summary}', HELP_WIDTH), '']
    for name, info, value in fields:
      default = dict(value) if isinstance(value, Mapping) else value
      lines += [
        f'  --config.{name}={default}    ({expected(info)})',
        textwrap.indent(textwrap.fill(info.description or '', HELP_WIDTH - 6), ' ' * 6),
      ]
  return '\n'.join(lines)


def _or_placeholder(value: Any, kind: Any) -> Any:
  """None as a placeholder for the first type of a union."""
  if value is not None:
    return value
  while (origin := typing.get_origin(kind)) not in (None, tuple, typing.Literal):
    kind = typing.get_args(kind)[0]
  return ml_collections.config_dict.placeholder({typing.Literal: str}.get(origin, origin or kind))
