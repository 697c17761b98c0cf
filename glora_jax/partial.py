"""Before a file is written: what lies there, where it grows, and what killed writers left of it."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterable

from glora_jax.limits import printable

ENDING = '.glora_jax.partial'
_NAME = re.compile(rf'.+\..*\.\d+{re.escape(ENDING)}', re.DOTALL)  # FILE.MACHINE.PROCESS
# A writer in another container of this host has a process that cannot be seen, and writes on.
_LONGEST_PAUSE = 60  # seconds


def require_free(
  path: str | os.PathLike, overwrite: bool, inputs: Iterable[str | os.PathLike] = ()
) -> None:
  """Checks that a command may write a file.

  Args:
    path: path of the file.
    overwrite: whether it may replace a file.
    inputs: paths of what the command reads, which is never replaced, by whatever path or link.

  Raises:
    FileExistsError: it may not.
  """
  if not os.path.lexists(path):
    return
  for other in inputs:
    if os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other):
      raise FileExistsError(
        f'{printable(path)} would replace {printable(other)}, an input of this command; choose '
        'another path.'
      )
  if not overwrite:
    raise FileExistsError(
      f'{printable(path)} exists already; choose another path, or give --overwrite to replace it.'
    )


def path_of(path: str | os.PathLike) -> str:
  """Where this process writes a file before it is whole.

  With machine and process in its name, so that two that write the same file do not meet.
  """
  return f'{_beginning(path)}{os.getpid()}{ENDING}'


def is_one(name: str) -> bool:
  """Whether a name is one of `path_of`, of any file, machine and process."""
  return _NAME.fullmatch(name) is not None


def _beginning(path: str | os.PathLike) -> str:
  return f'{os.fspath(path)}.{platform.node()}.'


def remove_abandoned(path: str | os.PathLike) -> None:
  """Removes what killed processes of this machine left of a file; what cannot be removed stays.

  That of a process that is there stays, and so does what was written to a moment ago.

  Args:
    path: path of the file when it is whole.
  """
  if os.name != 'posix':  # elsewhere a process cannot be asked for without ending it
    return
  folder, beginning = os.path.split(_beginning(path))
  with contextlib.suppress(OSError), os.scandir(folder or os.curdir) as items:
    for item in items:
      process = item.name.removeprefix(beginning).removesuffix(ENDING)
      if item.name != f'{beginning}{process}{ENDING}' or not process.isdecimal():
        continue
      with contextlib.suppress(OSError):  # another process may have removed it first
        is_still = time.time() - item.stat(follow_symlinks=False).st_mtime > _LONGEST_PAUSE
        if is_still and not _is_alive(int(process)):
          os.remove(item.path)


def _is_alive(process: int) -> bool:
  """Whether there is a process of a number on this machine, anybody's."""
  try:
    os.kill(process, 0)  # asks, and sends nothing
  except ProcessLookupError:
    return False
  except (PermissionError, OverflowError):  # somebody else's; or no number of a process
    return True
  return True
