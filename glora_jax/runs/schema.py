"""Settings as frozen dataclasses: one place that checks them, prints their help and documents them.

A section of a config is a frozen dataclass. Its annotations say which type a value has, `Literal`
for a choice, `| None` where it may be left open; `field` adds the range and the help. A dataclass
that knows nothing of this module is a section, too: its help is read from the `Attributes:` of its
docstring, and what its `__post_init__` refuses is refused here with the section's name before it.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import ml_collections

Section = TypeVar('Section')
HELP_WIDTH = 100
_UNSET = object()
_NOTHING: Mapping[str, Any] = types.MappingProxyType({})
_NOUNS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text'}
_PLURALS = {int: 'whole numbers', float: 'numbers', str: 'texts'}


@dataclasses.dataclass(frozen=True)
class Limits:
  """Which values of a field's type are taken; those of a sequence or mapping are its elements.

  Attributes:
    at_least: the smallest number taken.
    at_most: the largest number taken.
    above: a number that all taken numbers exceed.
    below: a number that exceeds all taken numbers.
    choices: the texts taken; empty for all.
    nonempty: whether an empty text or sequence is refused.
    check: what refuses a text, of a mapping a name that its default lacks, by a ValueError of one
      sentence; None for nothing more than the above.
  """

  at_least: float | None = None
  at_most: float | None = None
  above: float | None = None
  below: float | None = None
  choices: tuple[str, ...] = ()
  nonempty: bool = False
  check: Callable[[str], None] | None = None

  def admit(self, number: float) -> bool:
    """Whether a number is finite and within the range."""
    return (
      math.isfinite(number)
      and (self.at_least is None or number >= self.at_least)
      and (self.at_most is None or number <= self.at_most)
      and (self.above is None or number > self.above)
      and (self.below is None or number < self.below)
    )

  def range(self) -> str:
    """The range in words, 'at least 0 and below 1'; empty where every number is taken."""
    bounds = {
      'at least': self.at_least,
      'above': self.above,
      'at most': self.at_most,
      'below': self.below,
    }
    return ' and '.join(f'{word} {bound}' for word, bound in bounds.items() if bound is not None)


@dataclasses.dataclass(frozen=True)
class Setting:
  """One field of a section, and all that is known of it.

  Attributes:
    name: the field's name.
    kind: the annotated type, without its `| None`.
    optional: whether None is a value.
    default: the value where nothing is given; for a section within this one, an instance of it.
    limits: which values of the type are taken.
    help: what the field means.
    absent: what a config means that was written before the field existed.
    within: ranges of the fields of a section, by name, where it does not say them itself.
  """

  name: str
  kind: Any
  optional: bool
  default: Any
  limits: Limits
  help: str
  absent: Any
  within: Mapping[str, Limits]

  @property
  def is_section(self) -> bool:
    """Whether the field is itself a section."""
    return dataclasses.is_dataclass(self.kind)


def field(default: Any, help: str, *, absent: Any = _UNSET, **limits: Any) -> Any:
  """A field of a section with its help and its range.

  Args:
    default: the value where nothing is given.
    help: what the field means, a noun phrase that can be read alone.
    absent: what a config means that was written before the field existed; by default the default.
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
  if absent is not _UNSET:
    metadata['absent'] = absent
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
    kind, optional = _without_none(hints[item.name])
    limits = item.metadata.get('limits', within.get(item.name, Limits()))
    if typing.get_origin(kind) is Literal:
      limits = dataclasses.replace(limits, choices=typing.get_args(kind))
      kind = str
    default = getattr(defaults, item.name)
    text = item.metadata.get('help', documented.get(item.name, ''))
    absent = item.metadata.get('absent', default)
    inner = item.metadata.get('within', _NOTHING)
    found.append(Setting(item.name, kind, optional, default, limits, text, absent, inner))
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
  _check_names(values, settings, prefix)
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
      kind, _ = _without_none(typing.get_args(setting.kind)[1])
      content[setting.name] = {key: _or_placeholder(item, kind) for key, item in value.items()}
    else:
      content[setting.name] = _or_placeholder(value, setting.kind)
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
      summary = (inspect.getdoc(setting.kind) or '').partition('\n\n')[0].replace('\n', ' ')
      heading = textwrap.fill(f'{name}.*: {summary}', HELP_WIDTH)
      sections.append(f'{heading}\n\n{describe(setting.default, f"{name}.", setting.within)}')
    else:
      text = textwrap.fill(setting.help, HELP_WIDTH - 6)
      lines.append(f'  {name}={_shown(setting.default)}    ({_expected(setting)})')
      lines.append(textwrap.indent(text, ' ' * 6))
  return '\n'.join(lines) + '\n' + ''.join(f'\n{text}' for text in sections)


def _without_none(kind: Any) -> tuple[Any, bool]:
  """(a type without its `| None`, whether it had one)."""
  if typing.get_origin(kind) not in (typing.Union, types.UnionType):
    return kind, False
  others = [member for member in typing.get_args(kind) if member is not type(None)]
  return others[0], len(others) < len(typing.get_args(kind))


def _attributes(section: type) -> dict[str, str]:
  """The texts under `Attributes:` in the docstrings of a class and of those it inherits from."""
  found = {}
  for base in reversed(section.__mro__):
    text = inspect.cleandoc(base.__doc__ or '').partition('Attributes:\n')[2]
    for _, names, meaning in re.findall(r'^( +)(\w+(?:, \w+)*): (.+(?:\n\1 +.+)*)', text, re.M):
      found |= dict.fromkeys(names.split(', '), ' '.join(meaning.split()))
  return found


