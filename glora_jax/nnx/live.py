"""An attached model's sets of supports, its genome, and the devices that it lies on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from glora_jax import mesh as meshes
from glora_jax.method import sharding
from glora_jax.method.groups import spec_of
from glora_jax.method.space import TENSORS, Spec
from glora_jax.method.structures import genome_of
from glora_jax.method.validation import check_one_genome
from glora_jax.nnx.adapter import Adapter, alleles_beside
from glora_jax.nnx.places import variables


def adapters(model: nnx.Module) -> list[Adapter]:
  """All sets of supports of a model, in the order of their first rows.

  Raises:
    ValueError: it is not attached, or a part or a combination of models that are.
  """
  found = [node for _, node in nnx.iter_graph(model) if isinstance(node, Adapter)]
  if not found:
    raise ValueError(
      f'This {type(model).__name__} is not attached; pass what glora_jax.nnx.attach returned.'
    )
  found.sort(key=lambda adapter: adapter.group.rows)
  rows = sorted(row for adapter in found for row in adapter.group.rows)
  if rows != list(range(len(rows))):
    raise ValueError(
      f'These modules have the rows {rows} of a genome, and not all of one: pass the whole model '
      'that glora_jax.nnx.attach returned.'
    )
  return found


def spec(model: nnx.Module) -> Spec:
  """The rows of an attached model's genomes; raises ValueError if it is not a whole one."""
  return spec_of([adapter.group for adapter in adapters(model)])


def get_genome(model: nnx.Module) -> np.ndarray:
  """The genome of an attached model, int8 [rows, 5]; raises ValueError if it is traced."""
  found = adapters(model)
  if any(isinstance(adapter.alleles, jax.core.Tracer) for adapter in found):
    raise ValueError(
      'The genome of the model is traced, and its codes are needed here; call this outside of '
      'nnx.jit, nnx.vmap and nnx.grad.'
    )
  rows = np.concatenate([adapter.group.rows for adapter in found])
  alleles = [np.asarray(adapter.alleles).reshape(-1, len(TENSORS)) for adapter in found]
  return np.concatenate(alleles)[rows.argsort()]


def set_genome(model: nnx.Module, genome: Any) -> None:
  """Gives an attached model another structure of its supernet.

  Args:
    model: an attached model, which is changed.
    genome: int [rows, 5]; may be traced, so that one compiled step trains a supernet. Or a
      structure as `fix` takes it.

  Raises:
    ValueError: the genome does not fit, or has alleles that are not on offer.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = glora_jax.nnx.attach(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> glora_jax.nnx.set_genome(model, 'bitfit')
    >>> print(glora_jax.nnx.summary(model).splitlines()[1])
    Linear   4    3  none  none  none  none  vector        3     15
  """
  found = adapters(model)
  if isinstance(genome, str | os.PathLike | Mapping):
    genome = genome_of(spec(model), genome)
  check_genome_of(found, genome, 'set_genome')
  for adapter in found:
    adapter.genome.set_value(alleles_beside(adapter.genome, genome))


def check_genome_of(found: Sequence[Adapter], genome: Any, call: str) -> None:
  """Checks that a model can have a genome: that it stores its alleles, or the same by other names.

  Args:
    found: all its sets of supports.
    genome: int [rows, 5]; where it is traced, only its shape and dtype are checked.
    call: name of the function that was called.

  Raises:
    ValueError: it does not fit, or has alleles that are not on offer.
  """
  layers = spec_of([adapter.group for adapter in found])
  check_one_genome(layers, genome, call)
  if isinstance(genome, jax.core.Tracer):
    return
  codes, same = np.asarray(genome), layers.canonical_table
  for adapter in found:
    rows = np.array(adapter.group.rows)
    for column, stored in enumerate(adapter.static.occurring.codes):
      table, wanted = same[rows, column], codes[rows, column, None].astype(int)
      missing = np.take_along_axis(table, wanted, axis=1) != table[:, stored]
      if (wrong := missing.all(axis=1)).any():
        row, tensor = rows[wrong.argmax()], TENSORS[column]
        layer = layers.layers[row]
        names = layer.space.names(tensor)
        raise ValueError(
          f'The genome says {names[codes[row, column]]} for {tensor} of layer {row} '
          f'({layer.name}), where this model stores {", ".join(names[code] for code in stored)}; '
          'attach with a space that offers it, or set the genome of the model as it was before '
          'glora_jax.nnx.fix.'
        )


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
  own = variables(model)
  values = {path: variable.get_raw_value() for path, variable in own.items()}
  kernels = {path: values.pop(path) for path in paths}
  placed = sharding.shard_arrays(mesh, kernels, min_bytes) | meshes.replicate(mesh, values)
  # Nothing can fail from here on, so a model that is refused stays as it was.
  for adapter in found:
    adapter.genome.set_metadata('static', dataclasses.replace(adapter.static, mesh=mesh))
  for path, value in placed.items():
    own[path].set_raw_value(value)
