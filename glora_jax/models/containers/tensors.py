"""What an opened file of tensors is, whatever its container."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple

import ml_dtypes
import numpy as np

Container = Literal['npz', 'safetensors', 'torch']

# Floating-point types by the names that safetensors, NumPy and PyTorch have for them.
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


class TensorSpec(NamedTuple):
  """What is known of a tensor before it is read.

  Attributes:
    shape: shape of the tensor.
    dtype: type of its numbers; None where it is no floating-point type of NumPy.
  """

  shape: tuple[int, ...]
  dtype: np.dtype | None


class Refused(Exception):
  """Why a file is refused, in a sentence that stands by itself."""


class Tensors(abc.ABC):
  """An opened file: names, shapes and types are known, the tensors themselves are still in it.

  Reading one tensor at a time takes little more memory than what is made of it.

  Attributes:
    container: type of the file.
    path: path of the file.
    specs: shapes and types of its tensors, by name.
    metadata: texts by name that stand in a safetensors file.
    wrapper: key that holds the tensors of a PyTorch file; None where they are at the top.
  """

  container: ClassVar[Container]

  def __init__(
    self,
    path: str,
    specs: dict[str, TensorSpec],
    metadata: dict[str, str] | None = None,
    wrapper: str | None = None,
  ):
    self.path = path
    self.specs = specs
    self.metadata = metadata or {}
    self.wrapper = wrapper

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor.

    A tensor of a PyTorch file can be read once: it is let go, and memory does not hold it twice.

    Raises:
      ValueError: the tensor is damaged, which shows in the middle of a file only now.
    """
    with self._explained(name):
      return self._read(name)

  def blocks(self, name: str) -> Iterator[np.ndarray]:
    """Reads a tensor along its first axis, never holding more than one index of it.

    Raises:
      ValueError: the tensor is damaged.
    """
    with self._explained(name):
      yield from self._blocks(name)

  @abc.abstractmethod
  def _read(self, name: str) -> np.ndarray: ...

  @abc.abstractmethod
  def _blocks(self, name: str) -> Iterator[np.ndarray]: ...

  @contextlib.contextmanager
  def _explained(self, name: str) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      raise ValueError(
        f'{self.path}: the tensor {name} is damaged ({first_line(error)}); get the file again.'
      ) from error


def float_type(name: str) -> np.dtype | None:
  """The floating-point type of a name; None where it is another kind of type."""
  return np.dtype(FLOATS[name]) if name in FLOATS else None


def first_line(error: Exception) -> str:
  """The beginning of an error's text, or its type where it has none."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]
