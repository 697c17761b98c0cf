"""Colours, where a person sees them: on a terminal, unless NO_COLOR (no-color.org) forbids it."""

from __future__ import annotations

import logging
import os
from typing import Literal, TextIO

Style = Literal['bold', 'red', 'yellow']
_CODES = {'bold': 1, 'red': 31, 'yellow': 33}


def painted(text: str, style: Style, stream: TextIO) -> str:
  """A text in a style where a stream shows styles, the bare text elsewhere.

  Example:
    >>> import io
    >>> painted('search', 'bold', io.StringIO())
    'search'
  """
  if not stream.isatty() or os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
    return text
  return f'\033[{_CODES[style]}m{text}\033[0m'


class Painter(logging.Formatter):
  """Prints bare messages: warnings yellow, and where a stage begins bold.

  Args:
    stream: where the messages go.
  """

  def __init__(self, stream: TextIO):
    super().__init__('%(message)s')
    self._stream = stream

  def format(self, record: logging.LogRecord) -> str:
    """The text of a record."""
    text = super().format(record)
    if record.levelno >= logging.WARNING:
      return painted(text, 'yellow', self._stream)
    return painted(text, 'bold', self._stream) if ': begins' in text else text