def _check_names(values: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
  for name in values:
    if name not in known:
      raise ValueError(
        f"The config field '{prefix}{name}' is unknown; there are: {', '.join(sorted(known))}."
      )
  for name in known:
    if name not in values:
      raise ValueError(
        f"The config field '{prefix}{name}' is missing; start from config.default_config()."
      )


def _check(value: Any, setting: Setting, path: str) -> Any:
  """The value as the section takes it, or ValueError."""
  if setting.is_section:
    if not isinstance(value, Mapping):
      raise ValueError(f'{path}={value!r} must be a section of fields.')
    return build(setting.kind, value, path, setting.within)
  if value is None and setting.optional:
    return None
  origin, arguments = typing.get_origin(setting.kind), typing.get_args(setting.kind)
  if origin is None:
    _check_scalar(value, setting.kind, setting, path)
    return value
  if issubclass(origin, Mapping):
    return _check_mapping(value, arguments[1], setting, path)
  return _check_sequence(value, arguments, setting, path)


def _check_scalar(value: Any, kind: Any, setting: Setting, path: str) -> None:
  if kind is Any:
    return
  if not _is_a(value, kind):
    raise ValueError(f'{path}={value!r} must be {_NOUNS[kind]}{_or_none(setting)}.')
  if kind is str:
    _check_text(value, setting, path)
  elif kind is not bool:
    _check_number(value, setting, path)


def _check_text(text: str, setting: Setting, path: str) -> None:
  choices = setting.limits.choices
  if choices and text not in choices:
    raise ValueError(f"{path}='{text}' is unknown; it is one of {', '.join(choices)}.")
  if setting.limits.nonempty and not text:
    raise ValueError(f'{path}={text!r} must not be empty: {setting.help}.')
  _check_by(setting.limits.check, text, f'{path}={text!r}')


def _check_by(check: Callable[[str], None] | None, text: str, shown: str) -> None:
  """Raises ValueError with what is shown before the sentence of a check that refuses the text."""
  if check is None:
    return
  try:
    check(text)
  except ValueError as error:
    raise ValueError(f'{shown}: {error}') from error


def _check_number(number: float, setting: Setting, path: str) -> None:
  if not setting.limits.admit(number):
    wanted = setting.limits.range() if math.isfinite(number) else 'a finite number'
    raise ValueError(f'{path}={number!r} must be {wanted}{_or_none(setting)}.')


def _check_mapping(value: Any, kind: Any, setting: Setting, path: str) -> dict[str, Any]:
  if not isinstance(value, Mapping):
    raise ValueError(f'{path}={value!r} must be a dictionary.')
  if setting.default:
    checked = {} if setting.limits.check is None else dict.fromkeys(value)
    _check_names(value, {**setting.default, **checked}, f'{path}.')
    for name in checked.keys() - setting.default.keys():
      _check_by(setting.limits.check, name, f'{path}.{name}')
  kind, optional = _without_none(kind)
  for name, item in value.items():
    if item is not None or not optional:
      _check_scalar(item, kind, setting, f'{path}.{name}')
  return dict(value)


def _check_sequence(value: Any, kinds: tuple, setting: Setting, path: str) -> tuple:
  kind = kinds[0]
  length = None if len(kinds) == 1 or kinds[1] is ... else len(kinds)
  if not isinstance(value, tuple | list) or length not in (None, len(value)):
    raise ValueError(f'{path}={value!r} must be {_expected(setting)}.')
  if setting.limits.nonempty and not value:
    raise ValueError(f'{path}={tuple(value)} must not be empty: {setting.help}.')
  for index, item in enumerate(value):
    _check_scalar(item, kind, setting, f'{path}[{index}]')
  return tuple(value)


def _is_a(value: Any, kind: type) -> bool:
  """Whether a value has a type, where whole numbers are numbers, and True is no number."""
  abstract = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
  return isinstance(value, abstract) and isinstance(value, bool) == (kind is bool)


def _or_placeholder(value: Any, kind: Any) -> Any:
  if value is not None:
    return value
  return ml_collections.config_dict.placeholder(typing.get_origin(kind) or kind)


def _or_none(setting: Setting) -> str:
  return ', or None' if setting.optional else ''


def _expected(setting: Setting) -> str:
  """The type and range of a field in words."""
  kind, limits = setting.kind, setting.limits
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if limits.choices and origin is None:
    return f'one of {", ".join(limits.choices)}{_or_none(setting)}'
  if origin is None:
    words = _NOUNS[kind]
  elif issubclass(origin, Mapping):
    words = f'a dictionary of {_PLURALS.get(_without_none(arguments[1])[0], "values")} by name'
  elif len(arguments) > 1 and arguments[1] is not ...:
    words = f'{len(arguments)} {_PLURALS[arguments[0]]}'
  else:
    words = f'a tuple of {_PLURALS[arguments[0]]}'
  if limits.choices:
    words = f'{words} out of {", ".join(limits.choices)}'
  bounds = limits.range()
  return f'{words}{", " if bounds else ""}{bounds}{_or_none(setting)}'


def _shown(value: Any) -> str:
  """A default as the command line takes it."""
  return repr(dict(value)) if isinstance(value, Mapping) else str(value)
