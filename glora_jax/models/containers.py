"""Files of named tensors: npz, safetensors, PyTorch. Nothing in a file is ever executed.

Knows nothing of models. A file is opened by what is in it; names, shapes and types of its tensors
are then known, and the tensors are read one at a time.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import IO, Any, ClassVar, Literal, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from glora_jax.files import Path, first_line, whole
from glora_jax.limits import check_path, listed, shown

Container = Literal['npz', 'safetensors', 'torch']
Shape = tuple[int, ...]

# Floating-point types, and the names that safetensors has for them.
_FLOATS = ('float64', 'float32', 'float16', 'bfloat16')
_SHORT_NAMES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
_RAW_BFLOAT16 = ('|V2', '<V2')  # NumPy stores bfloat16, which it does not know, as two raw bytes

# Weights hardly shrink; a file that declares to unpack to much more than it has is a trap.
MOST_UNPACKED_PER_BYTE = 8
ALWAYS_UNPACKED = 64 * 2**20

# Keys under which PyTorch files keep the weights, the likelier first.
WRAPPERS = ('model', 'state_dict', 'teacher', 'module')
_LEGACY_TORCH = b'\x8a\x0al\xfc\x9cF'  # the magic number of PyTorch before its files were zip files


class TensorSpec(NamedTuple):
  """What is known of a tensor before it is read; of no floating-point type, `dtype` is None."""

  shape: Shape
  dtype: Any


class Refused(Exception):
  """Why a file is refused, in a sentence that stands by itself."""


class Tensors:
  """An opened file.

  Attributes:
    container: type of the file.
    path: path of the file.
    specs: shapes and types of its tensors, by name.
    metadata: texts by name that stand in a safetensors file.
    wrapper: key that holds the tensors of a PyTorch file; None where they are at the top.
  """

  container: ClassVar[Container]
  wrapper: str | None = None

  def __init__(self, path: str):
    self.path = path
    self.specs: dict[str, TensorSpec] = {}
    self.metadata: dict[str, str] = {}

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor; one of a PyTorch file can be read once, and memory does not hold it twice.

    Raises:
      ValueError: the tensor is damaged, which shows in the middle of a file only now.
    """
    with self._explained(name):
      return self._read(name)

  def blocks(self, name: str) -> Iterator[np.ndarray]:
    """Reads a tensor along its first axis, where possible one index of it at a time."""
    with self._explained(name):
      yield from self._blocks(name)

  def _read(self, name: str) -> np.ndarray:
    raise NotImplementedError

  def _blocks(self, name: str) -> Iterator[np.ndarray]:
    return iter(self._read(name))

  @contextlib.contextmanager
  def _explained(self, name: str) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      raise ValueError(
        f'{self.path}: the tensor {name} is damaged ({first_line(error)}); get the file again.'
      ) from error


class Safetensors(Tensors):
  """A safetensors file, as Hugging Face and timm write them.

  The pages that a memory map has touched stay in memory until it is closed: so the file is opened
  anew for each tensor.
  """

  container = 'safetensors'

  def __init__(self, path: str):
    super().__init__(path)
    with safetensors.safe_open(path, 'numpy') as file:
      slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
      self.specs = {
        name: _spec(part.get_shape(), part.get_dtype()) for name, part in slices.items()
      }
      self.metadata = file.metadata() or {}

  def _read(self, name: str) -> np.ndarray:
    with safetensors.safe_open(self.path, 'numpy') as file:
      return file.get_tensor(name)

  def _blocks(self, name: str) -> Iterator[np.ndarray]:
    for number in range(self.specs[name].shape[0]):
      with safetensors.safe_open(self.path, 'numpy') as file:
        yield file.get_slice(name)[number : number + 1][0]


class Npz(Tensors):
  """NumPy's npz files, as vision_transformer and big_vision write them."""

  container = 'npz'

  def __init__(self, path: str):
    super().__init__(path)
    self._places = {}
    with zipfile.ZipFile(path) as archive:
      for member in archive.infolist():
        name, extension = os.path.splitext(member.filename)
        if extension != '.npy':
          raise Refused(f'{path} is a zip file with {member.filename} in it, not an npz file.')
        with archive.open(member) as file:
          tensor = f'{path}: the tensor {name}'
          self.specs[name], *self._places[name] = _read_header(tensor, file, member.file_size)

  def _read(self, name: str) -> np.ndarray:
    with zipfile.ZipFile(self.path) as archive, archive.open(f'{name}.npy') as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
    return array.view(ml_dtypes.bfloat16) if array.dtype.kind == 'V' else array

  def _blocks(self, name: str) -> Iterator[np.ndarray]:
    in_fortran_order, offset = self._places[name]
    if in_fortran_order:  # a block lies scattered over the whole tensor
      yield from self._read(name)
      return
    (count, *shape), dtype = self.specs[name]
    with zipfile.ZipFile(self.path) as archive, archive.open(f'{name}.npy') as file:
      file.read(offset)
      for _ in range(count):
        block = file.read(math.prod(shape) * dtype.itemsize)
        yield np.frombuffer(block, dtype).reshape(shape)


