"""Functions of an attached model: change its structure, save and load its adapter, be sharded."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glora_jax import mesh as meshes
from glora_jax.files import Path
from glora_jax.method import adapter_file, sharding
from glora_jax.method.adapted import Adapted, Places, check_variables
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.genomes import canonicalize, check_one_genome
from glora_jax.method.groups import Group, check_adapter, spec_of
from glora_jax.method.presets import genome_of
from glora_jax.method.quantized import as_dequantized
from glora_jax.method.space import TENSORS, Spec
from glora_jax.nnx.adapter import Adapter, set_array, set_value
from glora_jax.nnx.base import warn_if_base_changed
from glora_jax.nnx.functional import STATISTICS, Functional, check_values, nested
from glora_jax.nnx.owners import UNADAPTED, Unadapted, detach
from glora_jax.nnx.places import by_paths
from glora_jax.nnx.variables import Head
from glora_jax.tree import KeyPath, flatten, get, update

log = logging.getLogger(__name__)


def adapters(model: nnx.Module) -> list[Adapter]:
  """The adapters of a model's layers, in the order of their first rows.

  Raises:
    ValueError: it is not attached, or it is a part of an attached model, or made of several.
  """
  found = [node for _, node in nnx.iter_graph(model) if isinstance(node, Adapter)]
  if not found:
    raise ValueError(
      f'This {type(model).__name__} is not attached; pass the model from glora_jax.nnx.attach.'
    )
  found.sort(key=lambda adapter: adapter.group.rows)
  rows = sorted(row for adapter in found for row in adapter.group.rows)
  if rows != list(range(len(rows))):
    raise ValueError(
      f'These modules have only the rows {rows} of a genome; pass the whole model that '
      'glora_jax.nnx.attach returned.'
    )
  return found


def spec(model: nnx.Module) -> Spec:
  """The adapted layers of an attached model; raises ValueError if it is only a part of one."""
  return spec_of([adapter.group for adapter in adapters(model)])


def get_genome(model: nnx.Module) -> np.ndarray:
  """The genome of an attached model, int8 [rows, 5]; raises ValueError if it is traced."""
  found = adapters(model)
  forms = [adapter.forms for adapter in found]
  if any(isinstance(array, jax.core.Tracer) for array in forms):
    raise ValueError(
      'The genome of the model is traced, but its codes are needed here; call this outside of '
      'nnx.jit, nnx.vmap and nnx.grad.'
    )
  return np.concatenate([np.asarray(array).reshape(-1, len(TENSORS)) for array in forms])


def set_genome(model: nnx.Module, genome: Any) -> None:
  """Changes the structure of an attached model, in place.

  Args:
    model: an attached model, which is changed.
    genome: int [rows, 5], which may be traced, so that one compiled step trains a supernet; or a
      structure, as `fix` accepts.

  Raises:
    ValueError: the genome does not fit, or has forms that the model does not store.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear, space = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), glora_jax.SearchSpace()
    >>> model = glora_jax.nnx.attach(linear, jnp.ones((1, 4)), space=space)
    >>> glora_jax.nnx.set_genome(model, 'bitfit')
    >>> print(glora_jax.nnx.summary(model).splitlines()[1])
    Linear   4    3  none  none  none  none  vector        3     15
  """
  found = adapters(model)
  if isinstance(genome, str | os.PathLike | Mapping):
    genome = genome_of(spec(model), genome)
  check_genome_of(found, genome, 'set_genome')
  if not isinstance(genome, jax.core.Tracer):
    genome = np.asarray(genome)  # NumPy has nothing to compile
  for adapter in found:
    set_array(adapter, adapter.genome, adapter.group.forms(genome))


def check_genome_of(found: Sequence[Adapter], genome: Any, call: str) -> None:
  """Checks that a model stores the forms of a genome, or equal ones with other codes.

  Args:
    found: the adapters of all its layers.
    genome: int [rows, 5]; if it is traced, only its shape and dtype are checked.
    call: name of the function that was called.

  Raises:
    ValueError: the genome does not fit, or has forms that the model does not store.
  """
  layers = spec_of([adapter.group for adapter in found])
  check_one_genome(layers, genome, call)
  if isinstance(genome, jax.core.Tracer):
    return
  codes, same = canonicalize(layers, genome), layers._canonical_table
  for adapter in found:
    rows = np.array(adapter.group.rows)
    for column, stored in enumerate(adapter.static.in_use):
      has = (same[rows, column][:, stored] == codes[rows, column, None]).any(axis=1)
      if not has.all():
        row, tensor = rows[has.argmin()], TENSORS[column]
        layer = layers.layers[row]
        names = layer.names(tensor)
        raise ValueError(
          f'The genome has {names[np.asarray(genome)[row, column]]} for {tensor} of layer {row} '
          f'({layer.name}), but this model stores {", ".join(names[code] for code in stored)}; '
          'attach with a space that has it, or set the genome of the model from before '
          'glora_jax.nnx.fix.'
        )


def as_adapted(model: nnx.Module) -> tuple[Adapted, dict[str, Any]]:
  """Returns an attached model as `glora_jax.adapt` and `init` would: (adapted, variables).

  With it `glora_jax.shard`, `glora_jax.allocate`, `glora_jax.Pool` and other functions of an
  adapted model work on an attached one; `set_variables` writes their results back.

  Args:
    model: an attached model; it is not changed. All its state but parameters and batch statistics
      keeps its current values. The log warns of a call that draws from the model's own random
      streams, since its dropout has the same mask each time. A call that updates batch statistics
      raises ValueError, since the update would be lost.

  Returns:
    (adapted, variables): the variables have `params`, `glora` and, if there are any, `batch_stats`.
    The structure is fixed if the model's is. If it is free, arrays that the model does not store
    are zero, so forms that read them change nothing.

  Raises:
    ValueError: the model is not attached, or only a part of one that is.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> x = jax.random.normal(jax.random.key(0), (8, 16, 4))
    >>> linear = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
    >>> model = glora_jax.nnx.attach(linear, x[0], space=glora_jax.SearchSpace.distinct((1, 2)))
    >>> def loss(forward, batch, key):
    ...   return jnp.square(forward(batch) - 1).mean()
    >>> adapted, variables = glora_jax.nnx.as_adapted(model)
    >>> allocation = glora_jax.allocate(
    ...   adapted, variables, loss, list(x), budget=8, key=jax.random.key(1), progress=False
    ... )
    >>> glora_jax.nnx.set_variables(model, allocation.variables)
    >>> model = glora_jax.nnx.fix(model, allocation.genome)
    >>> glora_jax.nnx.as_adapted(model)[0].count_params() <= 8
    True
  """
  adapted, variables = _without_adapter(model)
  arrays: dict[KeyPath, Any] = {}
  for adapter in adapters(model):
    stored = adapter.arrays
    stored = stored if adapter.static.is_fixed else _widen(adapter.group, stored)
    arrays |= {(*adapter.group.path, name): array for name, array in stored.items()}
  return adapted, {**variables, COLLECTION: update({}, arrays)}


def _without_adapter(model: nnx.Module) -> tuple[Adapted, dict[str, Any]]:
  """`as_adapted`, but the variables lack the adapter."""
  found, function = adapters(model), Functional(detach(model, with_adapter=False))
  variables, static = function.variables(), found[0].static
  groups = tuple(adapter.group for adapter in found)
  adapted = Adapted(
    function,
    spec_of(groups),
    Places(
      groups,
      head_paths=frozenset(flatten(nested(nnx.state(model, Head)))),
      param_shapes=flatten(as_dequantized(variables['params'])),
      **vars(model).get(UNADAPTED, Unadapted())._asdict(),
    ),
    mesh=static.mesh,
    genome=get_genome(model) if static.is_fixed else None,
  )
  return adapted, variables


def set_variables(model: nnx.Module, variables: Mapping[str, Any]) -> None:
  """Sets the adapter, heads and batch statistics of an attached model, in place.

  Args:
    model: an attached model, which is changed.
    variables: variables as `as_adapted` returns them, after training or `glora_jax.allocate`; the
      base's parameters in them are ignored.

  Raises:
    ValueError: the model is not attached, or only a part of one that is, or the variables are those
      of another, or were cut to a smaller structure than the model's; the model is unchanged.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    >>> model = glora_jax.nnx.attach(linear, jnp.ones((1, 4)), structure='bitfit')
    >>> adapted, variables = glora_jax.nnx.as_adapted(model)
    >>> variables['glora']['E'] = jnp.ones(3)
    >>> glora_jax.nnx.set_variables(model, variables)
    >>> model.bias.tolist()
    [1.0, 1.0, 1.0]
  """
  found = adapters(model)
  adapted, current = _without_adapter(model)
  check_variables(adapted, variables)
  statistics = variables.get(STATISTICS, {})
  check_values('batch statistics', statistics, current.get(STATISTICS, {}), 'as_adapted returned')
  needed = [adapter.group.stored_for(adapter.static.in_use) for adapter in found]
  check_adapter(adapted.places.groups, variables[COLLECTION], needed)
  for adapter in found:
    arrays = adapter.group.arrays(variables[COLLECTION])
    for name, variable in adapter.variables.items():
      set_array(adapter, variable, jnp.asarray(arrays[name]))
  heads = {path: get(variables['params'], path) for path in adapted.places.head_paths}
  by_path = by_paths(model)
  for path, value in (heads | flatten(statistics)).items():
    set_value(by_path[path], value)


def save_adapter(path: Path, model: nnx.Module, **metadata: Any) -> None:
  """Writes the adapter of an attached model to a file; see `glora_jax.save_adapter`.

  The log warns if the base has changed since `attach`.

  Args:
    path: path of the file.
    model: an attached model, after training.
    **metadata: more to write; see `glora_jax.save_adapter`.

  Raises:
    ValueError: the model is not attached, or only a part of one that is.

  Example:
    >>> import tempfile, glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4))
    >>> model = glora_jax.nnx.attach(linear, x, structure='bitfit')
    >>> model.glora_kernel.E[...] = jnp.ones(3)
    >>> another = glora_jax.nnx.attach(linear, x, structure='bitfit')
    >>> with tempfile.NamedTemporaryFile(suffix='.safetensors') as file:
    ...   glora_jax.nnx.save_adapter(file.name, model, accuracy=0.9)
    ...   glora_jax.nnx.load_adapter(file.name, another)
    >>> bool(jnp.allclose(another(x), model(x)))
    True
  """
  adapted, variables = as_adapted(model)
  warn_if_base_changed(model)
  if adapted.genome is None:
    adapted = adapted.fix(get_genome(model))
  adapter_file.save_adapter(path, adapted, variables, **metadata)


def load_adapter(path: Path, model: nnx.Module, *, strict: bool = True) -> None:
  """Loads a file of `save_adapter` or `glora_jax.save_adapter` into an attached model, in place.

  Args:
    path: path of the file.
    model: a model that is attached with the same space to the same base. It is changed: it gets the
      file's genome, adapter, heads and batch statistics.
    strict: whether another base is an error; see `glora_jax.load_adapter`.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is damaged, or belongs to another model, space or base, or the model does
      not store its forms; the model is unchanged.

  Example: see `save_adapter`.
    >>> import glora_jax
    >>> glora_jax.nnx.load_adapter.__name__
    'load_adapter'
  """
  adapted, variables = _without_adapter(model)
  fixed, loaded = adapter_file.load_adapter(
    path, adapted.fix(None), variables['params'], strict=strict
  )
  check_genome_of(adapters(model), fixed.genome, 'load_adapter')
  set_variables(model, loaded)  # it checks all of these before it changes any
  set_genome(model, fixed.genome)


def summary(model: nnx.Module) -> str:
  """Returns a table of the adapted layers: sizes, forms, trained and total parameters.

  Args:
    model: an attached model; the forms are those of its genome.

  Raises:
    ValueError: the model is not attached.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    >>> model = glora_jax.nnx.attach(linear, jnp.ones((1, 4)), structure='lora:4')
    >>> print(glora_jax.nnx.summary(model))
    layer   in  out  A     B       C     D     E     trained  total
    Linear   4    3  none  lora:4  none  none  none       28     15
    trained parameters: 28 in this structure + 0 in heads (186.67% of the model's 15)
  """
  adapted, _ = _without_adapter(model)
  return adapted.fix(get_genome(model)).summary()


def _widen(group: Group, stored: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """All arrays of a group's adapter, with zeros for arrays that are not stored."""
  widened = {}
  for name, shape in group.adapter_shapes().items():
    value = stored.get(name, jnp.zeros((0,) * len(shape), group.adapter_dtype))
    missing = np.subtract(shape, value.shape)
    widened[name] = jnp.pad(value, [(0, size) for size in missing]) if missing.any() else value
  return widened


def shard(
  model: nnx.Module, mesh: jax.sharding.Mesh, *, min_bytes: int = sharding.MIN_BYTES
) -> None:
  """Shards the adapted kernels of a model over devices, in place; the rest is replicated.

  A layer all-gathers its kernel when it is called. With a fixed structure without LoRAs of A it
  does so again in the backward pass. Otherwise the kernel is kept for the backward pass, unless the
  layer is in a block under `nnx.remat`. Split inputs over all axes of the mesh.

  Args:
    model: an attached model, which is changed.
    mesh: devices; for an axis called 'fsdp' see `glora_jax.shard`.
    min_bytes: smallest size of a kernel that is sharded.

  Raises:
    TypeError: `mesh` is not a mesh.
    ValueError: the model is not attached, or only a part of one that is, or the number of devices
      divides no kernel; the model is unchanged.

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
  paths = {adapter.group.site.kernel_path for adapter in found}
  variables = by_paths(model)
  values = {path: variable.get_raw_value() for path, variable in variables.items()}
  kernels = {path: values.pop(path) for path in paths}
  placed = sharding.shard_arrays(mesh, kernels, min_bytes) | meshes.replicate(mesh, values)
  # Nothing can fail from here on, so after an error the model is unchanged.
  for adapter in found:
    adapter.genome.set_metadata('static', dataclasses.replace(adapter.static, mesh=mesh))
  for path, value in placed.items():
    variables[path].set_raw_value(value)
