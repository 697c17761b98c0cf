"""Checks of arguments, settings and JSON by annotations, and values as error messages show them."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

MOST_COUNTED = 2**31 - 1  # JAX counts in int32
_LONGEST_SHOWN = 80  # characters of a value that a sentence quotes
_MOST_LISTED = 10  # names that a sentence has
_NOT_PRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')
_UNIONS = (typing.Union, types.UnionType)
_WORDS = {
  Any: 'anything',
  None: 'None',
  types.NoneType: 'None',
  bool: 'True or False',
  int: 'an integer',
  float: 'a finite number',
  str: 'a string',
  dict: 'a dictionary',
  collections.abc.Callable: 'a function',
}
_OTHER = object()  # a value of another kind
# How to get an object of a class, by the class's name, which this module does not import.
_SOURCES = {'Adapted': ' (from glora_jax.adapt, or glora_jax.nnx.as_adapted(model))'}
_LIMITS = {
  'least': (operator.ge, 'at least'),
  'above': (operator.gt, 'above'),
  'most': (operator.le, 'at most'),
  'below': (operator.lt, 'below'),
}


def validate(value: Any, kind: Any, name: str, **limits: float) -> Any:
  """A value if it has an annotated type, with NumPy's and JAX's numbers as Python's; else raises.

  2.0 counts as an integer, and True does not. A list is accepted for a tuple and the other way
  round, and a `TypedDict` may have further names.

  Args:
    value: any value.
    kind: its annotation: `int`, `float`, `bool`, `str`, `None`, `Any`, a `Literal`, a class, a
      `TypedDict`; or `list`, `tuple`, `dict`, `Mapping` or unions of these.
    name: the value's name in error messages.
    **limits: of the numbers in it: `least`, `above`, `most`, `below`. An integer that has any is a
      count, which must be at most 2**31 - 1, as JAX needs it, unless `most` says otherwise.

  Raises:
    TypeError: the value, or one in it, has another type.
    ValueError: a number is not finite or beyond a limit, a string is not among the choices, or a
      name is missing.

  Example:
    >>> validate(2.0, int | None, 'chunk', least=1)
    2
    >>> validate({'test': [1, 'two']}, dict[str, list[int]], 'seconds')
    Traceback (most recent call last):
    TypeError: seconds='two' must be an integer.
  """
  origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
  if origin in _UNIONS:
    for part in parts:
      with contextlib.suppress(TypeError):
        return validate(value, part, name, **limits)
  elif typing.is_typeddict(kind) and isinstance(value, Mapping):
    if missing := kind.__required_keys__ - value.keys():
      raise ValueError(f'{listed([min(missing)])} is missing.')
    known = {key: each for key, each in kinds_of(kind).items() if key in value}
    return {**value, **{key: validate(value[key], each, key) for key, each in known.items()}}
  elif origin in (list, tuple) and isinstance(items := plain(value), list | tuple):
    of_items, *_ = parts or (Any,)
    return origin(validate(item, of_items, name, **limits) for item in items)
  elif origin in (dict, collections.abc.Mapping) and isinstance(value, Mapping):
    of_keys, of_items = parts or (Any, Any)
    return {
      validate(key, of_keys, name): validate(item, of_items, name or listed([key]), **limits)
      for key, item in value.items()
    }
  elif (found := _scalar(value, origin, parts)) is not _OTHER:
    return _within(found, origin, parts, value, name, **limits)
  source = _SOURCES.get(getattr(kind, '__name__', ''), '')
  raise TypeError(_must_be(expected(kind, **limits) + source, value, name))


def _scalar(value: Any, kind: Any, choices: tuple) -> Any:
  """A number, a string or an object as one of a kind; `_OTHER` if it is none."""
  if kind in (bool, int, float, str, Literal) and getattr(value, 'shape', None) == ():
    value = plain(value)
  if kind is int:
    value = whole_number(value)
  if (kind is float and isinstance(value, bool)) or typing.is_typeddict(kind):
    return _OTHER
  kinds = {Any: object, None: types.NoneType, float: int | float, Literal: (*map(type, choices),)}
  return value if isinstance(value, kinds.get(kind, kind)) else _OTHER


def _within(value: Any, kind: Any, choices: tuple, given: Any, name: str, **limits: float) -> Any:
  """A value of the right kind, unless a limit or the choices forbid it; `given` as it was."""
  if kind is Literal and value not in choices:
    raise ValueError(_must_be(' or '.join(map(repr, choices)), given, name))
  if kind not in (int, float):
    return value
  if kind is float and not abs(value) <= sys.float_info.max:  # of NaN, too
    raise ValueError(_must_be('finite', given, name))
  if kind is int and limits:
    limits = {'most': MOST_COUNTED, **limits}
  for limit, bound in limits.items():
    is_within, words = _LIMITS[limit]
    if not is_within(value, bound):
      raise ValueError(_must_be(f'{words} {bound}', given, name))
  return kind(value)


def _must_be(words: str, value: Any, name: str) -> str:
  """An error message, which shows a number or a string, and the type of any other value."""
  if getattr(value, 'shape', None) == ():
    value = plain(value)
  if value is None or isinstance(value, bool | int | float | complex | str | bytes):
    return f'{name}={shown(value)} must be {words}.' if name else f'expected {words}.'
  return f'{name or "it"} must be {words}, got {expected(type(value))}.'


def expected(kind: Any, **limits: float) -> str:
  """An annotation and the limits of its numbers in words.

  Example:
    >>> expected(tuple[int, ...] | None, least=1)
    'a tuple (each an integer) or None, at least 1'
  """
  origin, parts = typing.get_origin(kind) or kind, typing.get_args(kind)
  if origin in _UNIONS:
    words = ' or '.join(map(expected, parts))
  elif origin is Literal:
    words = ' or '.join(map(repr, parts))
  elif origin in _WORDS or typing.is_typeddict(kind):
    words = _WORDS.get(origin, 'a dictionary')
  else:
    words = f'{"an" if origin.__name__[0] in "AEIOUaeiou" else "a"} {origin.__name__}'
  if origin in (list, tuple, dict, collections.abc.Mapping) and parts:
    words += f' (each {expected(parts[origin not in (list, tuple)])})'
  return ', '.join([words, *(f'{_LIMITS[name][1]} {bound}' for name, bound in limits.items())])


def field(default: Any, **limits: float) -> Any:
  """A field of a dataclass with the limits of its numbers, for `validate_fields`."""
  return dataclasses.field(default=default, metadata=limits)


def validate_fields(settings: Any) -> None:
  """Checks the fields of a frozen dataclass by their annotations and limits.

  Raises:
    TypeError: fields have another type; a line for each mistake.
    ValueError: fields of the right types have values that are not allowed.

  Example:
    >>> @dataclasses.dataclass(frozen=True)
    ... class Noise:
    ...   sigma: float = field(0.1, least=0)
    ...   def __post_init__(self):
    ...     validate_fields(self)
    >>> Noise(sigma=-1)
    Traceback (most recent call last):
    ValueError: sigma=-1 must be at least 0.
  """
  mistakes: list[Exception] = []
  for each in dataclasses.fields(settings):
    kind, value = kinds_of(type(settings))[each.name], getattr(settings, each.name)
    try:
      object.__setattr__(settings, each.name, validate(value, kind, each.name, **each.metadata))
    except (TypeError, ValueError) as error:
      mistakes.append(error)
  if mistakes:
    is_type = any(isinstance(mistake, TypeError) for mistake in mistakes)
    raise (TypeError if is_type else ValueError)('\n'.join(map(str, mistakes)))


@functools.cache
def kinds_of(kind: type) -> dict[str, Any]:
  """The annotations of a class by name."""
  return typing.get_type_hints(kind)


def plain(value: Any) -> Any:
  """A scalar or array of NumPy or JAX as Python's numbers and lists; any other value unchanged."""
  return value.tolist() if hasattr(value, 'tolist') else value


