"""Limits of the system, for tests of what is said when it refuses."""

import contextlib
import resource


@contextlib.contextmanager
def limited(kind, most):
  """A block in which this process has at most so much of a resource, `resource.RLIMIT_FSIZE`."""
  limits = resource.getrlimit(kind)
  resource.setrlimit(kind, (most, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(kind, limits)
