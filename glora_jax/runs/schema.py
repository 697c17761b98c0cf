"""Settings as frozen dataclasses: one place that checks them, prints their help and documents them.

A section of a config is a frozen dataclass. Its annotations say which type a value has, `Literal`
for a choice, `| None` where it may be left open; `field` adds the range and the help. A dataclass
that knows nothing of this module is a section, too: its help is read from the `Attributes:` of its
docstring, and what its `__post_init__` refuses is refused here with the section's name before it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections

from glora_jax.limits import Domain, Limits, check_names, shown, without_none

Section = TypeVar('Section')
HELP_WIDTH = 100
_NOTHING: Mapping[str, Any] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Setting:
  """One field of a section, and all that is known of it.

  Attributes:
    name: the field's name.
    domain: the values that it can have.
    default: the value where nothing is given; for a section within this one, an instance of it.
    help: what the field means.
    within: ranges of the fields of a section, by name, where it does not say them itself.
  """

  name: str
  domain: Domain
  default: Any
  help: str
  within: Mapping[str, Limits]

  @property
  def is_section(self) -> bool:
    """Whether the field is itself a section."""
    return dataclasses.is_dataclass(self.domain.kind)


def field(default: Any, help: str, **limits: Any) -> Any:
  """A field of a section with its help and its range.

  Args:
    default: the value where nothing is given.
    help: what the field means, a noun phrase that can be read alone.
    **limits: fields of `Limits`.

  Example:
    >>> @dataclasses.dataclass(frozen=True)
    ... class Model:
    ...   rate: float = field(0.1, 'share of paths that are dropped', at_least=0, below=1)
    >>> build(Model, {'rate': 1.5})
    Traceback (most recent call last):
    ValueError: rate=1.5 must be at least 0 and below 1.
  """
  metadata = {'help': help, 'limits': Limits(**limits)}
  if isinstance(default, Mapping):
    return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def subsection(default: Any, **within: Limits) -> Any:
  """A field that is a section from another room, with the ranges that its own checks stand for."""
  return dataclasses.field(default=default, metadata={'within': within})


def settings_of(defaults: Any, within: Mapping[str, Limits] = _NOTHING) -> tuple[Setting, ...]:
  """The fields of a section, in their order.

  Args:
    defaults: an instance, whose values are the defaults.
    within: ranges of fields that do not say theirs, by name.
  """
  section = type(defaults)
  hints = typing.get_type_hints(section)
  documented = _attributes(section)
  found = []
  for item in dataclasses.fields(section):
    default = getattr(defaults, item.name)
    limits = item.metadata.get('limits', within.get(item.name, Limits()))
    text = item.metadata.get('help', documented.get(item.name, ''))
    names = default if isinstance(default, Mapping) else ()
    domain = Domain.of_annotation(hints[item.name], limits, text, names)
    inner = item.metadata.get('within', _NOTHING)
    found.append(Setting(item.name, domain, default, text, inner))
  return tuple(found)


def walk(
  defaults: Any, prefix: str = '', within: Mapping[str, Limits] = _NOTHING
) -> Iterator[tuple[str, Setting]]:
  """All fields of a section and of the sections within it that hold values, by dotted name."""
  for setting in settings_of(defaults, within):
    name = prefix + setting.name
    if setting.is_section:
      yield from walk(setting.default, f'{name}.', setting.within)
    else:
      yield name, setting


def build(
  section: type[Section],
  values: Mapping[str, Any],
  path: str = '',
  within: Mapping[str, Limits] = _NOTHING,
) -> Section:
  """Makes a section of a nested dictionary that has all of its fields.

  Args:
    section: the frozen dataclass, all of whose fields have defaults.
    values: a value, or a dictionary for a section, for each field.
    path: the dotted name of the section within the config; empty for the whole config.
    within: ranges of fields that do not say theirs, by name.

  Raises:
    ValueError: a field that is unknown or missing, or has a value that cannot be: of another type,
      out of range, not finite, no choice, or refused by the section itself. One sentence that
      names field, value and what was expected.
  """
  prefix = f'{path}.' if path else ''
  settings = {setting.name: setting for setting in settings_of(section(), within)}
  check_names(values, settings, prefix)
  checked = {
    name: _check(values[name], setting, prefix + name) for name, setting in settings.items()
  }
  try:
    return section(**checked)
  except ValueError as error:
    sentence = str(error)
    named = not path or sentence.startswith(prefix)
    raise ValueError(sentence if named else f'{path}: {sentence}') from error


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
  """A section's values as a `ConfigDict`; what is None can be given a value of the field's type."""
  content: dict[str, Any] = {}
  for setting in settings_of(settings):
    value = setting.default
    if setting.is_section:
      content[setting.name] = to_config_dict(value)
    elif isinstance(value, Mapping):
      kind, _ = without_none(typing.get_args(setting.domain.kind)[1])
      content[setting.name] = {key: _or_placeholder(item, kind) for key, item in value.items()}
    else:
      content[setting.name] = _or_placeholder(value, setting.domain.kind)
  return ml_collections.ConfigDict(content)


def describe(
  defaults: Any, prefix: str = '--config.', within: Mapping[str, Limits] = _NOTHING
) -> str:
  """The help of a section: name, default, type, range and meaning of every field within it."""
  lines = []
  sections = []
  for setting in settings_of(defaults, within):
    name = prefix + setting.name
    if setting.is_section:
      summary = (inspect.getdoc(setting.domain.kind) or '').partition('\n\n')[0].replace('\n', ' ')
      heading = textwrap.fill(f'{name}.*: {summary}', HELP_WIDTH)
      sections.append(f'{heading}\n\n{describe(setting.default, f"{name}.", setting.within)}')
    else:
      text = textwrap.fill(setting.help, HELP_WIDTH - 6)
      lines.append(f'  {name}={_shown(setting.default)}    ({setting.domain})')
      lines.append(textwrap.indent(text, ' ' * 6))
  return '\n'.join(lines) + '\n' + ''.join(f'\n{text}' for text in sections)


def _attributes(section: type) -> dict[str, str]:
  """The texts under `Attributes:` in the docstrings of a class and of those it inherits from."""
  found = {}
  for base in reversed(section.__mro__):
    text = inspect.cleandoc(base.__doc__ or '').partition('Attributes:\n')[2]
    for _, names, meaning in re.findall(r'^( +)(\w+(?:, \w+)*): (.+(?:\n\1 +.+)*)', text, re.M):
      found |= dict.fromkeys(names.split(', '), ' '.join(meaning.split()))
  return found


def _check(value: Any, setting: Setting, path: str) -> Any:
  """The value as the section takes it, or ValueError."""
  if not setting.is_section:
    return setting.domain.check(value, path)
  if not isinstance(value, Mapping):
    raise ValueError(f'{path}={shown(value)} must be a section of fields.')
  return build(setting.domain.kind, value, path, setting.within)


def _or_placeholder(value: Any, kind: Any) -> Any:
  if value is not None:
    return value
  return ml_collections.config_dict.placeholder(typing.get_origin(kind) or kind)


def _shown(value: Any) -> str:
  """A default as the command line takes it."""
  return repr(dict(value)) if isinstance(value, Mapping) else str(value)