def whole_number(value: Any) -> int | None:
  """An integer as a Python int (2.0 counts); None for anything else.

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
  """A value as error messages show it, cut if long."""
  try:
    text = repr(value)
  except ValueError:  # Python does not write out an integer of more than 4300 digits
    is_number = isinstance(value, int)
    return f'an integer of {value.bit_length()} bits' if is_number else 'too long to show'
  text = printable(' '.join(line.strip() for line in text.splitlines()))
  return text if len(text) <= _LONGEST_SHOWN else f'{text[:_LONGEST_SHOWN]}...'


def check_path(path: Any) -> str:
  """A path as a string.

  Raises:
    TypeError: it is not a path.
    ValueError: it is empty, or has a null character.

  Example:
    >>> import pathlib
    >>> check_path(pathlib.Path('runs') / 'digits')
    'runs/digits'
  """
  text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
  if not isinstance(text, str):
    raise TypeError(f'expected a path (a string or a pathlib.Path), got {shown(path)}.')
  if not text or '\0' in text:
    raise ValueError(f'expected a path, got {shown(path)}.')
  return text


def printable(text: str | os.PathLike) -> str:
  r"""A path or name with escapes for line breaks, terminal commands, and bytes that are not UTF-8.

  Example:
    >>> print(printable('über\n.png'))
    über\n.png
  """
  return _NOT_PRINTABLE.sub(lambda found: ascii(found.group())[1:-1], os.fspath(text))


def listed(names: Iterable[str]) -> str:
  """Names in one line, as error messages show them, cut if there are many.

  Example:
    >>> listed(f'class{n}' for n in range(30))[-28:]
    'class8, class9 and 20 others'
  """
  names = list(names)
  first = ', '.join(_without_middle(printable(name)) for name in names[:_MOST_LISTED])
  others = len(names) - _MOST_LISTED
  return f'{first} and {others} others' if others > 0 else first


def _without_middle(name: str) -> str:
  """A name without its middle if it is long; its end is the more telling."""
  half = _LONGEST_SHOWN // 2
  return name if len(name) <= _LONGEST_SHOWN else f'{name[:half]}...{name[-half:]}'
