"""Reading and writing JSON and safetensors files, with atomic writes."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from glora_jax.checks import printable, shown, validate
from glora_jax.errors import UserError

Path = str | os.PathLike

STAMP = 'glora_jax'  # the key in our files that has their kind and format
FORMATS: Mapping[str, int] = {}  # by kind, if not 1
AGAIN = 'replace it, or remove it if a run wrote it, which then writes it again'
MOST_JSON_BYTES = 2**28
PARTIAL = '.glora_jax.partial'  # suffix of a file that is not complete yet
_LONGEST_REASON = 200
_BYTES_PER_OPENING = 2**28  # of a safetensors file
_FLOATS = ('float64', 'float32', 'float16', 'bfloat16')


class LaterVersionError(UserError):
  """A file was written by a later version of this package, and must not be overwritten."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """A block that writes a file or folder, whose OSErrors become sentences.

  Args:
    path: path of the file or folder.

  Raises:
    OSError: it cannot be written.
  """
  try:
    yield
  except OSError as error:
    if error.strerror is None:  # a sentence already
      raise
    is_missing = error.errno == errno.ENOENT
    remedy = 'make its folder' if is_missing else 'free some space or fix the permissions'
    raise OSError(
      f'{printable(path)} cannot be written ({error.strerror}). What was saved before is kept; '
      f'{remedy}, and start the same command again.'
    ) from error


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[str]:
  """A block that writes a file atomically, to a temporary path next to it.

  At the end of the block the temporary file replaces the old one. If the process is killed before,
  the old file is unchanged, and the temporary one is left, with the suffix `PARTIAL`.

  Args:
    path: path of the file.

  Yields:
    The path to write to.

  Raises:
    OSError: it cannot be written; the old file is still there.
  """
  # A unique name, so that two processes may write the same file.
  temporary = os.path.join(os.path.dirname(os.fspath(path)), f'{uuid.uuid4().hex}{PARTIAL}')
  with writing(path):
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device
      raise OSError(errno.EINVAL, 'not a regular file', os.fspath(path))
    try:
      yield temporary
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.remove(temporary)
      raise


def open_regular(path: Path) -> io.BufferedReader:
  """Opens a regular file for reading, or a link to one.

  A FIFO would wait for its writer forever, and a device may have no end.

  Args:
    path: path of the file.

  Raises:
    OSError: there is none, it cannot be read, or it is not a regular file.
  """
  if not stat.S_ISREG(os.stat(path).st_mode):
    raise OSError(errno.EINVAL, 'not a regular file', os.fspath(path))
  return open(path, 'rb')


def write_bytes(path: Path, content: bytes | bytearray) -> None:
  """Writes a file atomically.

  Raises:
    OSError: it cannot be written there.
  """
  with atomic(path) as temporary, open(temporary, 'wb') as file:
    file.write(content)


def write_json(path: Path, content: Any, kind: str | None = None) -> None:
  """Writes a JSON file atomically.

  Args:
    path: path of the file.
    content: JSON's types, with a kind a dictionary; numbers that are not finite become null.
    kind: kind of the file, which is written with its format under 'glora_jax'; None for neither.

  Raises:
    OSError: it cannot be written there.
  """
  if kind is not None:
    content = {STAMP: stamp_of(kind), **content}
  write_bytes(path, f'{json.dumps(with_nulls(content), indent=2)}\n'.encode())


def with_nulls(content: Any) -> Any:
  """The content with None for numbers that are not finite, which JSON lacks.

  Example:
    >>> with_nulls({'loss': float('nan'), 'accuracy': 0.5})
    {'loss': None, 'accuracy': 0.5}
  """
  # `loads` calls this function for NaN and Infinity, which `dumps` can write.
  return json.loads(json.dumps(content), parse_constant=lambda name: None)


def read_json(path: Path, kind: str | None = None, shape: Any = Any, remedy: str = AGAIN) -> Any:
  """Reads a file of `write_json`.

  Args:
    path: path of the file.
    kind: kind that the file must be of; None for a file of another program.
    shape: annotation of the content, see `checks.validate`.
    remedy: what to do if the file is damaged.

  Returns:
    The content, without kind and format.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it cannot be read, or is no regular file.
    ValueError: the file is damaged, of another kind or shape, or of a later version.

  Example:
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = os.path.join(folder, 'seconds.json')
    ...   write_json(path, {'test': 1.5}, 'seconds')
    ...   read_json(path, 'seconds', dict[str, float])
    {'test': 1.5}
  """
  content = load_json(path, remedy)
  stamp = content.pop(STAMP, None) if isinstance(content, dict) else None
  if kind is not None:
    check_stamp(path, stamp, kind, remedy)
  with reading(path, remedy):
    return validate(content, shape, '')


def load_json(path: Path, remedy: str) -> Any:
  """Reads any JSON file.

  Args:
    path: path of the file.
    remedy: what to do if it is damaged.

  Raises:
    FileNotFoundError: there is no such file.
    OSError: it cannot be read, or is no regular file.
    ValueError: it is damaged, or larger than `MOST_JSON_BYTES`.
  """
  with open_regular(path) as file:
    try:
      text = file.read(MOST_JSON_BYTES + 1)
      if len(text) > MOST_JSON_BYTES:
        raise ValueError(f'it has more than {MOST_JSON_BYTES:,} bytes')
      return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
      raise damaged(path, error, remedy) from error


def damaged(path: Path, reason: object, remedy: str = AGAIN) -> UserError:
  """Returns the error for a damaged file.

  Args:
    path: path of the file.
    reason: what is wrong with it.
    remedy: what to do.
  """
  return UserError(f'{printable(path)} is damaged ({first_line(reason)}); {remedy}.')


@contextlib.contextmanager
def reading(path: Path, remedy: str = AGAIN) -> Iterator[None]:
  """Turns errors about the content of a file, in the block, into the error of a damaged file.

  Raises:
    UserError: see `damaged`.
  """
  try:
    yield
  except (TypeError, ValueError) as error:
    raise damaged(path, error, remedy) from error


def first_line(reason: object) -> str:
  """The first line of a library's error message, which may be a page, cut if long."""
  text = re.sub(r':\s+', ': ', str(reason).strip())
  lines = text.splitlines() or [type(reason).__name__]
  line = lines[0][:_LONGEST_REASON].rstrip('.')
  return ''.join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def stamp_of(kind: str) -> dict[str, Any]:
  """The kind and format that a file of a kind has under `STAMP`."""
  return {'kind': kind, 'format': FORMATS.get(kind, 1)}


