"""Large arrays, of which every device keeps a part."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from glora_jax.mesh import FSDP, put, replicated

MIN_BYTES = 2**20  # of an array that is worth sharding


def shard(mesh: Mesh, tree: Any, min_bytes: int = MIN_BYTES) -> Any:
  """A tree with its large arrays sharded over devices, and the others whole on every one.

  Args:
    mesh: devices. Where it has an axis 'fsdp', arrays are sharded over that, and over all devices
      where it has none.
    tree: tree of arrays.
    min_bytes: size from which on an array is sharded, along its largest axis that fits; see
      `sharded_axis`.

  Raises:
    ValueError: there are large arrays, and the devices divide no axis of any.
  """
  large = [leaf for leaf in jax.tree.leaves(tree) if _bytes(leaf) >= min_bytes]
  _, devices = _parts(mesh)
  if large and all(sharded_axis(np.shape(leaf), devices) is None for leaf in large):
    raise ValueError(
      f'{devices} devices divide no axis of the frozen weights, the largest of which is '
      f'{np.shape(max(large, key=_bytes))}; shard them over another number.'
    )

  def place(leaf):
    is_large = _bytes(leaf) >= min_bytes
    return put(leaf, in_parts(mesh, np.shape(leaf)) if is_large else replicated(mesh))

  return jax.tree.map(place, tree)


def in_parts(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """The sharding of a large array of this shape; see `shard`."""
  names, devices = _parts(mesh)
  axis = sharded_axis(shape, devices)
  return replicated(mesh) if axis is None else NamedSharding(mesh, P(*[None] * axis, names))


def _parts(mesh: Mesh) -> tuple[tuple[str, ...], int]:
  """(axes that large arrays are sharded over, their number of devices)."""
  names = (FSDP,) if FSDP in mesh.axis_names else mesh.axis_names
  return names, math.prod(mesh.shape[name] for name in names)


def _bytes(leaf: Any) -> int:
  return math.prod(np.shape(leaf)) * leaf.dtype.itemsize


def sharded_axis(shape: tuple[int, ...], devices: int) -> int | None:
  """The largest axis that the number of devices divides, of equal ones the last.

  Of three or more axes the first does not count: scanned blocks are stacked there, and a scan would
  wait for a single device at every step.

  Returns:
    The axis; None where no axis fits.
  """
  first = 1 if len(shape) > 2 else 0
  fitting = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
  return max(fitting, key=lambda axis: (shape[axis], axis), default=None)
