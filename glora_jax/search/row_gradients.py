"""What was measured of kernels and biases, row by row, as float64 on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from glora_jax.mesh import on_host
from glora_jax.method.groups import Group
from glora_jax.method.site import Site
from glora_jax.method.space import FLAT_FORMS
from glora_jax.search.allocation import LayerGradients, joint_basis
from glora_jax.search.taps import Probe

Sums = dict[str, dict[str, np.ndarray]]  # by site and name, [fold, ...]


class RowGradients(NamedTuple):
  """What one row's gradients are, and along what.

  Attributes:
    gradients: see `LayerGradients`.
    basis: of `gradients.kernel`, [in, basis]; None for the inputs themselves.
    scaled_basis: of `gradients.scaled_kernel`, likewise.
  """

  gradients: LayerGradients
  basis: np.ndarray | None
  scaled_basis: np.ndarray | None


def _scales_by_lora(group: Group) -> bool:
  """Whether a LoRA is on offer for A."""
  return max(group.space.A or (0,)) >= len(FLAT_FORMS['A'])


def random_probes(group: Group, width: int, rng: np.random.Generator) -> dict[str, Probe]:
  """Probes of a first pass: random on the right, where they sketch the range of a gradient.

  Args:
    group: the layers.
    width: columns of each probe.
    rng: source of the numbers.

  Returns:
    Probes by 'B', of the gradient, and 'A', of the kernel times the gradient, where A has a LoRA.
  """
  left = np.zeros((*group.stack_shape, group.in_features, width), np.float32)
  shape = (*group.stack_shape, group.out_features, width)
  names = ('B', 'A') if _scales_by_lora(group) else ('B',)
  return {name: Probe(left, rng.standard_normal(shape, np.float32)) for name in names}


def joint_bases(group: Group, sums: Sums, size: int) -> dict[str, np.ndarray]:
  """An orthonormal basis of the directions that all folds need; see `allocation.joint_basis`.

  Args:
    group: the layers.
    sums: what a first pass found.
    size: number of directions of each fold.

  Returns:
    [stack..., in, fold * size] by 'B' and, where A has a LoRA, 'A'.
  """
  bases = {}
  for name in ('B', 'A') if _scales_by_lora(group) else ('B',):
    parts = [sums[site.name][f'{name}_right'] for site in group.members]
    sketches = np.sum(parts, axis=0)
    flat = sketches.reshape(len(sketches), -1, *sketches.shape[-2:])
    found = [joint_basis(flat[:, row], size) for row in range(flat.shape[1])]
    bases[name] = np.stack(found).reshape(sketches.shape[1:])
  return bases


def read_rows(
  group: Group, params: Any, sums: Sums, bases: Mapping[str, np.ndarray]
) -> Iterator[RowGradients]:
  """The gradients of a group's rows, with its members side by side along the outputs.

  Args:
    group: the layers.
    params: parameters of the model.
    sums: what the passes found.
    bases: the group's directions; none where its gradients were stored as they are.

  Yields:
    Its rows, in the order of the flattened stack.
  """
  kernels = _beside(
    group,
    lambda site: _flat(site.layout.matrices(on_host(site.kernel(params)).astype(np.float32)), 2),
  )
  found = {
    name: _beside(group, lambda site, name=name: _products(site, sums[site.name], name))
    for name in ('kernel', 'bias', 'scale', 'B_left', 'A_left')
    if all(name in sums[site.name] for site in group.members)
  }
  for row, kernel in enumerate(kernels):
    parts = {name: value[:, row].astype(np.float64) for name, value in found.items()}
    basis = {name: _flat(value, 2)[row] for name, value in bases.items()}
    gradients = _layer_gradients(kernel.astype(np.float64), parts, _scales_by_lora(group))
    yield RowGradients(gradients, basis.get('B'), basis.get('A'))


def _layer_gradients(
  kernel: np.ndarray, parts: Mapping[str, np.ndarray], scales_by_lora: bool
) -> LayerGradients:
  """One row's gradients out of what was measured of it."""
  bias = parts.get('bias')
  prompt = None if bias is None else bias @ kernel.T
  if 'kernel' not in parts:
    return LayerGradients(parts['B_left'], parts.get('A_left'), parts['scale'], bias, prompt)
  scaled = kernel * parts['kernel']
  return LayerGradients(
    kernel=parts['kernel'],
    scaled_kernel=scaled if scales_by_lora else None,
    scale=scaled.sum(1),
    bias=bias,
    prompt=prompt,
  )


def _beside(group: Group, of_site: Callable[[Site], np.ndarray]) -> np.ndarray:
  """An array of every member, side by side along the outputs, which are the last axis."""
  return np.concatenate([of_site(site) for site in group.members], axis=-1)


def _products(site: Site, sums: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  """A site's gradients or products of them, [fold, row, ..., out]."""
  if name == 'kernel':
    return np.stack([_flat(site.layout.matrices(fold), 2) for fold in sums[name]])
  if name == 'bias':
    return np.stack([_flat(site.layout.vectors(fold), 1) for fold in sums[name]])
  return np.stack([_flat(fold, 1 if name == 'scale' else 2) for fold in sums[name]])


def _flat(stacked: Any, kept: int) -> np.ndarray:
  """An array with all axes but the last ones as one."""
  return stacked.reshape(-1, *stacked.shape[stacked.ndim - kept :])
