"""PyTorch's files, which need PyTorch; they are read with `weights_only=True`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from glora_jax.files import Path, whole
from glora_jax.limits import listed, shown
from glora_jax.models.containers.tensors import Refused, Tensors, TensorSpec, float_type

# Keys under which checkpoints keep the weights, the likelier first.
WRAPPERS = ('model', 'state_dict', 'teacher', 'module')


class PyTorch(Tensors):
  """An opened PyTorch file, whose tensors are let go one by one as they are read."""

  container = 'torch'

  def __init__(self, path: str, key: str | None = None):
    self._torch = require_torch(path)
    content = _load(self._torch, path)
    wrapper = _wrapper(self._torch, path, content, key)
    self._state = _state(self._torch, path, content if wrapper is None else content[wrapper])
    specs = {
      name: TensorSpec(tuple(value.shape), float_type(str(value.dtype).removeprefix('torch.')))
      for name, value in self._state.items()
    }
    super().__init__(path, specs, wrapper=wrapper)

  def _read(self, name: str) -> np.ndarray:
    value = self._state.pop(name).detach()
    if value.dtype == self._torch.bfloat16:
      return value.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()

  def _blocks(self, name: str) -> Iterator[np.ndarray]:
    return iter(self._read(name))


def _load(torch: ModuleType, path: str) -> Any:
  try:
    return torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    unsafe = 'eights_only' in str(error) or 'npickl' in str(error)
    fault = 'holds more than tensors, or is damaged' if unsafe else 'is damaged or cut off'
    raise Refused(f'{path} {fault}: PyTorch does not load it with weights_only=True.') from error


def _wrapper(torch: ModuleType, path: str, content: Any, key: str | None) -> str | None:
  """The key of the state dict that is meant; None where its tensors are at the top.

  Raises:
    Refused: there is none at the key that is given, or several where none is given.
  """
  entries = content if isinstance(content, dict) else {}
  sizes = {name: len(_named_tensors(torch, value)) for name, value in entries.items()}
  sizes = {name: size for name, size in sizes.items() if isinstance(name, str) and size}
  if key is not None:
    if key not in sizes:
      kept = f'its state dicts are {listed(sizes)}' if sizes else 'leave the key out'
      raise Refused(f'{path} has no state dict at the key {shown(key)}; {kept}.')
    return key
  known = next((name for name in WRAPPERS if name in sizes), None)
  if not sizes or (known is None and _named_tensors(torch, content)):
    return None
  chosen = known or max(sizes, key=lambda name: sizes[name])
  # The buffers of a loss or an optimizer are no second model.
  models = [name for name, size in sizes.items() if size >= sizes[chosen] / 2]
  if len(models) > 1:
    raise Refused(
      f'{path} holds several state dicts, {listed(models)}; choose one with --key (key= in '
      'Python), and for a run convert it first with --key.'
    )
  return chosen


def _named_tensors(torch: ModuleType, content: Any) -> dict[str, Any]:
  entries = content.items() if isinstance(content, dict) else ()
  return {
    name: value
    for name, value in entries
    if isinstance(name, str) and isinstance(value, torch.Tensor)
  }


def _state(torch: ModuleType, path: str, content: Any) -> dict[str, Any]:
  """The tensors of a state dict by name, each checked to be as large as it declares."""
  state = _named_tensors(torch, content)
  for name, value in state.items():
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
      raise Refused(
        f'{path}: the tensor {name} declares shape {tuple(value.shape)}, and fewer numbers are '
        'there; that is no checkpoint.'
      )
  if not state:
    raise Refused(f'{path} holds no tensors by name; a state dict is expected.')
  return state


def write_torch(path: Path, tensors: dict[str, np.ndarray], wrapper: str | None = None) -> None:
  """Writes a PyTorch state dict, whole or not at all; below the key `wrapper` if it is given."""
  torch = require_torch(path)
  state = {name: _to_torch(torch, value) for name, value in tensors.items()}
  with whole(path) as temporary:
    torch.save({wrapper: state} if wrapper else state, temporary)


def _to_torch(torch: ModuleType, value: np.ndarray) -> Any:
  value = np.asarray(value, order='C')
  if value.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(value)


def require_torch(path: Path) -> ModuleType:
  """PyTorch, which a file needs.

  Raises:
    ImportError: it is not installed.
  """
  with contextlib.suppress(ImportError):
    import torch

    return torch
  raise ImportError(
    f'{path} is a PyTorch file and needs PyTorch: pip install torch. '
    'Or convert it to safetensors where PyTorch is.'
  )
