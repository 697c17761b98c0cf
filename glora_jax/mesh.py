"""A mesh over the devices of all processes, and how arrays are sharded over it.

Every process runs the same program with the same numbers; only the primary one writes files. The
mesh has a row for each process ('candidate') and a column for each of its devices ('data').
Training splits a batch over all of them. A search splits a population's structures over the rows
and images over the columns, so that scores cross hosts once, at the end. A third axis, 'fsdp', may
split the columns: images are split over it, too, and sharded frozen weights only over it.

Images that stay on a TPU need another layout. A TPU stores arrays in rows of 128 numbers. It would
make n the last axis of images [n, height, width, 3], since 3 fills only 3 of the 128. Then every
program that gathers a batch would first copy all images, to have n first. `image_by_image` stores
one image after the other, each channel by channel, and no copy is needed. If a line of an image
fills less than half of a row, this layout would need more memory than the copy, and is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from glora_jax.checks import validate

AXES = ('candidate', 'data')
FSDP = 'fsdp'  # as fully sharded data parallelism is called
_BARRIER_TIMEOUT_MS = 3600 * 1000  # the first process may have to fetch data
_IMAGE_BY_IMAGE = Layout((0, 3, 1, 2))  # n, channel, height, width
_MOST_CHANNELS = 4  # more may fill a row
_HALF_A_ROW = 64


def primary() -> bool:
  """Whether this process writes the files that all share.

  All processes must call orbax, which itself writes only in the primary one.
  """
  return jax.process_index() == 0


def on_any(flag: bool) -> bool:
  """Whether a flag is true in any process; all must call it."""
  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def least_of_all(number: int) -> int:
  """The smallest of the processes' numbers, which are below 2**31; all must call it."""
  return int(multihost_utils.process_allgather(np.array(number)).min())


def barrier(name: str) -> None:
  """Waits until all processes have come to the barrier of this name."""
  if jax.process_count() == 1:
    return
  # Imported here, since it takes half a second and only several processes need it.
  import orbax.checkpoint as ocp

  ocp.multihost.get_barrier_sync_fn()(key=f'glora_jax/{name}', timeout_ms=_BARRIER_TIMEOUT_MS)


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
  """Runs the block in the primary process before the others, for which it prepares something."""
  if not primary():
    barrier(name)
  try:
    yield
  finally:
    if primary():
      barrier(name)


def make_mesh(devices: Sequence[jax.Device], fsdp: int | None = None) -> Mesh | None:
  """The mesh over devices.

  Args:
    devices: the devices of all processes, or those of a topology to compile for.
    fsdp: size of an axis 'fsdp': the devices of a process that together hold one copy of the
      sharded frozen weights. None for no such axis, and one copy on all devices.

  Returns:
    A mesh [candidate, data], or [candidate, data, fsdp]; None for one device.

  Raises:
    ValueError: the processes have different numbers of devices, or `fsdp` does not divide them.
  """
  devices = sorted(devices, key=lambda device: (device.process_index, device.id))
  owners = [device.process_index for device in devices]
  if len(devices) == 1:
    return None
  processes = len(set(owners))
  if len({owners.count(process) for process in owners}) > 1:
    raise ValueError(
      f'The {len(devices)} devices are not spread evenly over the {processes} processes; give each '
      'process the same number.'
    )
  shape, axes = (processes, -1), AXES
  if fsdp is not None:
    number = len(devices) // processes
    if number % fsdp:
      fitting = [str(size) for size in range(1, number + 1) if number % size == 0]
      raise ValueError(
        f'mesh.fsdp={fsdp} does not divide the {number} devices of a process; use one of '
        f'{", ".join(fitting)}, or None.'
      )
    shape, axes = (*shape, fsdp), (*axes, FSDP)
  grid = np.array(devices).reshape(shape)
  return Mesh(grid, axes, axis_types=(AxisType.Auto,) * len(axes))


def options_of_one_pass() -> dict[str, Any] | None:
  """Compiler options for a program that runs at most a few dozen times.

  With them a program compiles faster and is optimized less.
  """
  return {'xla_backend_optimization_level': 1} if jax.default_backend() == 'cpu' else None


def require_mesh(mesh: Any) -> None:
  """Raises an error unless this is a mesh with automatic axes, as `make_mesh` returns."""
  validate(mesh, Mesh, 'mesh')
  if any(kind is not AxisType.Auto for kind in mesh.axis_types):
    raise ValueError(
      f'The axes {", ".join(mesh.axis_names)} of the mesh must be automatic; make it with '
      f'axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)}.'
    )