def _read_header(tensor: str, file: IO[bytes], size: int) -> tuple[TensorSpec, bool, int]:
  """The spec of a member of an npz file, whether it is in Fortran's order, and where it begins."""
  is_old = np.lib.format.read_magic(file) == (1, 0)
  read = np.lib.format.read_array_header_1_0 if is_old else np.lib.format.read_array_header_2_0
  shape, in_fortran_order, dtype = read(file)
  if dtype.hasobject:
    raise Refused(f'{tensor} holds Python objects, which would be executed; that is no checkpoint.')
  present = size - file.tell()
  if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != present:
    raise Refused(f'{tensor} declares shape {shape} of {dtype}, but {present} bytes are there.')
  name = 'bfloat16' if dtype.str in _RAW_BFLOAT16 else str(dtype)
  return _spec(shape, name), in_fortran_order, file.tell()


class PyTorch(Tensors):
  """A PyTorch file, which needs PyTorch; its tensors are let go one by one as they are read."""

  container = 'torch'

  def __init__(self, path: str, key: str | None = None):
    super().__init__(path)
    self._torch = require_torch(path)
    try:
      content = self._torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
      unsafe = 'eights_only' in str(error) or 'npickl' in str(error)
      fault = 'holds more than tensors, or is damaged' if unsafe else 'is damaged or cut off'
      raise Refused(f'{path} {fault}: PyTorch does not load it with weights_only=True.') from error
    self.wrapper = self._find_wrapper(content, key)
    self._state = self._named(content if self.wrapper is None else content[self.wrapper])
    if not self._state:
      raise Refused(f'{path} holds no tensors by name; a state dict is expected.')
    for name, value in self._state.items():
      self.specs[name] = _spec(value.shape, str(value.dtype).removeprefix('torch.'))
      if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise Refused(
          f'{path}: the tensor {name} declares shape {tuple(value.shape)}, and fewer numbers are '
          'there; that is no checkpoint.'
        )

  def _read(self, name: str) -> np.ndarray:
    value = self._state.pop(name).detach()
    if value.dtype == self._torch.bfloat16:
      return value.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()

  def _find_wrapper(self, content: Any, key: str | None) -> str | None:
    """The key of the state dict that is meant; None where its tensors are at the top."""
    entries = content.items() if isinstance(content, dict) else ()
    sizes = {name: len(self._named(value)) for name, value in entries if isinstance(name, str)}
    sizes = {name: size for name, size in sizes.items() if size}
    if key is not None:
      if key not in sizes:
        kept = f'its state dicts are {listed(sizes)}' if sizes else 'leave the key out'
        raise Refused(f'{self.path} has no state dict at the key {shown(key)}; {kept}.')
      return key
    known = next((name for name in WRAPPERS if name in sizes), None)
    if not sizes or (known is None and self._named(content)):
      return None
    chosen = known or max(sizes, key=lambda name: sizes[name])
    # The buffers of a loss or an optimizer are no second model.
    models = [name for name, size in sizes.items() if size >= sizes[chosen] / 2]
    if len(models) > 1:
      raise Refused(
        f'{self.path} holds several state dicts, {listed(models)}; choose one with --key (key= in '
        'Python), and for a run convert it first with --key.'
      )
    return chosen

  def _named(self, content: Any) -> dict[str, Any]:
    """The tensors by name that a content has at its top."""
    entries = content.items() if isinstance(content, dict) else ()
    tensor = self._torch.Tensor
    return {k: value for k, value in entries if isinstance(k, str) and isinstance(value, tensor)}


def _spec(shape: Iterable[int], type_name: str) -> TensorSpec:
  name = _SHORT_NAMES.get(type_name, type_name)
  return TensorSpec(tuple(shape), np.dtype(name) if name in _FLOATS else None)


