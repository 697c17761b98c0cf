"""safetensors files, as Hugging Face and timm write them; `glora_jax.files` writes them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import safetensors

from glora_jax.models.containers.tensors import Tensors, TensorSpec, float_type


class Safetensors(Tensors):
  """An opened safetensors file.

  The pages that a memory map has touched stay in memory until it is closed: so the file is opened
  anew for each tensor.
  """

  container = 'safetensors'

  def __init__(self, path: str):
    with safetensors.safe_open(path, 'numpy') as file:
      slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, not a dict
      specs = {
        name: TensorSpec(tuple(part.get_shape()), float_type(part.get_dtype()))
        for name, part in slices.items()
      }
      metadata = file.metadata()
    super().__init__(path, specs, metadata)

  def _read(self, name: str) -> np.ndarray:
    with safetensors.safe_open(self.path, 'numpy') as file:
      return file.get_tensor(name)

  def _blocks(self, name: str) -> Iterator[np.ndarray]:
    for number in range(self.specs[name].shape[0]):
      with safetensors.safe_open(self.path, 'numpy') as file:
        yield file.get_slice(name)[number : number + 1][0]
