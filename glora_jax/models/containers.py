"""Files of named tensors, whatever their container: npz, safetensors, PyTorch. Nothing in a file is ever executed.

`open_tensors` looks at names, shapes and types only; `Tensors.read` brings in one tensor, so that reading a large file takes
little more memory than what is made of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from glora_jax.files import Path, whole

FLOATS = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'float64': np.float64,
  'float32': np.float32,
  'float16': np.float16,
  'bfloat16': ml_dtypes.bfloat16,
}
WRAPPERS = (
  'model',
  'state_dict',
  'teacher',
  'module',
)  # under which PyTorch checkpoints keep the weights


class Spec(NamedTuple):
  """Shape and type of a tensor that was not read; the type is None where it is no floating-point type of NumPy."""

  shape: tuple[int, ...]
  dtype: np.dtype | None


@dataclasses.dataclass(frozen=True)
class Tensors:
  """An opened file.

  Attributes:
    path: of the file.
    container: 'npz', 'safetensors' or 'torch'.
    specs: of its tensors, by name.
    metadata: of a safetensors file, name to text.
    wrapper: the key that holds the tensors of a PyTorch file, None where they are at the top.
    read: name -> array. A tensor of a PyTorch file can be read once: it is let go, so that memory does not hold it twice.
    blocks: name -> iterator over the array's first axis, which never holds more than one entry of it.
  """

  path: str
  container: str
  specs: dict[str, Spec]
  read: Callable[[str], np.ndarray]
  blocks: Callable[[str], Iterator[np.ndarray]]
  metadata: dict[str, str] = dataclasses.field(default_factory=dict)
  wrapper: str | None = None


def open_tensors(path: Path) -> Tensors:
  """Opens a file by its contents; its name does not matter.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is empty, cut off, of another type, or declares what it cannot hold.
    ImportError: it is a PyTorch file, and PyTorch is not installed.
  """
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f'There is no file {path}; give the path of an npz, safetensors or PyTorch checkpoint.'
    )
  size = os.path.getsize(path)
  if size == 0:
    raise ValueError(f'{path} is empty; get it again.')
  with open(path, 'rb') as file:
    start = file.read(16)
  try:
    if start[:2] == b'PK':
      with zipfile.ZipFile(path) as archive:
        _check_declared(path, archive, size)
        names = archive.namelist()
      return (
        _open_torch(path) if any(name.endswith('data.pkl') for name in names) else _open_npz(path)
      )
    if len(start) > 8 and start[8:9] == b'{':
      return _open_safetensors(path)
    if start[:1] == b'\x80' or start[2:8] == b'\x8a\x0al\xfc\x9cF':  # a pickle
      return _open_torch(path)
  except (ImportError, _Refused) as error:
    raise (
      type(error)(str(error)) if isinstance(error, ImportError) else ValueError(str(error))
    ) from error
  except Exception as error:  # zipfile, zlib, numpy, safetensors and torch each have their own
    raise ValueError(
      f'{path} is damaged or cut off ({_first_line(error)}); get it again.'
    ) from error
  raise ValueError(f'{path} is no npz, safetensors or PyTorch file (it starts with {start[:8]!r}).')


def write_npz(path: Path, tensors: dict[str, np.ndarray]) -> None:
  """Writes an npz file without compression, whole or not at all; NumPy stores bfloat16 as two raw bytes, as big_vision expects."""
  with whole(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **tensors)


def write_torch(path: Path, tensors: dict[str, np.ndarray], wrapper: str | None = None) -> None:
  """Writes a PyTorch state dict, whole or not at all."""
  torch = _torch(path)

  def convert(value):
    value = np.asarray(value, order='C')
    return (
      torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
      if value.dtype == ml_dtypes.bfloat16
      else torch.from_numpy(value)
    )

  state = {name: convert(value) for name, value in tensors.items()}
  with whole(path) as temporary:
    torch.save({wrapper: state} if wrapper else state, temporary)


class _Refused(Exception):
  """A sentence that stands by itself."""


def _first_line(error):
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check_declared(path, archive, size):
  declared = sum(entry.file_size for entry in archive.infolist())
  if (
    declared > 64 * 2**20 + 8 * size
  ):  # weights hardly shrink; a file that unpacks to much more is a trap
    raise _Refused(
      f'{path} has {size} bytes and declares to unpack to {declared}; that is no checkpoint.'
    )


def _open_npz(path):
  with zipfile.ZipFile(path) as archive:
    specs, fortran = {}, {}
    for entry in archive.infolist():
      if not entry.filename.endswith('.npy'):
        raise _Refused(f'{path} is a zip file with {entry.filename} in it, not an npz file.')
      with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read_header = (
          np.lib.format.read_array_header_1_0
          if version == (1, 0)
          else np.lib.format.read_array_header_2_0
        )
        shape, in_fortran_order, dtype = read_header(file)
        offset = file.tell()
      name = entry.filename.removesuffix('.npy')
      if dtype.hasobject:
        raise _Refused(
          f'{path}: the tensor {name} holds Python objects, which would be executed; that is no checkpoint.'
        )
      if (
        any(side < 0 for side in shape)
        or math.prod(shape) * dtype.itemsize != entry.file_size - offset
      ):
        raise _Refused(
          f'{path}: the tensor {name} declares shape {shape} of {dtype}, but {entry.file_size - offset} bytes are there.'
        )
      fortran[name] = in_fortran_order
      specs[name] = Spec(
        shape, np.dtype(ml_dtypes.bfloat16) if dtype.str in ('|V2', '<V2') else _float(dtype)
      )

  def read(name):
    with zipfile.ZipFile(path) as archive, archive.open(f'{name}.npy') as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == 'V' else array

  def blocks(name):
    (count, *shape), dtype = specs[name]
    if fortran[name]:
      yield from read(name)
      return
    with zipfile.ZipFile(path) as archive, archive.open(f'{name}.npy') as file:
      file.read(
        archive.getinfo(f'{name}.npy').file_size - count * math.prod(shape) * dtype.itemsize
      )  # the header
      for _ in range(count):
        yield np.frombuffer(file.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)

  return _tensors(path, 'npz', specs, read, blocks)


def _open_safetensors(path):
  with safetensors.safe_open(path, 'numpy') as file:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
    specs = {
      name: Spec(
        tuple(part.get_shape()), FLOATS.get(part.get_dtype()) and np.dtype(FLOATS[part.get_dtype()])
      )
      for name, part in slices.items()
    }
    metadata = file.metadata() or {}

  def read(
    name,
  ):  # opened anew, since the pages that a memory map has touched stay in memory until it is closed
    with safetensors.safe_open(path, 'numpy') as file:
      return file.get_tensor(name)

  def blocks(name):
    for number in range(specs[name].shape[0]):
      with safetensors.safe_open(path, 'numpy') as file:
        yield file.get_slice(name)[number : number + 1][0]

  return _tensors(path, 'safetensors', specs, read, blocks, metadata=metadata)


def _open_torch(path):
  torch = _torch(path)
  try:
    content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    what = (
      'holds more than tensors, or is damaged'
      if 'eights_only' in str(error) or 'npickl' in str(error)
      else 'is damaged or cut off'
    )
    raise _Refused(f'{path} {what}: PyTorch does not load it with weights_only=True.') from error
  wrapper = next(
    (key for key in WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)),
    None,
  )
  content = content[wrapper] if wrapper else content
  tensors = (
    {
      name: value
      for name, value in content.items()
      if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    if isinstance(content, dict)
    else {}
  )
  for name, value in tensors.items():
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
      raise _Refused(
        f'{path}: the tensor {name} declares shape {tuple(value.shape)}, and fewer numbers are there; that is no checkpoint.'
      )
  if not tensors:
    raise _Refused(f'{path} holds no tensors by name; a state dict is expected.')
  specs = {
    name: Spec(tuple(value.shape), _float(str(value.dtype).removeprefix('torch.')))
    for name, value in tensors.items()
  }

  def read(name):
    value = tensors.pop(name).detach()
    return (
      value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
      if value.dtype == torch.bfloat16
      else value.numpy()
    )

  del content  # and with it the last name of each tensor but the one that `read` lets go
  return _tensors(path, 'torch', specs, read, lambda name: iter(read(name)), wrapper=wrapper)


def _float(dtype: Any) -> np.dtype | None:
  found = FLOATS.get(str(dtype))
  return None if found is None else np.dtype(found)


def _tensors(path, container, specs, read, blocks, **fields):
  """What is damaged in the middle of a file shows only when it is read; then it is the same sentence."""
  explain = lambda name, error: ValueError(
    f'{path}: the tensor {name} is damaged ({_first_line(error)}); get the file again.'
  )

  def explained_read(name):
    try:
      return read(name)
    except Exception as error:
      raise explain(name, error) from error

  def explained_blocks(name):
    try:
      yield from blocks(name)
    except Exception as error:
      raise explain(name, error) from error

  return Tensors(path, container, specs, explained_read, explained_blocks, **fields)


def _torch(path):
  with contextlib.suppress(ImportError):
    import torch

    return torch
  raise ImportError(
    f'{path} is a PyTorch file and needs PyTorch: pip install torch. Or convert it to safetensors where PyTorch is.'
  )
