"""Errors that a command reports in one line."""


class UserError(ValueError):
  """An argument is wrong or a file is damaged; the message says what to do.

  The commands show it without a traceback, as they do OSError, MemoryError and a missing package.
  Any other exception is a bug of this package.
  """


class MissingPackageError(ImportError):
  """A package of the extra `vision` is not installed; the message says how to install it."""
