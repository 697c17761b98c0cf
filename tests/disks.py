"""File systems that are too small."""

import contextlib
import functools
import subprocess
import tempfile

import pytest


@functools.cache
def mounting_is_allowed():
  """Whether this process may mount a file system."""
  with tempfile.TemporaryDirectory() as folder:
    try:
      subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', folder], check=True, capture_output=True)
      subprocess.run(['umount', folder], check=True)
    except (OSError, subprocess.CalledProcessError):
      return False
  return True


@contextlib.contextmanager
def small_disk(folder, size, *options):
  """A file system of its own in a folder, as large as given.

  Skips the test where mounting is not allowed. Gives a function that mounts it anew with other
  options, 'size=8m' or 'ro'; what it holds stays.
  """
  if not mounting_is_allowed():
    pytest.skip('a small disk cannot be mounted here')

  def mount(*options):
    subprocess.run(['mount', '-o', ','.join(options), '-t', 'tmpfs', 'tmpfs', folder], check=True)

  def remount(*options):
    subprocess.run(['mount', '-o', ','.join(('remount', *options)), folder], check=True)

  mount(f'size={size}', *options)
  try:
    yield remount
  finally:
    subprocess.run(['umount', folder], check=True)
