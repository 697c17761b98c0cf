"""Ctrl-C, closed pipes and errors of a command; a user's mistake is one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

from glora_jax.checks import printable
from glora_jax.errors import UserError
from glora_jax.files import first_line

BUG = 'This is a bug of glora_jax; please report it with its traceback.'
_MEMORY = 'RESOURCE_EXHAUSTED'  # in XLA's message
_LOST = re.compile(r'Gloo .*(closed|reset) by peer', re.DOTALL)  # another process has ended
_OF_JAX = ('JaxRuntimeError', 'XlaRuntimeError')


def is_mistake(error: BaseException) -> bool:
  """Whether an error is the user's mistake or the machine's, and not a bug of this package.

  JAX's own errors are bugs, unless memory ran out or another process died.
  """
  if isinstance(error, ImportError):
    return error.name is None  # Python's error has the name of a module
  if type(error).__name__ in _OF_JAX:
    return _MEMORY in str(error) or _LOST.search(str(error)) is not None
  return isinstance(error, UserError | OSError | MemoryError)


@contextlib.contextmanager
def reported(*, debug: bool) -> Iterator[None]:
  """Ends the command with one line about a mistake in the block; a bug keeps its traceback.

  Args:
    debug: whether a mistake keeps its traceback as well.
  """
  try:
    yield
  except BrokenPipeError:  # of standard output; there are no other pipes
    raise
  except Exception as error:
    if not is_mistake(error):
      error.add_note(BUG)
      raise
    if debug:
      traceback.print_exc()
      sys.exit(1)
    refuse(f'{sentence(error)} (--debug shows where.)')


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
  """Raises this package's ValueErrors, and the TypeErrors of `checks`, as UserErrors.

  Those of other packages are unchanged, because they are bugs. So is any other TypeError.

  Args:
    *kinds: other classes of errors, in place of ValueError.

  Example:
    >>> from glora_jax.method.presets import parse_preset_name
    >>> with user_errors():
    ...   parse_preset_name('lora:0')
    Traceback (most recent call last):
    glora_jax.errors.UserError: The preset 'lora:0' has the rank '0'; it must be an integer of at \
least 1, as in 'lora:2'.
  """
  try:
    yield
  except Exception as error:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = frame.f_globals.get('__name__', '')
    is_checked = isinstance(error, TypeError) and raised_in == 'glora_jax.checks'
    is_expected = raised_in.startswith('glora_jax') and isinstance(error, kinds or ValueError)
    if isinstance(error, UserError) or not (is_expected or is_checked):
      raise
    raise UserError(str(error)) from error


def refuse(sentence: str) -> NoReturn:
  """Exits with a sentence about a mistake."""
  sys.exit(f'error: {sentence}')


def sentence(error: BaseException) -> str:
  """The line that reports a mistake to the user.

  Example:
    >>> sentence(PermissionError(13, 'Permission denied', '/data'))
    '/data cannot be read or written (Permission denied).'
  """
  text = str(error).strip() or type(error).__name__
  if isinstance(error, MemoryError) or _MEMORY in text:
    return f'Out of memory ({first_line(text)}); lower the batch size, or use a larger device.'
  if _LOST.search(text):
    return (
      f'Another process of this run died ({first_line(text)}); start all of them again with the '
      'same command to resume.'
    )
  if not isinstance(error, OSError) or error.strerror is None:
    return text
  # An error of the system: the file and the reason, without the number.
  name = 'A file or a stream' if error.filename is None else printable(str(error.filename))
  return f'{name} cannot be read or written ({error.strerror}).'


def run_program(program: Callable[[], None]) -> None:
  """Runs a command; Ctrl-C and a closed pipe (`| head`) end it without a traceback.

  Args:
    program: the command, as a function that reports its errors.
  """
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')  # names that its encoding lacks
  try:
    try:
      program()
    finally:
      print(end='', flush=True)  # here, and not at the interpreter's exit
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:
    # The interpreter writes the rest at its exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
