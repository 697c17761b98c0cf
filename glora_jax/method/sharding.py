"""An adapted model whose frozen weights are too large for one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from glora_jax import mesh as meshes
from glora_jax.method import sharded_arrays
from glora_jax.method.adapted import Adapted


def shard(
  adapted: Adapted,
  variables: Mapping[str, Any],
  mesh: jax.sharding.Mesh,
  *,
  min_bytes: int = sharded_arrays.MIN_BYTES,
) -> tuple[Adapted, dict[str, Any]]:
  """Lays the frozen weights of an adapted model over devices, a part on each.

  What is trained is whole on every device. The model gathers its weights a layer at a time, and
  again on the way back, so that no device ever holds all of them; results are those of one device
  but for rounding. `fit`, `allocate`, `make_scorer` and all others that take a mesh are given this
  one, and deal batches to all of its axes.

  Args:
    adapted: what `adapt`, `adapt_function` or `glora_jax.nnx.adapt` returned.
    variables: its variables, or their shapes. Arrays of NumPy go from the host to their places, so
      that the base need not fit one device.
    mesh: devices with axes of any names. Where one is called 'fsdp', weights are sharded over that
      alone, and each of its groups of devices holds a copy: what is gathered stays within a group.
    min_bytes: size from which on an array is sharded.

  Returns:
    (the model, its variables on the devices).

  Raises:
    ValueError: `mesh` is none, the variables lack a collection, or the devices divide no weight.

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
  meshes.require_mesh(mesh)
  trainable, frozen = adapted.split(variables)
  placed = adapted.join(
    meshes.replicate(mesh, trainable), sharded_arrays.shard(mesh, frozen, min_bytes=min_bytes)
  )
  return dataclasses.replace(adapted, mesh=mesh), placed
