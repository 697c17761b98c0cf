"""Which errors are a user's mistakes, and the sentence that is told of each."""

from __future__ import annotations

import re

from glora_jax.files import first_line
from glora_jax.limits import printable

# Whose text is a sentence for the user, where `is_mistake` says so.
MISTAKES = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
_MEMORY = 'RESOURCE_EXHAUSTED'  # as XLA says it
_LOST = re.compile(r'Gloo .*(closed|reset) by peer', re.DOTALL)  # of several processes one is gone
_OF_JAX = ('JaxRuntimeError', 'XlaRuntimeError')


def is_mistake(error: BaseException) -> bool:
  """Whether an error is a user's mistake, or the machine's, and not a fault of this package.

  JAX's own errors are faults, unless memory is short or another process is gone.
  """
  if not isinstance(error, MISTAKES):
    return False
  if type(error).__name__ not in _OF_JAX:
    return True
  return _MEMORY in str(error) or _LOST.search(str(error)) is not None


def sentence(error: BaseException) -> str:
  """What a user is told of a mistake, in one line.

  Example:
    >>> sentence(PermissionError(13, 'Permission denied', '/data'))
    '/data cannot be read or written (Permission denied).'
  """
  text = str(error).strip() or type(error).__name__
  if isinstance(error, MemoryError) or _MEMORY in text:
    return f'There is too little memory ({first_line(text)}); take less at once, or more memory.'
  if _LOST.search(text):
    return (
      f'Another process of this run has ended ({first_line(text)}); start all of them again with '
      'the same command, and the run goes on.'
    )
  return explain_os(error) if isinstance(error, OSError) else text


def explain_os(error: OSError) -> str:
  """A sentence about what the system refused: the file and the reason, without a number."""
  if error.strerror is None:
    return str(error)
  if error.filename is None:
    return f'A file or a stream cannot be read or written ({error.strerror}).'
  return f'{printable(str(error.filename))} cannot be read or written ({error.strerror}).'
