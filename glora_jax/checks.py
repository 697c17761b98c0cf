"""Checks of single arguments, and how messages quote values.

It imports no pydantic (`settings`), which would take a tenth of the time that `adapt` takes.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from typing import Any

MOST_COUNTED = 2**31 - 1  # JAX counts in int32
_LONGEST_SHOWN = 80  # characters of a value that a sentence quotes
_MOST_LISTED = 10  # names that a sentence has
_NOT_PRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]')


def check_whole(value: Any, name: str, least: int = 0, most: int = MOST_COUNTED) -> int:
  """An integer of a range, as a Python int; 2.0 counts.

  Raises:
    ValueError: the value is anything else.

  Example:
    >>> check_whole(2.5, 'number')
    Traceback (most recent call last):
    ValueError: number=2.5 must be an integer from 0 to 2147483647.
  """
  number = whole_number(value)
  if number is None or not least <= number <= most:
    raise ValueError(f'{name}={shown(plain(value))} must be an integer from {least} to {most}.')
  return number


def check_flag(value: Any, name: str) -> bool:
  """True or False, as Python's; raises ValueError for all else."""
  if not isinstance(flag := plain(value), bool):
    raise ValueError(f'{name}={shown(flag)} must be True or False.')
  return flag


def check_type(value: Any, kind: type, name: str) -> None:
  """Checks an argument that must be an instance of a class.

  Raises:
    ValueError: it is something else.

  Example:
    >>> import pathlib
    >>> check_type('runs', pathlib.Path, 'folder')
    Traceback (most recent call last):
    ValueError: folder: expected a Path, got str.
  """
  if not isinstance(value, kind):
    given = 'None' if value is None else type(value).__name__
    article = 'an' if kind.__name__[0] in 'AEIOU' else 'a'
    raise ValueError(f'{name}: expected {article} {kind.__name__}, got {given}.')


def check_callable(value: Any, name: str) -> None:
  """Raises ValueError for an argument that is not a function."""
  if not callable(value):
    raise ValueError(f'{name}={shown(value)} must be a function.')


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
  """A value as messages quote it, cut if long."""
  try:
    text = repr(value)
  except ValueError:  # Python writes out no whole number of more than 4300 digits
    is_number = isinstance(value, int)
    return f'an integer of {value.bit_length()} bits' if is_number else 'too long to show'
  text = printable(' '.join(line.strip() for line in text.splitlines()))
  return text if len(text) <= _LONGEST_SHOWN else f'{text[:_LONGEST_SHOWN]}...'


def check_path(path: Any) -> str:
  """A path as a string.

  Raises:
    ValueError: it is not a path.

  Example:
    >>> import pathlib
    >>> check_path(pathlib.Path('runs') / 'digits')
    'runs/digits'
  """
  text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
  if not isinstance(text, str) or not text or '\0' in text:
    raise ValueError(f'expected a path (a string or a pathlib.Path), got {shown(path)}.')
  return text


def printable(text: str | os.PathLike) -> str:
  r"""A path or name with escapes for what breaks a line, commands a terminal, or is not UTF-8.

  Example:
    >>> print(printable('über\n.png'))
    über\n.png
  """
  return _NOT_PRINTABLE.sub(lambda found: ascii(found.group())[1:-1], os.fspath(text))


def listed(names: Iterable[str]) -> str:
  """Names as messages list them, cut if many.

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
