"""Files that are whole or not there, and reading them back: JSON, npz, safetensors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

Path = str | os.PathLike


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Makes a sentence of the system's refusal to write.

  Args:
    path: path of the file or folder that is written in the block.

  Raises:
    OSError: it cannot be written.
  """
  try:
    yield
  except OSError as error:
    if error.strerror is None:  # a sentence already
      raise
    raise OSError(
      f'{os.fspath(path)} cannot be written ({error.strerror}). What was saved before is kept; '
      'make room or give permission, and start the same command again.'
    ) from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[str]:
  """A temporary path beside the given one, moved there at the end of the block.

  Whoever is killed while writing leaves the old file as it was.

  Args:
    path: path of the file.

  Yields:
    The path to write to.

  Raises:
    OSError: it cannot be written; the old file is still there.
  """
  # With the process in its name, so that two that write the same file do not meet.
  temporary = f'{os.fspath(path)}.{os.getpid()}.partial'
  with writing(path):
    try:
      yield temporary
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.remove(temporary)
      raise


def open_regular(path: Path) -> BinaryIO:
  """Opens a file of the user's for reading, links followed, where it is a regular one.

  A FIFO would wait for its writer for ever, a device may never end.

  Args:
    path: path of the file.

  Raises:
    OSError: there is none, it cannot be read, or it is no regular file.
  """
  _require_regular(path, os.stat(path))
  flags = os.O_RDONLY | getattr(os, 'O_BINARY', 0) | getattr(os, 'O_NONBLOCK', 0)
  file = os.fdopen(os.open(path, flags), 'rb')
  try:
    _require_regular(path, os.fstat(file.fileno()))  # what lay there before may be gone
  except OSError:
    file.close()
    raise
  return file


def _require_regular(path: Path, status: os.stat_result) -> None:
  if not stat.S_ISREG(status.st_mode):
    raise OSError(errno.EINVAL, 'it is no regular file', os.fspath(path))


def sha256_of(path: Path) -> str:
  """SHA-256 of a file's contents, hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_json(path: Path, content: Any) -> None:
  """Writes a JSON file, whole or not at all.

  Args:
    path: path of the file.
    content: what `json` can write.

  Raises:
    OSError: it cannot be written there.
  """
  with whole(path) as temporary, open(temporary, 'w') as file:
    json.dump(content, file, indent=2)
    file.write('\n')


def read_json(path: Path) -> Any:
  """Reads what `write_json` wrote.

  Raises:
    ValueError: the file is damaged.
  """
  with open(path) as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise _damaged(path, error) from error


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes an npz file, whole or not at all.

  Args:
    path: path of the file.
    arrays: the arrays by name.

  Raises:
    OSError: it cannot be written there.
  """
  with whole(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """Reads what `write_arrays` wrote.

  Raises:
    ValueError: the file is damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except Exception as error:  # zipfile, zlib and numpy each have their own
    raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
  return ValueError(
    f'{path} is damaged ({error}); remove it, and the stage that wrote it runs again.'
  )


def write_safetensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
  """Writes a safetensors file, whole or not at all.

  Args:
    path: path of the file.
    tensors: arrays by name.
    metadata: texts by name. With more than one, the order of the file's bytes varies.

  Raises:
    OSError: it cannot be written there.
  """
  contiguous = {name: np.asarray(value, order='C') for name, value in tensors.items()}
  try:
    with whole(path) as temporary:
      safetensors.numpy.save_file(contiguous, temporary, metadata)
  except safetensors.SafetensorError as error:
    raise OSError(f'{path} cannot be written ({str(error).strip().splitlines()[0]}).') from error


def write_tensors(path: Path, tensors: dict[str, Any], kind: str, metadata: dict[str, Any]) -> None:
  """Writes a safetensors file of this project, whole or not at all.

  All metadata is one JSON text, since the format keeps several in no order: so equal content makes
  equal bytes.

  Args:
    path: path of the file.
    tensors: arrays by name.
    kind: kind of the file, which `read_tensors` asks for.
    metadata: what else to keep, as JSON can.

  Raises:
    OSError: it cannot be written there.
  """
  write_safetensors(path, tensors, {'glora_jax': json.dumps({'kind': kind, **metadata})})


def read_tensors(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads what `write_tensors` wrote.

  Args:
    path: path of the file.
    kind: kind that the file must be of.

  Returns:
    (tensors, metadata).

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is damaged, or not a file of this project and kind.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f'There is no file {path}; give the path of a safetensors file.')
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      metadata = json.loads((file.metadata() or {}).get('glora_jax', '{}'))
      tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
  except Exception as error:  # safetensors raises its own type, and others for odd contents
    raise ValueError(
      f'{path} is damaged or not a safetensors file ({error}); get it again.'
    ) from error
  if metadata.pop('kind', None) != kind:
    raise ValueError(f'{path} is no {kind} file that glora_jax wrote.')
  return tensors, metadata
