"""Devices: several processes as one program, one mesh over all their devices, and where arrays lie on it.

Every process runs the same program on the same workdir and sees the same numbers; `primary` alone writes files. The mesh has a row for each
process ('candidate') and a column for each of its devices ('data'). Training deals a batch to all of them; a search deals the subnets of a
population to the rows and images to the columns, so that scores cross from host to host once, at the end.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('candidate', 'data')
_WAIT = 3600 * 1000  # milliseconds at a barrier; the first process may have to fetch data


def initialize(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins the processes of one run; to be called before anything else asks for a device. A second call does nothing.

  What is not given comes from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, or a cluster that JAX
  knows (Slurm, Open MPI, TPU pods). Where neither speaks of several processes this one stays alone.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: how many there are.
    process_id: which one this is, from 0.

  Raises:
    ValueError: something is missing, or does not fit the rest.
    RuntimeError: JAX has been used before, or the others cannot be reached.
  """
  number = lambda name: int(os.environ[name]) if os.environ.get(name, '').isdigit() else None
  coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
  num_processes = number('JAX_NUM_PROCESSES') if num_processes is None else num_processes
  process_id = number('JAX_PROCESS_ID') if process_id is None else process_id
  alone = (
    coordinator is None and num_processes is None and process_id is None and not _in_a_cluster()
  )
  if alone or jax.distributed.is_initialized():
    return
  given = f'coordinator={coordinator}, num_processes={num_processes}, process_id={process_id}'
  complete = None not in (coordinator, num_processes, process_id)
  if not (_in_a_cluster() or complete) or (complete and not 0 <= process_id < num_processes):
    raise ValueError(
      f'distributed: {given} do not describe one of several processes; give all three, the last from 0 to '
      'num_processes - 1, or none.'
    )
  handler = signal.getsignal(signal.SIGTERM)
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except RuntimeError as error:
    raise RuntimeError(
      f'The processes with {given} could not be joined: {str(error).strip().splitlines()[0]}'
    ) from error
  if handler is not None and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, handler)  # JAX has taken it for a service that nobody here asks


def _in_a_cluster() -> bool:
  """Whether the environment is that of one process among several; a cluster's job of one process needs no joining."""
  several = lambda name: os.environ.get(name, '').isdigit() and int(os.environ[name]) > 1
  slurm = 'SLURM_STEP_NODELIST' in os.environ and several('SLURM_NTASKS')
  return (
    slurm or several('OMPI_COMM_WORLD_SIZE') or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')
  )


def primary() -> bool:
  """Whether this process writes the files that all share; orbax, which all must call, sees to it itself."""
  return jax.process_index() == 0


def on_any(flag: bool) -> bool:
  """Whether it is true in any process; all must call it."""
  return (
    flag
    if jax.process_count() == 1
    else bool(multihost_utils.process_allgather(np.array(flag)).any())
  )


def least_of_all(number: int) -> int:
  """The smallest that any process says, below 2**31; all must call it."""
  return (
    number
    if jax.process_count() == 1
    else int(multihost_utils.process_allgather(np.array(number)).min())
  )


def barrier(name: str) -> None:
  """Waits until all processes are here."""
  ocp.multihost.get_barrier_sync_fn()(key=f'glora_jax/{name}', timeout_ms=_WAIT)


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
  """The primary process goes through the block before the others: what it prepares there, they find."""
  if not primary():
    barrier(name)
  try:
    yield
  finally:
    if primary():
      barrier(name)


def over_devices(which: str = 'all') -> Mesh | None:
  """The mesh over all devices of all processes; None where there is but one, or `which` is 'one'.

  Raises:
    ValueError: the processes have different numbers of devices, or several are to share one.
  """
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  if which == 'one':
    if jax.process_count() > 1:
      raise ValueError(
        f"mesh.devices='one' does not fit {jax.process_count()} processes; take 'all', or start one process."
      )
    return None
  if len(devices) == 1:
    return None
  if (
    len(
      {
        sum(device.process_index == process for device in devices)
        for process in range(jax.process_count())
      }
    )
    > 1
  ):
    raise ValueError(
      f'The {len(devices)} devices are not spread evenly over the {jax.process_count()} processes; give each as many.'
    )
  return Mesh(
    np.array(devices).reshape(jax.process_count(), -1),
    AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
  )