def check_stamp(path: Path, stamp: Any, kind: str, remedy: str = AGAIN) -> None:
  """Checks the kind and format of a file.

  Args:
    path: path of the file.
    stamp: its value of `STAMP`; None if it has none.
    kind: kind that it must be of.
    remedy: what to do if it is another file.

  Raises:
    LaterVersionError: a later version wrote it.
    ValueError: it is of another kind, or has none.
  """
  written = stamp.get('kind') if isinstance(stamp, dict) else None
  if written != kind:
    other = f' but one of kind {shown(written)}' if written else ''
    raise UserError(f'{printable(path)} is not a glora_jax {kind} file{other}; {remedy}.')
  format, known = stamp.get('format'), FORMATS.get(kind, 1)
  if not isinstance(format, int) or format < 1:
    raise damaged(path, f'its format is {format!r}', remedy)
  if format > known:
    raise LaterVersionError(
      f'{printable(path)} was written by a later version of glora_jax (format {shown(format)} of '
      f'{kind!r}, and this version reads up to {known}); upgrade glora_jax, or use a file of this '
      'version.'
    )


def write_safetensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
  """Writes a safetensors file atomically; its content is first assembled in memory.

  Args:
    path: path of the file.
    tensors: arrays by name.
    metadata: strings by name. With more than one, their order in the file varies.

  Raises:
    OSError: it cannot be written there.
  """
  contiguous = {name: np.asarray(value, order='C') for name, value in tensors.items()}
  try:
    # `save_file` makes a file that only its owner can read, and a partial one if it is killed.
    content = safetensors.numpy.save(contiguous, metadata)
  except safetensors.SafetensorError as error:
    raise OSError(f'{printable(path)} cannot be written ({first_line(error)}).') from error
  write_bytes(path, content)


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The arrays and the metadata of any safetensors file, by name; errors are the library's.

  The file is reopened after every `_BYTES_PER_OPENING`, because before safetensors 0.8 an open file
  keeps in memory what was read from it. It is not reopened for each tensor, because that parses the
  header.
  """
  arrays = {}
  with safetensors.safe_open(path, 'numpy') as file:
    names, texts = file.keys()[::-1], file.metadata() or {}
  while names:
    num_bytes = 0
    with safetensors.safe_open(path, 'numpy') as file:
      while names and num_bytes < _BYTES_PER_OPENING:
        name = names.pop()
        arrays[name] = file.get_tensor(name)
        num_bytes += arrays[name].nbytes
  return arrays, texts


def require_numbers(where: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError unless arrays are floating-point and finite, in float32 too."""
  for name, value in arrays.items():
    if value.dtype.name not in _FLOATS:
      raise ValueError(f'{where}: the tensor {name} is {value.dtype.name}, not floating-point.')
    with np.errstate(over='ignore'):
      is_finite = np.isfinite(value.astype(np.float32, copy=False)).all()
    if not is_finite:
      raise ValueError(
        f'{where}: the tensor {name} is not finite; the training diverged, or the file is damaged.'
      )


