"""An attached model whose kernels are too large for one device."""

from __future__ import annotations

import jax
from flax import nnx

from glora_jax import mesh as meshes
from glora_jax.method import sharding
from glora_jax.nnx.adapter import Static
from glora_jax.nnx.live import adapters
from glora_jax.nnx.places import Places


def shard(
  model: nnx.Module, mesh: jax.sharding.Mesh, *, min_bytes: int = sharding.MIN_BYTES
) -> None:
  """Lays the adapted kernels of a model over devices, a part on each, and all else whole on each.

  A layer gathers its kernel when it is called. For the way back it is kept, unless the layer lies
  in a block under `nnx.remat`: then no device ever holds all kernels. Inputs are to be dealt to all
  axes of the mesh.

  Args:
    model: an attached model, which is changed.
    mesh: devices; of an axis called 'fsdp' see `glora_jax.shard`.
    min_bytes: size from which on a kernel is sharded.

  Raises:
    ValueError: the model is not attached, or only a part of one that is; `mesh` is none, or the
      devices divide no kernel; it stays as it was.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> auto = (jax.sharding.AxisType.Auto,) * 2
    >>> mesh = jax.make_mesh((1, jax.device_count()), ('data', 'fsdp'), axis_types=auto)
    >>> model = glora_jax.nnx.attach(nnx.Linear(8, 512, rngs=nnx.Rngs(0)), jnp.ones((1, 8)))
    >>> glora_jax.nnx.shard(model, mesh, min_bytes=1)
    >>> model(jnp.ones((8, 8))).shape
    (8, 512)
  """
  meshes.require_mesh(mesh)
  found = adapters(model)
  paths = {site.kernel_path for adapter in found for site in adapter.group.members}
  values = {path: variable.get_raw_value() for path, variable in Places.read(model).by_path.items()}
  kernels = {path: values.pop(path) for path in paths}
  placed = sharding.shard_arrays(mesh, kernels, min_bytes) | meshes.replicate(mesh, values)
  # Nothing can fail from here on, so a model that is refused stays as it was.
  for adapter in found:
    given = adapter.static
    static = Static(given.group, given.occurring, mesh, given.is_fixed)
    metadata = {**adapter.genome.get_metadata(), 'static': static}
    kind = adapter.genome.var_type
    adapter.genome = kind.from_metadata(adapter.genome.get_raw_value(), metadata)
  variables = Places.read(model).by_path
  for path, value in placed.items():
    variables[path].set_raw_value(value)