def require_divisible(mesh: Mesh | None, batch_size: int) -> None:
  """Raises ValueError where a batch cannot be dealt out evenly."""
  if mesh is not None and batch_size % mesh.size:
    raise ValueError(
      f'A batch of {batch_size} images cannot be dealt to {mesh.size} devices; make batch_size (and its part by accumulate) '
      f"a multiple of {mesh.size}, or use fewer devices (mesh.devices='one' in a config)."
    )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def dealt(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """An axis dealt to all devices."""
  return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names))


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Every array whole on every device. All processes must hold the same values."""
  return jax.tree.map(lambda leaf: _put(leaf, replicated(mesh)), tree)


def shard(mesh: Mesh, tree: Any, min_bytes: int = 2**20) -> Any:
  """Arrays of at least `min_bytes` with their largest fitting axis (`sharded_axis`) over all devices, the others whole on every one."""

  def place(leaf):
    axis = (
      sharded_axis(np.shape(leaf), mesh.size)
      if math.prod(np.shape(leaf)) * leaf.dtype.itemsize >= min_bytes
      else None
    )
    return _put(leaf, replicated(mesh) if axis is None else dealt(mesh, axis))

  return jax.tree.map(place, tree)


def sharded_axis(shape: tuple[int, ...], devices: int) -> int | None:
  """The largest axis that the number of devices divides, of equal ones the last; None where there is none.

  Of three or more axes the first does not count: scanned blocks are stacked there, and a scan would wait for one device at every step.
  """
  fitting = [axis for axis in range(len(shape) > 2, len(shape)) if shape[axis] % devices == 0]
  return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def settle(mesh: Mesh, tree: Any) -> Any:
  """What lies on the mesh stays as it is; the rest is replicated."""
  here = set(mesh.devices.flat)
  on_mesh = lambda leaf: isinstance(leaf, jax.Array) and leaf.sharding.device_set == here
  return jax.tree.map(lambda leaf: leaf if on_mesh(leaf) else _put(leaf, replicated(mesh)), tree)


def _put(leaf, sharding):
  if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
    return leaf
  if sharding.is_fully_addressable or (
    isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
  ):
    return jax.device_put(leaf, sharding)
  value = np.asarray(
    leaf
  )  # device_put would first send it to all hosts, to see whether it is the same everywhere
  value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def local_rows(mesh: Mesh, number: int) -> np.ndarray:
  """Which of `number` rows that are dealt out lie on this process' devices, ascending; int [local]."""
  parts = {
    part.indices(number)[:2]
    for (part,) in dealt(mesh).addressable_devices_indices_map((number,)).values()
  }
  return np.concatenate([np.arange(*part) for part in sorted(parts)])


def from_hosts(mesh: Mesh, local: np.ndarray, axis: int = 0) -> jax.Array:
  """One array from what every process holds of it: its `local_rows` of an axis that is dealt out."""
  return jax.make_array_from_process_local_data(dealt(mesh, axis), local)


def blocks(mesh: Mesh | None, stream: Any, size: int) -> Iterator[tuple[Any, Any]]:
  """All (images, labels) of a stream in their order, about `size` at a time.

  On a mesh every process decodes its part of a block, but all of the last one, which may not come out even.
  """
  if mesh is None:
    yield from stream.blocks(size)
    return
  size = -(-size // mesh.size) * mesh.size
  even = len(stream) // size * size
  if even:
    for block in stream.batches(np.arange(even).reshape(-1, size)[:, local_rows(mesh, size)]):
      yield tuple(from_hosts(mesh, rows) for rows in block)
  if even < len(stream):
    yield from stream.batches(np.arange(even, len(stream))[None])


def on_host(tree: Any) -> Any:
  """NumPy arrays, whole in every process; all must call it."""
  whole = lambda leaf: (
    not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
  )
  return jax.tree.map(
    lambda leaf: np.asarray(
      leaf if whole(leaf) else multihost_utils.process_allgather(leaf, tiled=True)
    ),
    tree,
  )
