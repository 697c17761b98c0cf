"""Files that are whole or not there, and reading them back: JSON, npz, safetensors. Folders that one process has for itself."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

Path = str | os.PathLike


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """Says in one sentence, an OSError, what the system did not let us write."""
  try:
    yield
  except OSError as error:
    if error.strerror is None:  # a sentence already
      raise
    raise OSError(
      f'{os.fspath(path)} cannot be written ({error.strerror}). What was saved before is kept; make room or give '
      'permission, and start the same command again.'
    ) from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[str]:
  """A temporary path beside the given one, moved there at the end: whoever is killed while writing leaves the old file.

  Raises:
    OSError: it cannot be written; the old file is still there.
  """
  temporary = (
    f'{os.fspath(path)}.{os.getpid()}.partial'  # two processes that write the same file do not meet
  )
  with writing(path):
    try:
      yield temporary
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.remove(temporary)
      raise


def write_json(path: Path, content: Any) -> None:
  """Writes JSON, whole or not at all."""
  with whole(path) as temporary, open(temporary, 'w') as file:
    json.dump(content, file, indent=2)
    file.write('\n')


def read_json(path: Path) -> Any:
  """What `write_json` wrote.

  Raises:
    ValueError: the file is damaged.
  """
  with open(path) as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise ValueError(
        f'{path} is damaged ({error}); remove it, and the stage that wrote it runs again.'
      ) from error


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes an npz file, whole or not at all."""
  with whole(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
  """What `write_arrays` wrote.

  Raises:
    ValueError: the file is damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except Exception as error:  # zipfile, zlib and numpy each have their own
    raise ValueError(
      f'{path} is damaged ({error}); remove it, and the stage that wrote it runs again.'
    ) from error


def write_safetensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
  """Writes a safetensors file, whole or not at all. More than one entry of metadata makes the order of its bytes vary.

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

  All metadata is one JSON text, since the format keeps several in no order: equal content makes equal bytes.
  """
  write_safetensors(path, tensors, {'glora_jax': json.dumps({'kind': kind, **metadata})})


def read_tensors(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """What `write_tensors` wrote: (tensors, metadata).

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is damaged, or not one of this project's files of that kind.
  """
  if not os.path.isfile(path):
    raise FileNotFoundError(f'There is no file {path}; give the path of a safetensors file.')
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      described = json.loads((file.metadata() or {}).get('glora_jax', '{}'))
      tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
  except Exception as error:  # safetensors raises its own type, and others for odd contents
    raise ValueError(
      f'{path} is damaged or not a safetensors file ({error}); get it again.'
    ) from error
  if described.pop('kind', None) != kind:
    raise ValueError(f'{path} is no {kind} file that glora_jax wrote.')
  return tensors, described
