"""Errors that a command reports in one line."""


class UserError(ValueError):
  """What was given is wrong, or a file is damaged; the text is a sentence that says what to do.

  The commands show it without a traceback. Any other exception, but for what the system refuses
  (OSError, MemoryError) and a package that is not installed, is a bug of this package.
  """


class MissingPackageError(ImportError):
  """A package of the extra `vision` is not installed; the text says how to install it."""
