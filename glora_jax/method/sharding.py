"""Weights that are too large for one device: sharded over several, and all-gathered when used.

A model is run by `glora_jax.method.program`, which gathers a layer at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from glora_jax.mesh import FSDP, put, replicate, replicated, require_mesh

if TYPE_CHECKING:
  from glora_jax.method.adapted import Adapted

MIN_BYTES = 2**20  # of an array that is worth sharding


def shard_arrays(mesh: Mesh, tree: Any, min_bytes: int = MIN_BYTES) -> Any:
  """A tree with its large arrays sharded over devices, and the others replicated.

  Args:
    mesh: devices. If it has an axis 'fsdp', arrays are sharded over that one, otherwise over all
      devices.
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
      f'No axis of the frozen weights is divisible by {devices} devices (the largest weight is '
      f'{np.shape(max(large, key=_bytes))}); shard them over another number.'
    )

  def place(leaf):
    is_large = _bytes(leaf) >= min_bytes
    return put(leaf, sharded(mesh, np.shape(leaf)) if is_large else replicated(mesh))

  return jax.tree.map(place, tree)


def sharded(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """The sharding of a large array of this shape; see `shard_arrays`."""
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
    The axis; None if no axis fits.
  """
  first = 1 if len(shape) > 2 else 0
  fitting = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
  return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def shard(
  adapted: Adapted,
  variables: Mapping[str, Any],
  mesh: Mesh,
  *,
  min_bytes: int = MIN_BYTES,
) -> tuple[Adapted, dict[str, Any]]:
  """Shards the frozen weights of an adapted model over devices.

  Trained arrays are replicated. The model gathers its weights a layer at a time, and again in the
  backward pass, so no device ever holds all of them; results are those of one device up to
  rounding. Pass the same mesh to `fit`, `allocate`, `make_scorer` and other functions with an
  argument `mesh`: they split batches over all of its axes.

  Args:
    adapted: the adapted model, from `adapt`, `adapt_function` or `glora_jax.nnx.as_adapted`.
    variables: its variables, or their shapes. NumPy arrays go straight from the host to their
      devices, so the base need not fit on one.
    mesh: devices with axes of any names. If one is called 'fsdp', weights are sharded over that one
      only, and each of its groups of devices holds a copy: gathering stays within a group.
    min_bytes: smallest size of an array that is sharded.

  Returns:
    (the model, its variables on the devices).

  Raises:
    TypeError: `mesh` is not a mesh.
    ValueError: the variables lack a collection, or the number of devices
      divides no axis of a weight.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> params = {'w': jnp.ones((8, 512)), 'head': jnp.ones((512, 3))}
    >>> def mlp(params, x):
    ...   return jnp.tanh(x @ params['w']) @ params['head']
    >>> adapted = glora_jax.adapt_function(mlp, params, jnp.ones((1, 8)))
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> auto = (jax.sharding.AxisType.Auto,) * 2
    >>> mesh = jax.make_mesh((1, jax.device_count()), ('data', 'fsdp'), axis_types=auto)
    >>> adapted, variables = glora_jax.shard(adapted, variables, mesh, min_bytes=1)
    >>> adapted.mesh.axis_names, variables['params']['w'].shape
    (('data', 'fsdp'), (8, 512))
  """
  require_mesh(mesh)
  trainable, frozen = adapted.split(variables)
  placed = adapted.join(replicate(mesh, trainable), shard_arrays(mesh, frozen, min_bytes=min_bytes))
  return dataclasses.replace(adapted, mesh=mesh), placed


@functools.cache
def gather_over(mesh: Mesh, shard_gradients: bool = False) -> Callable[[jax.Array], jax.Array]:
  """Returns a function that all-gathers an array, and shards its gradient if asked to."""

  @jax.custom_jvp
  def gather(array):
    if jax.sharding.get_abstract_mesh().manual_axes:  # within shard_map: replicated already
      return array
    return jax.lax.with_sharding_constraint(array, replicated(mesh))

  @gather.defjvp
  def _(primals, tangents):
    (array,), (tangent,) = primals, tangents
    if not shard_gradients:
      return gather(array), tangent
    return gather(array), jax.lax.with_sharding_constraint(tangent, sharded(mesh, array.shape))

  return gather
