"""A linear module of a model, and where its layers are in the model's parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from glora_jax.method.layout import Layout
from glora_jax.tree import Path, get


@dataclasses.dataclass(frozen=True)
class Site:
  """One linear module of the model, which may hold a whole stack of layers.

  Attributes:
    kernel_path: path of the kernel in the params.
    bias_path: path of the bias; None without bias.
    kernel_shape: shape of the whole kernel, with all stack axes.
    bias_shape: shape of the whole bias; None without bias.
    dtype: data type of the kernel.
    layout: layout of the whole parameters. Its stack is first what lifted transforms added,
      outermost first, then the module's own.
    local: layout of the parameters that the module itself sees, below all lifted transforms.
    lifts: where each lifted axis is, outermost first, counted in what is left of the kernel at its
      level.
    local_ndim: number of dimensions of the kernel that the module itself sees.
    kind: name of the module's class.
    is_convolution: whether it is a convolution, also of a class that somebody derived from one.
    input_id: a number that is equal for sites that get the very same input array.
    shared: whether the model also reads the parameters by other ways than the module's call; they
      are then always merged up front.
    rows: rows of its layers among all layers of the model, in the order of the flattened stack;
      those of a genome are counted among the adapted layers alone (see `number_rows`).
    nests: whether the kernel's module holds other layers, too (see `apart`).
  """

  kernel_path: Path
  bias_path: Path | None
  kernel_shape: tuple[int, ...]
  bias_shape: tuple[int, ...] | None
  dtype: np.dtype
  layout: Layout
  local: Layout
  lifts: tuple[int, ...]
  local_ndim: int
  kind: str = 'Dense'
  is_convolution: bool = False
  input_id: int = 0
  shared: bool = False
  rows: tuple[int, ...] = ()
  nests: bool = False

  @property
  def path(self) -> Path:
    """Path of its supports in the `glora` collection: the kernel's, or its module's.

    A parameter that is called `kernel` stands for its module, unless that holds other layers.
    """
    is_a_module = self.kernel_path[-1:] == ('kernel',) and not self.nests
    return self.kernel_path[:-1] if is_a_module else self.kernel_path

  @property
  def name(self) -> str:
    """The '/'-joined path; a model that is one linear module has none, and is named by its kind."""
    return '/'.join(self.path) or self.kind

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stack's axes; () for a single layer."""
    return self.layout.sizes(self.kernel_shape).stack

  @property
  def in_features(self) -> int:
    """Inputs of each layer."""
    return self.layout.sizes(self.kernel_shape).inputs

  @property
  def out_features(self) -> int:
    """Outputs of each layer."""
    return self.layout.sizes(self.kernel_shape).outputs

  @property
  def has_bias(self) -> bool:
    """Whether the module has a bias."""
    return self.bias_path is not None

  def kernel(self, params: Any) -> jax.Array:
    """The kernel in a model's params, out of its box."""
    return nn.meta.unbox(get(params, self.kernel_path))

  def bias(self, params: Any) -> jax.Array | None:
    """The bias in a model's params, out of its box; None without bias."""
    return None if self.bias_path is None else nn.meta.unbox(get(params, self.bias_path))


def apart(sites: Sequence[Site]) -> list[Site]:
  """The sites with no path that is the beginning of another's: one that is becomes its kernel's."""
  beginnings = {site.path[:end] for site in sites for end in range(len(site.path))}
  return [dataclasses.replace(site, nests=site.path in beginnings) for site in sites]