def open_tensors(path: Path, key: str | None = None) -> Tensors:
  """Opens a file by its contents; its name does not matter.

  Args:
    path: path of an npz, safetensors or PyTorch file.
    key: key of the state dict in a PyTorch file that holds several.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is empty, cut off, of another type, declares what it cannot hold, or the key does
      not tell one state dict.
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
  if start.startswith(b'PK'):
    size = os.path.getsize(path)
    with zipfile.ZipFile(path) as archive:
      unpacked = sum(member.file_size for member in archive.infolist())
      if unpacked > ALWAYS_UNPACKED + MOST_UNPACKED_PER_BYTE * size:
        raise Refused(
          f'{path} has {size} bytes and declares to unpack to {unpacked}; that is no checkpoint.'
        )
      names = archive.namelist()
    return PyTorch(path, key) if any(name.endswith('data.pkl') for name in names) else Npz(path)
  if start[8:9] == b'{':  # after the length of a safetensors file's JSON
    return Safetensors(path)
  if start.startswith(b'\x80') or start[2:8] == _LEGACY_TORCH:
    return PyTorch(path, key)
  return None


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], wrapper: str | None = None) -> None:
  """Writes a PyTorch state dict, whole or not at all; below the key `wrapper` if it is given."""
  torch = require_torch(path)
  state = {}
  for name, value in tensors.items():
    value = np.asarray(value, order='C')
    is_bfloat16 = value.dtype == ml_dtypes.bfloat16
    tensor = torch.from_numpy(value.view(np.int16) if is_bfloat16 else value)
    state[name] = tensor.view(torch.bfloat16) if is_bfloat16 else tensor
  with whole(path) as temporary:
    torch.save({wrapper: state} if wrapper else state, temporary)


def require_torch(path: Path) -> ModuleType:
  """PyTorch, which a file needs; ImportError where it is not installed."""
  with contextlib.suppress(ImportError):
    import torch

    return torch
  raise ImportError(
    f'{path} is a PyTorch file and needs PyTorch: pip install torch. '
    'Or convert it to safetensors where PyTorch is.'
  )


def grouped(names: Iterable[str]) -> str:
  """Names in one line; those that differ in one block number are written once, with all numbers.

  >>> grouped(['blocks.0.norm1.bias', 'blocks.1.norm1.bias', 'cls_token'])
  'blocks.{0-1}.norm1.bias, cls_token'
  """
  numbers: dict[str, list[int]] = {}
  for name in names:
    number = re.search(r'(?<=[._/])(\d+)(?=[./])', name)
    if number is None:
      numbers.setdefault(name, [])
    else:
      pattern = f'{name[: number.start()]}{{}}{name[number.end() :]}'
      numbers.setdefault(pattern, []).append(int(number.group()))
  return ', '.join(_numbered(pattern, sorted(numbers[pattern])) for pattern in sorted(numbers))


def _numbered(pattern: str, numbers: list[int]) -> str:
  if not numbers:
    return pattern
  first, last = numbers[0], numbers[-1]
  is_range = len(numbers) > 1 and numbers == list(range(first, last + 1))
  text = f'{{{first}-{last}}}' if is_range else ','.join(map(str, numbers))
  return pattern.replace('{}', text, 1)


def require_shapes(path: str, given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
  """Compares the shapes of a file's tensors with those of its model.

  Args:
    path: path of the file.
    given: shapes of the tensors that the file holds, by name.
    expected: shapes of the tensors that the model needs, by name.

  Raises:
    ValueError: names every tensor that is missing, unexpected or misshaped.
  """
  misshaped = [
    f'{name} is {given[name]} and should be {expected[name]}'
    for name in sorted(expected.keys() & given.keys())
    if given[name] != expected[name]
  ]
  names_by_problem = {
    'missing': expected.keys() - given.keys(),
    'unexpected': given.keys() - expected.keys(),
    'misshaped': misshaped,
  }
  problems = [
    f'{problem}: {grouped(found)}' for problem, found in names_by_problem.items() if found
  ]
  if problems:
    raise ValueError(
      f'{path} does not hold the tensors of its model. {"; ".join(problems)}. '
      'Check that the file is whole and of the model that is asked for.'
    )


def require_floats(path: str, specs: Mapping[str, TensorSpec]) -> None:
  """Raises ValueError where tensors hold something else than floating-point numbers."""
  if odd := [name for name, spec in specs.items() if spec.dtype is None]:
    raise ValueError(f'{path}: {grouped(odd)} hold no floating-point numbers.')


def finite(path: str, name: str, array: np.ndarray) -> np.ndarray:
  """The array itself; ValueError where a number in it is, in float32, infinite or not a number."""
  is_finite = np.isfinite(np.sum(array, dtype=np.float64)) or np.isfinite(array).all()
  is_wide = array.dtype == np.float64
  if not is_finite or (is_wide and np.abs(array).max(initial=0) > np.finfo(np.float32).max):
    raise ValueError(
      f'{path}: the tensor {name} is not finite; the checkpoint comes from a run that diverged, '
      'or is damaged.'
    )
  return array


def read_finite(tensors: Tensors, name: str) -> np.ndarray:
  """A tensor of a file, checked to be finite."""
  return finite(tensors.path, name, tensors.read(name))
