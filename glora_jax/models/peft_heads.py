"""Heads of any model as modules of torch, for adapters of HF PEFT."""

from __future__ import annotations

import numpy as np

from glora_jax.method.layout import Layout
from glora_jax.method.site import Site
from glora_jax.tree import Path

MOST_AXES = 5  # of a kernel: three of space, in and out


def layout_of(site: Site) -> Layout:
  """The layout of a head; raises ValueError for one that is several layers."""
  if site.layout.stack:
    raise ValueError(
      f'The head {site.name} is a stack of {site.stack_shape} layers, and a head must be one torch '
      'module; fold the subnet and save the model instead.'
    )
  return site.layout


def read_linear(site: Site, path: Path, value: np.ndarray) -> np.ndarray:
  """A kernel or bias with the axes that it has here; as it is where it is of another size."""
  layout, is_kernel = layout_of(site), path == site.kernel_path
  if not is_kernel:
    fits = site.bias_shape is not None and value.shape == (site.out_features,)
    return np.asarray(layout.bias(value, site.bias_shape)) if fits else value
  fits = value.shape == (site.out_features, site.in_features)
  return np.asarray(layout.kernel(value.T, site.kernel_shape)) if fits else value


def check_kernel(name: str, value: np.ndarray) -> None:
  """Raises ValueError for a head that is neither a linear layer's kernel nor a convolution's."""
  if not 2 <= value.ndim <= MOST_AXES:
    raise ValueError(
      f'The head {name} has the shape {value.shape}, and kernels of linear layers and convolutions '
      f'have 2 to {MOST_AXES} axes; fold the subnet and save the model instead.'
    )
