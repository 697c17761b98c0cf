"""NumPy's npz files, as vision_transformer and big_vision write them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

import ml_dtypes
import numpy as np

from glora_jax.files import Path, whole
from glora_jax.models.containers.tensors import Refused, Tensors, TensorSpec, float_type

# NumPy stores bfloat16, which it does not know, as two raw bytes.
RAW_BFLOAT16 = ('|V2', '<V2')

# Weights hardly shrink; a file that declares to unpack to much more than it has is a trap.
MOST_UNPACKED_PER_BYTE = 8
ALWAYS_UNPACKED = 64 * 2**20


class Npz(Tensors):
  """An opened npz file."""

  container = 'npz'

  def __init__(self, path: str):
    headers = _read_headers(path)
    super().__init__(path, {name: header.spec for name, header in headers.items()})
    self._headers = headers

  def _read(self, name: str) -> np.ndarray:
    with zipfile.ZipFile(self.path) as archive, archive.open(f'{name}.npy') as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == 'V' else array

  def _blocks(self, name: str) -> Iterator[np.ndarray]:
    spec, in_fortran_order, offset = self._headers[name]
    if in_fortran_order:  # a block lies scattered over the whole tensor
      yield from self._read(name)
      return
    count, *shape = spec.shape
    size = math.prod(shape) * spec.dtype.itemsize
    with zipfile.ZipFile(self.path) as archive, archive.open(f'{name}.npy') as file:
      file.read(offset)
      for _ in range(count):
        yield np.frombuffer(file.read(size), spec.dtype).reshape(shape)


class _Header(NamedTuple):
  """What stands before the numbers of a member; `offset` is where they begin, in bytes."""

  spec: TensorSpec
  in_fortran_order: bool
  offset: int


def _read_headers(path: str) -> dict[str, _Header]:
  headers = {}
  with zipfile.ZipFile(path) as archive:
    for member in archive.infolist():
      if not member.filename.endswith('.npy'):
        raise Refused(f'{path} is a zip file with {member.filename} in it, not an npz file.')
      name = member.filename.removesuffix('.npy')
      with archive.open(member) as file:
        headers[name] = _read_header(f'{path}: the tensor {name}', file, member.file_size)
  return headers


def _read_header(tensor: str, file: IO[bytes], file_size: int) -> _Header:
  """Reads and checks the header of a member; `tensor` names it in the sentences of refusal."""
  version = np.lib.format.read_magic(file)
  if version == (1, 0):
    shape, in_fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
  else:
    shape, in_fortran_order, dtype = np.lib.format.read_array_header_2_0(file)
  offset = file.tell()
  if dtype.hasobject:
    raise Refused(f'{tensor} holds Python objects, which would be executed; that is no checkpoint.')
  present = file_size - offset
  if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != present:
    raise Refused(f'{tensor} declares shape {shape} of {dtype}, but {present} bytes are there.')
  raw = dtype.str in RAW_BFLOAT16
  float_dtype = np.dtype(ml_dtypes.bfloat16) if raw else float_type(str(dtype))
  return _Header(TensorSpec(shape, float_dtype), in_fortran_order, offset)


def check_unpacked_size(path: str, archive: zipfile.ZipFile, size: int) -> None:
  """Raises `Refused` where a zip file of `size` bytes declares to unpack to far too many."""
  unpacked = sum(member.file_size for member in archive.infolist())
  if unpacked > ALWAYS_UNPACKED + MOST_UNPACKED_PER_BYTE * size:
    raise Refused(
      f'{path} has {size} bytes and declares to unpack to {unpacked}; that is no checkpoint.'
    )


def write_npz(path: Path, tensors: dict[str, np.ndarray]) -> None:
  """Writes an npz file without compression, whole or not at all.

  NumPy stores bfloat16 as two raw bytes, as big_vision expects.
  """
  with whole(path) as temporary, open(temporary, 'wb') as file:
    np.savez(file, **tensors)