def write_tensors(path: Path, tensors: dict[str, Any], kind: str, metadata: dict[str, Any]) -> None:
  """Writes a safetensors file of this project atomically.

  All metadata is one JSON string, since safetensors writes several in any order. So equal content
  gives equal bytes.

  Args:
    path: path of the file.
    tensors: arrays by name.
    kind: kind of the file, which `read_tensors` checks.
    metadata: more to write, of JSON's types; arrays become lists.

  Raises:
    ValueError: metadata are called 'kind' or 'format', or cannot be written as JSON.
    OSError: it cannot be written there.
  """
  stamp = stamp_of(kind)
  if reserved := stamp.keys() & metadata.keys():
    raise ValueError(f'The metadata name {min(reserved)!r} is reserved; choose another.')
  try:
    text = json.dumps({**stamp, **metadata}, allow_nan=False, default=json_default)
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(
      'Metadata must be JSON: strings, finite numbers, lists and dictionaries '
      f'({first_line(error)}).'
    ) from error
  write_safetensors(path, tensors, {STAMP: text})


def read_tensors(path: Path, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads a file of `write_tensors`.

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
    raise FileNotFoundError(f'There is no file {printable(path)}; pass a safetensors file.')
  try:
    tensors, texts = read_safetensors(path)
  except Exception as error:  # safetensors raises its own type, and others for odd contents
    raise UserError(
      f'{printable(path)} is damaged or not a safetensors file ({first_line(error)}); get it '
      'again, or remove it if a run wrote it, which then writes it again.'
    ) from error
  return tensors, check_metadata(path, texts.get(STAMP, '{}'), kind)


def check_metadata(path: Path, text: str, kind: str) -> dict[str, Any]:
  """The metadata of a safetensors file of this project, without kind and format.

  Args:
    path: path of the file.
    text: its value of `STAMP`.
    kind: kind that it must be of.

  Raises:
    ValueError: it is damaged, of another kind or a later version, or has numbers that are not
      finite.
  """
  try:
    metadata = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise damaged(path, error) from error
  stamp = {}
  if isinstance(metadata, dict):  # the weights in the package have no format
    stamp = {'kind': metadata.pop('kind', None), 'format': metadata.pop('format', 1)}
  check_stamp(path, stamp, kind, 'pass the right file')
  with reading(path):
    json.dumps(metadata, allow_nan=False)
  return metadata


def json_default(value: Any) -> Any:
  """The `default=` of `json.dumps` that writes arrays as lists."""
  return value.tolist() if hasattr(value, 'tolist') else json.JSONEncoder().default(value)


def require_other_than(path: Path, inputs: Iterable[Path]) -> None:
  """Checks that writing a file would replace none of the inputs, through any path or link.

  Args:
    path: path of the file.
    inputs: paths of the files that are read.

  Raises:
    FileExistsError: it would.
  """
  for other in inputs:
    if os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other):
      raise FileExistsError(
        f'{printable(path)} would replace {printable(other)}, an input; choose another path.'
      )
