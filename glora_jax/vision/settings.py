"""Settings: frozen dataclasses that declare type, range and meaning of their fields once.

pydantic checks them. Help pages, the documentation's page of fields and error messages come from
the same declarations. Numbers and arrays of NumPy and JAX become Python's, lists become tuples, and
2.0 counts as an integer; a string is never a number, and True is not 1.
"""

from __future__ import annotations

import functools
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sized
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import pydantic.dataclasses
from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf
from pydantic.fields import FieldInfo

from glora_jax.checks import MOST_COUNTED, plain, shown, whole_number

Class = TypeVar('Class', bound=type)
Item = TypeVar('Item')
_STRICT = Field(strict=True)
_WORDS = {'ge': 'at least', 'gt': 'above', 'le': 'at most', 'lt': 'below'}


def _whole(value: Any) -> Any:
  number = whole_number(value)
  return plain(value) if number is None else number


def _tuple(value: Any) -> Any:
  value = plain(value)
  return tuple(value) if isinstance(value, list) else value


def passing(check: Callable[[Any], object]) -> AfterValidator:
  """For `Annotated`: a check that raises ValueError for a value that cannot be."""

  def keep(value: Any) -> Any:
    check(value)
    return value

  return AfterValidator(keep)


def _check_counted(number: int) -> None:
  if number > MOST_COUNTED:
    raise ValueError(f'it must be at most {MOST_COUNTED}.')


Integer = Annotated[int, _STRICT, BeforeValidator(_whole)]
Whole = Annotated[Integer, passing(_check_counted)]
Number = Annotated[float, _STRICT, Field(allow_inf_nan=False), BeforeValidator(plain)]
Flag = Annotated[bool, _STRICT, BeforeValidator(plain)]
Text = Annotated[str, InstanceOf(), BeforeValidator(plain)]  # paths may be no UTF-8
Name = Annotated[str, _STRICT, Field(pattern='^[^.]+$')]  # of a mapping, in a dotted name
Several = Annotated[tuple[Item, ...], _STRICT, BeforeValidator(_tuple)]


@typing.dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def declared(cls: Class) -> Class:
  """Makes a class a frozen dataclass whose fields are checked when it is made.

  Its docstring gets the descriptions of the fields. Invalid values raise a ValueError with a line
  for each mistake: name, value and what was expected. Messages of `__post_init__` begin with the
  field.

  Example:
    >>> @declared
    ... class Noise:
    ...   sigma: Number = Field(default=0.1, ge=0, description='standard deviation')
    >>> Noise(sigma=-1)
    Traceback (most recent call last):
    ValueError: sigma=-1 should be greater than or equal to 0.
  """
  made: Any = pydantic.dataclasses.dataclass(frozen=True, config={'extra': 'forbid'})(cls)
  initialize = made.__init__

  @functools.wraps(initialize)
  def checked(self, *args: Any, **kwargs: Any) -> None:
    try:
      initialize(self, *args, **kwargs)
    except pydantic.ValidationError as error:
      raise ValueError(sentences(error, tuple(made.__pydantic_fields__))) from None

  made.__init__ = checked
  helps = [
    textwrap.fill(
      f'{name}: {info.description}', 96, initial_indent=' ' * 4, subsequent_indent=' ' * 6
    )
    for name, info in made.__pydantic_fields__.items()
  ]
  made.__doc__ = '\n'.join([(made.__doc__ or '').rstrip(), '', '  Attributes:', *helps])
  return made


def _check_filled(value: Sized) -> None:
  if not len(value):
    raise ValueError('it must not be empty.')


FILLED = passing(_check_filled)


def taken(value: Any, name: str, kind: Any, **limits: Any) -> Any:
  """A single argument as a type of this module takes it.

  Args:
    value: any value.
    name: the argument's name.
    kind: its type, `Whole | None` for instance.
    **limits: `ge`, `gt`, `le`, `lt`.

  Raises:
    ValueError: it is of another type, or out of range.

  Example:
    >>> taken(2.0, 'chunk', Whole | None, ge=1)
    2
  """
  try:
    return pydantic.TypeAdapter(Annotated[kind, Field(**limits)]).validate_python(value)
  except pydantic.ValidationError as error:
    raise ValueError(sentences(error, prefix=name)) from None


def sentences(
  error: pydantic.ValidationError, fields: tuple[str, ...] = (), prefix: str = ''
) -> str:
  """A line for each mistake: dotted name, value, and what was expected.

  Args:
    error: what pydantic found.
    fields: names of the fields, where some may have been given by position.
    prefix: what all of the values belong to.
  """
  return '\n'.join(_sentence(mistake, fields, prefix) for mistake in error.errors())


def _sentence(mistake: Any, fields: tuple[str, ...], name: str) -> str:
  for number, part in enumerate(mistake['loc']):
    if number == 0 and fields and isinstance(part, int):
      part = fields[part]
    if part != '[key]':
      name += f'[{part}]' if isinstance(part, int) else f'.{part}' if name else str(part)
  value, text = mistake['input'], mistake['msg']
  given = f'{name}={shown(value)}' if name else shown(value)
  if mistake['type'] == 'missing':
    return f'{name} is missing.'
  if mistake['type'] == 'unexpected_keyword_argument':
    return f'{given} is unknown; remove it, or correct its name.'
  if mistake['type'] != 'value_error':
    return f'{given} {text[max(text.find("should"), 0) :]}.'
  text = str(mistake['ctx']['error'])
  if not name or text.startswith(f'{name}='):
    return text
  if isinstance(value, Mapping):  # what fields of a section demand of each other
    return f'{name}.{text}'
  return f'{name}: {text}' if '[key]' in mistake['loc'] else f'{given}: {text}'


def bounds(info: FieldInfo) -> dict[str, float]:
  """The range of a field or of its items, by pydantic's names: 'ge', 'gt', 'le', 'lt'."""
  found: dict[str, float] = {}
  parts = [info.annotation, *info.metadata]
  while parts:
    part = parts.pop()
    parts += [*typing.get_args(part), *getattr(part, 'metadata', ())]
    found |= {name: getattr(part, name) for name in _WORDS if hasattr(part, name)}
  return found


def expected(info: FieldInfo) -> str:
  """Type and range of a field in words: 'int | None, at least 1'."""
  ranges = [f'{_WORDS[name]} {bound}' for name, bound in sorted(bounds(info).items())]
  return ', '.join([_type(info.annotation), *ranges])


def _type(kind: Any) -> str:
  """A type as Python writes it, without what checks it."""
  origin, parts = typing.get_origin(kind), typing.get_args(kind)
  if origin is Annotated:
    return _type(parts[0])
  if origin is Literal:
    return ' | '.join(map(repr, parts))
  if origin in (typing.Union, types.UnionType):
    return ' | '.join(map(_type, parts))
  if origin is not None:
    return f'{origin.__name__}[{", ".join(map(_type, parts))}]'
  return {types.NoneType: 'None', Any: 'Any', ...: '...'}.get(kind) or kind.__name__
