"""What a plan is for: the machine at hand, or a TPU slice that is not."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from glora_jax.runs.planning.slices import find_slice

# Of the matrices whose products are timed: a CPU's caches hold them, other devices they fill.
_SIDES = {'cpu': 512}
_SIDE = 4096
_SECONDS = 1.0  # of timing: among hundreds of short products some meet no other process


class Machine(NamedTuple):
  """Devices, all alike.

  Attributes:
    name: what they are.
    devices: number of devices.
    hosts: number of machines that they are in.
    memory: bytes that each has; a host's CPU devices share what the host has.
    peak: operations of matrix products that each does in a second, shared likewise.
    is_published: whether the peak is the maker's word; it was measured otherwise.
    platform: 'cpu', 'gpu' or 'tpu'.
  """

  name: str
  devices: int
  hosts: int
  memory: int
  peak: float
  is_published: bool
  platform: str


def machine_of(topology: str | None, which: str = 'all', dtype: Any = 'float32') -> Machine:
  """The machine of a plan.

  Args:
    topology: name of a TPU slice; None for the machine at hand.
    which: 'all' devices of it, or 'one'.
    dtype: type of the computation, in which a peak is measured.

  Raises:
    ValueError: there is no such slice.
  """
  if topology is None:
    return _at_hand(jax.devices()[: 1 if which == 'one' else None], dtype)
  found = find_slice(topology)
  number = 1 if which == 'one' else found.chips
  hosts = -(-number // math.prod(found.host))
  return Machine(
    f'TPU {found.name}', number, hosts, found.chip.memory, found.chip.peak, True, 'tpu'
  )


def _at_hand(devices: Sequence[jax.Device], dtype: Any) -> Machine:
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  memory = stats.get('bytes_limit') or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  peak = _measured_peak(dtype, _SIDES.get(device.platform, _SIDE))
  hosts = len({device.process_index for device in devices})
  if device.platform == 'cpu':  # all of a host's devices are its cores and its memory
    share = len(devices) // hosts
    memory, peak = memory // share, peak / share
  return Machine(device.device_kind, len(devices), hosts, memory, peak, False, device.platform)


def _measured_peak(dtype: Any, side: int) -> float:
  """Operations a second of a product of square matrices, the best of many."""
  factor = jnp.full((side, side), 1 / side, dtype)
  multiply = jax.jit(jnp.matmul)
  multiply(factor, factor).block_until_ready()
  best, end = math.inf, time.perf_counter() + _SECONDS
  while (start := time.perf_counter()) < end:
    multiply(factor, factor).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * side**3 / best
