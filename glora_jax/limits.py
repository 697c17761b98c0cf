"""Which values a setting takes, and the sentence for one that it does not take.

A `Domain` is made of an annotation, which says the type, `Literal` for a choice, `| None` where it
may be left open, and of `Limits`. A frozen dataclass checks its fields by `check_fields`; the
schema of a config (`runs.schema`) checks and documents its own by the same domains.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

MOST_COUNTED = 2**31 - 1  # JAX counts in int32
_NOUNS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a text'}
_PLURALS = {int: 'whole numbers', float: 'numbers', str: 'texts'}
_LONGEST_SHOWN = 80  # characters of a value that a sentence quotes
_MOST_LISTED = 10  # names that a sentence has
_NOT_PRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


@dataclasses.dataclass(frozen=True)
class Limits:
  """Which values of a type are taken; those of a sequence or mapping are its elements.

  Attributes:
    at_least: the smallest number taken.
    at_most: the largest number taken; of whole numbers without one `MOST_COUNTED`.
    above: a number that all taken numbers exceed.
    below: a number that exceeds all taken numbers.
    choices: the texts taken; empty for all.
    nonempty: whether an empty text or sequence is refused.
    check: what refuses a text, of a mapping a name that is not known, by a ValueError of one
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
      is_finite(number)
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
class Domain:
  """The values that a setting can have.

  Attributes:
    kind: the annotated type, without its `| None`; a choice is a text.
    optional: whether None is a value.
    limits: which values of the type are taken.
    meaning: what the setting means, for the sentence about an empty value.
    names: the names that a mapping must have; empty where it may have any.
  """

  kind: Any
  optional: bool = False
  limits: Limits = Limits()
  meaning: str = ''
  names: tuple[str, ...] = ()

  @classmethod
  def of_annotation(
    cls, annotation: Any, limits: Limits = Limits(), meaning: str = '', names: Iterable[str] = ()
  ) -> Domain:
    """The domain of an annotation.

    Example:
      >>> domain = Domain.of_annotation(float | None, Limits(at_least=0, below=1))
      >>> print(domain)
      a number, at least 0 and below 1, or None
      >>> domain.check(2, 'share')
      Traceback (most recent call last):
      ValueError: share=2 must be at least 0 and below 1, or None.
    """
    kind, optional = without_none(annotation)
    if typing.get_origin(kind) is Literal:
      limits = dataclasses.replace(limits, choices=typing.get_args(kind))
      kind = str
    return cls(kind, optional, limits, meaning, tuple(names))

  def check(self, value: Any, name: str) -> Any:
    """The value as the setting takes it: a sequence is a tuple then, a mapping a dictionary.

    Numbers and arrays of NumPy and JAX become Python's, which can be compared and written.

    Args:
      value: any value.
      name: what the sentence calls the setting.

    Raises:
      ValueError: it is of another type, out of range, not finite, or no choice. One sentence that
        says name, value and what was expected.
    """
    value = plain(value)
    if value is None and self.optional:
      return None
    origin, arguments = typing.get_origin(self.kind), typing.get_args(self.kind)
    if origin is None:
      return self._scalar(value, self.kind, name)
    if issubclass(origin, Mapping):
      return self._check_mapping(value, arguments[1], name)
    return self._check_sequence(value, arguments, name)

  def __str__(self) -> str:
    """Type and range in words."""
    origin, arguments = typing.get_origin(self.kind), typing.get_args(self.kind)
    if self.limits.choices and origin is None:
      return f'one of {", ".join(self.limits.choices)}{self._or_none}'
    if origin is None:
      words = _NOUNS[self.kind]
    elif issubclass(origin, Mapping):
      words = f'a dictionary of {_PLURALS.get(without_none(arguments[1])[0], "values")} by name'
    elif len(arguments) > 1 and arguments[1] is not ...:
      words = f'{len(arguments)} {_PLURALS[arguments[0]]}'
    else:
      words = f'a tuple of {_PLURALS[arguments[0]]}'
    if self.limits.choices:
      words = f'{words} out of {", ".join(self.limits.choices)}'
    bounds = self.limits.range()
    return f'{words}{", " if bounds else ""}{bounds}{self._or_none}'

  @property
  def _or_none(self) -> str:
    return ', or None' if self.optional else ''

  def _scalar(self, given: Any, kind: Any, name: str) -> Any:
    value: Any = whole_number(given) if kind is int else plain(given)
    if kind is Any:
      return value
    if not _is_a(value, kind):
      raise ValueError(f'{name}={shown(plain(given))} must be {_NOUNS[kind]}{self._or_none}.')
    if kind is str:
      self._check_text(value, name)
    elif kind is not bool:
      self._check_number(value, kind, name)
    return value

  def _check_text(self, text: str, name: str) -> None:
    choices = self.limits.choices
    if choices and text not in choices:
      raise ValueError(f'{name}={shown(text)} is unknown; it is one of {", ".join(choices)}.')
    if self.limits.nonempty and not text:
      raise ValueError(f'{name}={text!r} must not be empty: {self.meaning}.')
    check_by(self.limits.check, text, f'{name}={shown(text)}')

  def _check_number(self, number: float, kind: type, name: str) -> None:
    limits = self.limits
    if kind is float and not is_finite(number):
      wanted = 'a finite number'
    elif kind is int and limits.at_most is None and number > MOST_COUNTED:
      wanted = f'at most {MOST_COUNTED}'
    elif limits.admit(number):
      return
    else:
      wanted = limits.range()
    raise ValueError(f'{name}={shown(number)} must be {wanted}{self._or_none}.')

  def _check_mapping(self, value: Any, kind: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
      raise ValueError(f'{name}={shown(value)} must be a dictionary.')
    if self.names:
      checked = {} if self.limits.check is None else dict.fromkeys(value)
      check_names(value, {**dict.fromkeys(self.names), **checked}, f'{name}.')
      for unknown in checked.keys() - set(self.names):
        check_by(self.limits.check, unknown, f'{name}.{unknown}')
    kind, optional = without_none(kind)
    taken = {}
    for key, item in value.items():
      if not isinstance(key, str) or not key or '.' in key:
        raise ValueError(f'{name}: the name {shown(key)} must be a text without a dot.')
      is_open = item is None and optional
      taken[key] = None if is_open else self._scalar(item, kind, f'{name}.{key}')
    return taken

  def _check_sequence(self, value: Any, kinds: tuple, name: str) -> tuple:
    length = None if len(kinds) == 1 or kinds[1] is ... else len(kinds)
    if not isinstance(value, tuple | list) or length not in (None, len(value)):
      raise ValueError(f'{name}={shown(value)} must be {self}.')
    if self.limits.nonempty and not value:
      raise ValueError(f'{name}={tuple(value)} must not be empty: {self.meaning}.')
    return tuple(self._scalar(item, kinds[0], f'{name}[{n}]') for n, item in enumerate(value))


def check_fields(settings: Any, ranges: Mapping[str, Limits]) -> None:
  """Checks all fields of a frozen dataclass, for its `__post_init__`.

  Args:
    settings: the instance; sequences in it become tuples.
    ranges: the limits of its fields, by name; a field that is not there has those of its type.

  Raises:
    ValueError: the first field whose value cannot be.

  Example:
    >>> @dataclasses.dataclass(frozen=True)
    ... class Noise:
    ...   sigma: float = 0.1
    ...   def __post_init__(self):
    ...     check_fields(self, {'sigma': Limits(at_least=0)})
    >>> Noise(sigma=float('nan'))
    Traceback (most recent call last):
    ValueError: sigma=nan must be a finite number.
  """
  hints = typing.get_type_hints(type(settings))
  for field in dataclasses.fields(settings):
    domain = Domain.of_annotation(hints[field.name], ranges.get(field.name, Limits()))
    value = domain.check(getattr(settings, field.name), field.name)
    object.__setattr__(settings, field.name, value)


def without_none(kind: Any) -> tuple[Any, bool]:
  """(a type without its `| None`, whether it had one)."""
  if typing.get_origin(kind) not in (typing.Union, types.UnionType):
    return kind, False
  others = [member for member in typing.get_args(kind) if member is not type(None)]
  return others[0], len(others) < len(typing.get_args(kind))


def check_names(values: Iterable[str], known: Iterable[str], prefix: str) -> None:
  """Checks that a config has the fields that it must have and no other.

  Args:
    values: the names that are given.
    known: the names that there are.
    prefix: what stands before the names in the sentence, 'supernet.'.

  Raises:
    ValueError: a name is unknown or missing.
  """
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


def check_type(value: Any, kind: type, name: str) -> None:
  """Checks an argument that must be an instance of a class.

  Raises:
    ValueError: it is something else.

  Example:
    >>> import pathlib
    >>> check_type('runs', pathlib.Path, 'folder')
    Traceback (most recent call last):
    ValueError: folder='runs' is no Path; give one.
  """
  if not isinstance(value, kind):
    raise ValueError(f'{name}={shown(value)} is no {kind.__name__}; give one.')


def check_callable(value: Any, name: str) -> None:
  """Raises ValueError for an argument that must be a function and is none."""
  if not callable(value):
    raise ValueError(f'{name}={shown(value)} is no function; give one.')


def check_by(check: Callable[[str], None] | None, text: str, named: str) -> None:
  """Raises ValueError with what is named before the sentence of a check that refuses the text."""
  if check is None:
    return
  try:
    check(text)
  except ValueError as error:
    raise ValueError(f'{named}: {error}') from error


def is_finite(number: float) -> bool:
  """Whether a number is finite, as a float too."""
  try:
    return math.isfinite(number)
  except OverflowError:  # a whole number that no float can hold
    return False


def plain(value: Any) -> Any:
  """A value with Python's numbers and lists in the place of scalars and arrays of NumPy and JAX."""
  return value.tolist() if hasattr(value, 'tolist') else value


def whole_number(value: Any) -> int | None:
  """A whole number, 2.0 for instance, as Python's; None where it is none.

  Example:
    >>> import numpy as np
    >>> whole_number(np.float32(2)), whole_number(2.5), whole_number(True)
    (2, None, None)
  """
  value = plain(value)
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  return value if isinstance(value, int) and not isinstance(value, bool) else None


def shown(value: Any) -> str:
  """A value as a sentence quotes it, which is not endless."""
  try:
    text = repr(value)
  except ValueError:  # Python writes out no whole number of more than 4300 digits
    is_number = isinstance(value, int)
    return f'a whole number of {value.bit_length()} bits' if is_number else 'too long to be shown'
  text = printable(' '.join(line.strip() for line in text.splitlines()))
  return text if len(text) <= _LONGEST_SHOWN else f'{text[:_LONGEST_SHOWN]}...'


def check_path(path: Any) -> str:
  """The text of a path that somebody gave.

  Raises:
    ValueError: it is none.

  Example:
    >>> import pathlib
    >>> check_path(pathlib.Path('runs') / 'digits')
    'runs/digits'
  """
  text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
  if not isinstance(text, str) or not text or '\0' in text:
    raise ValueError(f'{shown(path)} is no path; give a text or a pathlib.Path.')
  return text


def printable(text: str | os.PathLike) -> str:
  r"""A path or name with escapes for what breaks a line, commands a terminal, or is not UTF-8.

  Example:
    >>> print(printable('über\n.png'))
    über\n.png
  """
  return _NOT_PRINTABLE.sub(lambda found: ascii(found.group())[1:-1], os.fspath(text))


def listed(names: Iterable[str]) -> str:
  """Names as a sentence lists them, which are not endless.

  Example:
    >>> listed(f'class{n}' for n in range(30))[-28:]
    'class8, class9 and 20 others'
  """
  names = list(names)
  first = ', '.join(_without_middle(printable(name)) for name in names[:_MOST_LISTED])
  others = len(names) - _MOST_LISTED
  return f'{first} and {others} others' if others > 0 else first


def _without_middle(name: str) -> str:
  """A name that is not endless; the end of a path says more than its beginning."""
  half = _LONGEST_SHOWN // 2
  return name if len(name) <= _LONGEST_SHOWN else f'{name[:half]}...{name[-half:]}'


def _is_a(value: Any, kind: type) -> bool:
  """Whether a value has a type, where whole numbers are numbers, and True is no number."""
  abstract = numbers.Real if kind is float else kind
  return isinstance(value, abstract) and isinstance(value, bool) == (kind is bool)
