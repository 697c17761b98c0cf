"""The error that a command reports in one line."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator


class UserError(ValueError):
  """What was given is wrong, or a file is damaged; the text is a sentence that says what to do.

  The commands show it without a traceback. Any other exception, but for what the system refuses
  (OSError, MemoryError) and a package that is not installed, is a bug of this package.
  """


@contextlib.contextmanager
def user_errors(*kinds: type[Exception]) -> Iterator[None]:
  """Raises the ValueErrors that this package raises in a block as UserErrors.

  Those of other packages stay as they are: there, they are bugs.

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
    is_ours = frame.f_globals.get('__name__', '').startswith('glora_jax')
    if isinstance(error, UserError) or not (is_ours and isinstance(error, kinds or ValueError)):
      raise
    raise UserError(str(error)) from error