def require_divisible(mesh: Mesh | None, batch_size: int) -> None:
  """Raises ValueError if a batch does not split evenly over the devices of a mesh."""
  if mesh is not None and batch_size % mesh.size:
    raise ValueError(
      f'A batch of {batch_size} examples cannot be split over {mesh.size} devices; make batch_size '
      f'(divided by accumulate) a multiple of {mesh.size}, or use fewer devices.'
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that is replicated on every device."""
  return NamedSharding(mesh, P())


def split_over(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """The sharding of an array with an axis split over all devices."""
  return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))


def replicate(mesh: Mesh | None, tree: Any) -> Any:
  """A tree with every array replicated on every device; without a mesh the tree unchanged.

  All processes must have the same values.
  """
  if mesh is None:
    return tree
  return jax.tree.map(lambda leaf: put(leaf, replicated(mesh)), tree)


def split_rows(mesh: Mesh | None, tree: Any) -> Any:
  """A tree with every array split over all devices along its first axis; scalars are unchanged.

  Arrays that are on the mesh stay unchanged. Without a mesh the tree is unchanged.

  Raises:
    ValueError: an array does not split evenly.
  """

  def place(mesh: Mesh, leaf: Any) -> Any:
    if not np.ndim(leaf):
      return leaf
    require_divisible(mesh, len(leaf))
    return put(leaf, split_over(mesh))

  return _unless_there(mesh, tree, place)


def settle(mesh: Mesh | None, tree: Any) -> Any:
  """A tree with every array replicated that is not on the mesh yet.

  Without a mesh, NumPy's arrays are put on the device, or every compiled call would send them anew.
  """
  if mesh is None:
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, tree)
  return _unless_there(mesh, tree, replicate)


def _unless_there(mesh: Mesh | None, tree: Any, place: Callable[[Mesh, Any], Any]) -> Any:
  """A tree with every leaf placed that is not an array on the mesh."""
  if mesh is None:
    return tree
  devices = set(mesh.devices.flat)

  def place_unless_there(leaf):
    on_mesh = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
    return leaf if on_mesh else place(mesh, leaf)

  return jax.tree.map(place_unless_there, tree)


def put(leaf: Any, sharding: jax.sharding.Sharding) -> Any:
  """An array in a sharding, which may span processes; a `ShapeDtypeStruct` stays one."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  is_array = isinstance(leaf, jax.Array)
  if is_array and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
    return leaf
  if sharding.is_fully_addressable or (is_array and not leaf.is_fully_addressable):
    return jax.device_put(leaf, sharding)
  # `device_put` would send the value to all hosts, to check that it is the same everywhere.
  value = np.asarray(leaf)
  value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def place_like(base: Any, tree: Any) -> Any:
  """A tree with its arrays on the devices of a base's arrays, replicated.

  They are committed to these devices if an array of the base is, and otherwise uncommitted on the
  default one, as arrays from `jnp` are.
  """
  arrays = (leaf for leaf in jax.tree.leaves(base) if isinstance(leaf, jax.Array))
  sharding = next((array.sharding for array in arrays if array.committed), None)
  if sharding is None:
    return jax.tree.map(jnp.asarray, tree)
  if isinstance(sharding, NamedSharding):
    sharding = NamedSharding(sharding.mesh, P())
  return jax.tree.map(lambda leaf: put(leaf, sharding), tree)


def local_rows(mesh: Mesh, number: int) -> np.ndarray:
  """Which of `number` rows this process' devices have when they are split over all: int [local]."""
  slices = split_over(mesh).addressable_devices_indices_map((number,)).values()
  bounds = {index[0].indices(number)[:2] for index in slices if index is not None}
  return np.concatenate([np.arange(start, stop) for start, stop in sorted(bounds)])


def device_key(key: jax.Array) -> jax.Array:
  """A different random key for each device, within the loss of a `fit` on a mesh.

  The loss is called on every device with the same key. Outside of it the key is unchanged.

  Example:
    >>> bool(device_key(jax.random.key(0)) == jax.random.key(0))
    True
  """
  axes = jax.sharding.get_abstract_mesh().manual_axes
  return jax.random.fold_in(key, jax.lax.axis_index(axes)) if axes else key


def are_replicated(tree: Any) -> bool:
  """Whether every array of a tree, or of `ShapeDtypeStruct`s, is replicated on its devices."""
  shardings = [getattr(leaf, 'sharding', None) for leaf in jax.tree.leaves(tree)]
  return all(sharding is None or sharding.is_fully_replicated for sharding in shardings)


def from_hosts(mesh: Mesh, local: np.ndarray, axis: int = 0) -> jax.Array:
  """An array split along an axis, made of the `local_rows` of every process."""
  return jax.make_array_from_process_local_data(split_over(mesh, axis), local)


def hold(mesh: jax.sharding.Mesh | None, tree: Any) -> Any:
  """A tree whose arrays are kept on the devices, replicated, images `image_by_image`.

  Without a mesh, arrays that are not committed to one of several devices stay unchanged.

  Args:
    mesh: the devices; None for one.
    tree: arrays or `ShapeDtypeStruct`s; images are [n, height, width, channel].

  Example:
    >>> import numpy as np
    >>> held = hold(None, np.zeros((2, 8, 8, 3), np.uint8))
    >>> held.format.layout.major_to_minor  # (0, 3, 1, 2) on a TPU
    (0, 1, 2, 3)
  """

  def place(leaf):
    if mesh is not None:
      leaf = put(leaf, replicated(mesh))
    elif not isinstance(leaf, jax.ShapeDtypeStruct):
      leaf = jnp.asarray(leaf)
    return image_by_image(leaf)

  return jax.tree.map(place, tree)


def image_by_image(array: Any) -> Any:
  """An array in the layout for images, if it has images on TPUs; see the module's text."""
  shape = array.shape
  are_images = len(shape) == 4 and shape[3] <= _MOST_CHANNELS and shape[2] > _HALF_A_ROW
  if not (are_images and is_on_tpus(array.sharding)):
    return array
  format = Format(_IMAGE_BY_IMAGE, array.sharding)
  if isinstance(array, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=format)
  is_free = not array.committed and jax.device_count() > 1
  if is_free or array.format.layout.major_to_minor == _IMAGE_BY_IMAGE.major_to_minor:
    return array
  return jax.jit(_same, out_shardings=format)(array)


def _same(array: jax.Array) -> jax.Array:
  return array


def is_on_tpus(sharding: jax.sharding.Sharding | None) -> bool:
  """Whether the devices of a sharding are TPUs."""
  return sharding is not None and all(device.platform == 'tpu' for device in sharding.device_set)
