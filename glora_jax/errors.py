"""The error that a command reports in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
  """What was given is wrong, or a file is damaged; the text is a sentence that says what to do.

  The commands show it without a traceback. Any other exception, but for what the system refuses
  (OSError, MemoryError) and a package that is not installed, is a bug of this package.
  """


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
  """Makes errors of a block UserErrors: there, they are about what was given.

  Args:
    *kinds: the classes of these errors; ValueError by default.

  Example:
    >>> with user_errors():
    ...   int('x')
    Traceback (most recent call last):
    glora_jax.errors.UserError: invalid literal for int() with base 10: 'x'
  """
  try:
    yield
  except Exception as error:
    if isinstance(error, UserError) or not isinstance(error, kinds or ValueError):
      raise
    raise UserError(str(error)) from error
