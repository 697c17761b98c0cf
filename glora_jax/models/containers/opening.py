"""Opens a file of tensors by what is in it."""

from __future__ import annotations

import os
import zipfile

from glora_jax.files import Path
from glora_jax.limits import check_path, shown
from glora_jax.models.containers.npz import Npz, check_unpacked_size
from glora_jax.models.containers.pytorch import PyTorch
from glora_jax.models.containers.safetensors import Safetensors
from glora_jax.models.containers.tensors import Refused, Tensors, first_line

_ZIP = b'PK'
_PICKLE = b'\x80'
_LEGACY_TORCH = b'\x8a\x0al\xfc\x9cF'  # the magic number of PyTorch before its files were zip files
_HEADER_SIZE = 8  # bytes of a safetensors file that tell how long its JSON is


def open_tensors(path: Path, key: str | None = None) -> Tensors:
  """Opens a file by its contents; its name does not matter.

  Args:
    path: path of an npz, safetensors or PyTorch file.
    key: key of the state dict in a PyTorch file that holds several.

  Returns:
    Names, shapes and types of the tensors, which are read one by one.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is empty, cut off, of another type, or declares what it cannot hold; or it holds
      several state dicts and no key is given, or none at the key.
    ImportError: it is a PyTorch file, and PyTorch is not installed.
  """
  name = check_path(path)
  if not os.path.isfile(name):
    raise FileNotFoundError(
      f'There is no file {name}; give the path of an npz, safetensors or PyTorch checkpoint.'
    )
  if os.path.getsize(name) == 0:
    raise ValueError(f'{name} is empty; get it again.')
  with open(name, 'rb') as file:
    start = file.read(16)
  try:
    opened = _open(name, start, key)
  except ImportError:
    raise
  except Refused as error:
    raise ValueError(str(error)) from error
  except Exception as error:  # zipfile, zlib, NumPy, safetensors and PyTorch each have their own
    raise ValueError(
      f'{name} is damaged or cut off ({first_line(error)}); get it again.'
    ) from error
  if opened is None:
    raise ValueError(
      f'{name} is no npz, safetensors or PyTorch file (it starts with {start[:8]!r}).'
    )
  if key is not None and not isinstance(opened, PyTorch):
    raise ValueError(f'{name} is not a PyTorch file, so it has no key {shown(key)}; leave it out.')
  return opened


def _open(path: str, start: bytes, key: str | None) -> Tensors | None:
  """The opened file, or None where its first bytes are those of no known container."""
  if start.startswith(_ZIP):
    with zipfile.ZipFile(path) as archive:
      check_unpacked_size(path, archive, os.path.getsize(path))
      names = archive.namelist()
    return PyTorch(path, key) if any(name.endswith('data.pkl') for name in names) else Npz(path)
  if start[_HEADER_SIZE : _HEADER_SIZE + 1] == b'{':
    return Safetensors(path)
  if start.startswith(_PICKLE) or start[2:8] == _LEGACY_TORCH:
    return PyTorch(path, key)
  return None
