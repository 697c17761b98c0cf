"""The processes and devices of a run."""

from __future__ import annotations

import os
import signal
import threading
from typing import Literal

import jax
from jax.sharding import Mesh

from glora_jax import mesh as meshes
from glora_jax.errors import UserError
from glora_jax.files import first_line


def initialize(
  coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
  """Joins the processes of one run, before anything else asks for a device.

  Arguments of None come from the environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
  JAX_PROCESS_ID, or a cluster that JAX knows (Slurm, Open MPI, TPU pods). If none of these has
  several processes, this process stays alone. A second call does nothing.

  Args:
    coordinator: 'host:port' of process 0.
    num_processes: number of processes.
    process_id: number of this process, from 0.

  Raises:
    UserError: an argument is missing or does not fit the others, JAX has been used before or has no
      device, or the other processes cannot be reached.
  """
  coordinator = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS')
  if num_processes is None:
    num_processes = _environment_number('JAX_NUM_PROCESSES')
  if process_id is None:
    process_id = _environment_number('JAX_PROCESS_ID')
  alone = (coordinator, num_processes, process_id) == (None, None, None) and not _in_a_cluster()
  if not alone and not jax.distributed.is_initialized():
    handler = signal.getsignal(signal.SIGTERM)
    try:
      jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError, IndexError) as error:  # the last for an address without port
      raise UserError(
        f'distributed: the processes with coordinator={coordinator}, '
        f'num_processes={num_processes}, process_id={process_id} could not be joined '
        f'({first_line(error)}); set all three, coordinator as HOST:PORT and process_id from 0 to '
        'num_processes - 1, or none.'
      ) from error
    # JAX has reserved it for a service that is not used.
    if handler is not None and threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGTERM, handler)
  require_devices()


def stay_alone() -> None:
  """Makes `initialize` join nobody, in whichever cluster this process was started."""
  for name in (
    'JAX_COORDINATOR_ADDRESS',
    'JAX_NUM_PROCESSES',
    'JAX_PROCESS_ID',
    'OMPI_COMM_WORLD_SIZE',
    'SLURM_STEP_NODELIST',
    'TPU_WORKER_HOSTNAMES',
  ):
    os.environ.pop(name, None)


def require_devices() -> None:
  """Checks that JAX has a device to compute on.

  Raises:
    UserError: the requested platform has none.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    platforms = jax.config.values['jax_platforms']
    raise UserError(
      f'JAX finds no device with JAX_PLATFORMS={platforms!r} ({first_line(error)}); install JAX '
      'for that platform, or set JAX_PLATFORMS=cpu.'
    ) from error


def _environment_number(name: str) -> int | None:
  value = os.environ.get(name, '')
  return int(value) if value.isdigit() else None


def _in_a_cluster() -> bool:
  """Whether the environment is that of one process among several.

  A cluster's job of one process needs no joining.
  """
  slurm_tasks = _environment_number('SLURM_NTASKS') or 1
  mpi_processes = _environment_number('OMPI_COMM_WORLD_SIZE') or 1
  in_slurm = 'SLURM_STEP_NODELIST' in os.environ and slurm_tasks > 1
  return in_slurm or mpi_processes > 1 or ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')


def over_devices(which: Literal['all', 'one'] = 'all', fsdp: int | None = None) -> Mesh | None:
  """The mesh over all devices of all processes.

  Args:
    which: 'all' devices, or 'one'.
    fsdp: see `mesh.make_mesh`.

  Returns:
    A mesh [candidate, data], or [candidate, data, fsdp]; None if there is only one device, or
    which='one'.

  Raises:
    ValueError: the processes have different numbers of devices, several are to share one, or `fsdp`
      does not divide them.
  """
  processes = jax.process_count()
  if which == 'one':
    if processes > 1:
      raise ValueError(
        f"mesh.devices='one' does not fit {processes} processes; use 'all', or start one process."
      )
    return None
  return meshes.make_mesh(jax.devices(), fsdp)
