"""What a command has to do with its terminal: streams that fail, Ctrl-C, colours.

Colours are where a person sees them: on a terminal, unless NO_COLOR (no-color.org) forbids it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Literal, TextIO

from glora_jax.runs.mistakes import explain_os

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


def run_program(program: Callable[[], None]) -> None:
  """Runs a command; what its streams refuse, and Ctrl-C, end it without a traceback.

  Args:
    program: what the command does, which says its own mistakes.
  """
  open_closed_streams()
  try:
    try:
      program()
    finally:
      sys.stdout.flush()  # here, not at the interpreter's end, which has no sentence
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:  # `| head` has seen enough
    forget_output()
    sys.exit(1)
  except OSError as error:
    forget_output()
    sys.exit(f'error: {explain_os(error)}')


def open_closed_streams() -> None:
  """Opens the null device for each standard stream that is closed (`>&-`).

  The next files that are opened would get their numbers, and what libraries print would be written
  into those.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # the system takes the lowest number that is free
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:
      setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w'))


def forget_output() -> None:
  """Lets what standard output could not write go, or the interpreter tries again at its end."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
