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
def small_disk(folder, size):
  """A file system of its own in a folder, as large as given.

  Skips the test where mounting is not allowed. Gives a function that mounts it anew with another
  option, 'size=8m'; what it holds stays.
  """
  if not mounting_is_allowed():
    pytest.skip('a small disk cannot be mounted here')

  def remount(option):
    subprocess.run(['mount', '-o', f'remount,{option}', folder], check=True)

  subprocess.run(['mount', '-o', f'size={size}', '-t', 'tmpfs', 'tmpfs', folder], check=True)
  try:
    yield remount
  finally:
    subprocess.run(['umount', folder], check=True)
