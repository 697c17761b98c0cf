"""What a plan is for: the machine at hand, or a TPU slice that is not; and how fast a core decodes.

The compiler for slices is libtpu (`pip install 'jax[tpu]'`), which needs no TPU. Peaks and memory
are those that Google publishes for each chip.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.data.examples import Examples
from glora_jax.data.image import ResizeRule, resize
from glora_jax.limits import shown

# Of the matrices whose products are timed: a CPU's caches hold them, other devices they fill.
_SIDES = {'cpu': 512}
_SIDE = 4096
_SECONDS = 1.0  # of timing: among hundreds of short products some meet no other process
GIBIBYTE = 2**30
# What libtpu asks of a machine that has no TPU.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # no TPU is used, so that nobody is in the way
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}
_EXAMPLES = 'v4:2x2x1, v4:2x2x2, v5e:1x1, v5e:2x2, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x2, v6e:4x4'
_TIMED = 48  # images


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


class Chip(NamedTuple):
  """A generation of TPUs.

  Attributes:
    peak: bfloat16 operations of matrix products in a second.
    memory: bytes.
    sides: numbers of axes of a topology.
    largest: most chips of a slice along an axis.
    config: how libtpu calls chips whose cores are one device.
  """

  peak: float
  memory: int
  sides: int
  largest: int
  config: str


CHIPS = {
  'v4': Chip(275e12, 32 * GIBIBYTE, sides=3, largest=16, config='megacore'),
  'v5e': Chip(197e12, 16 * GIBIBYTE, sides=2, largest=16, config='default'),
  'v5p': Chip(459e12, 95 * GIBIBYTE, sides=3, largest=24, config='default'),
  'v6e': Chip(918e12, 32 * GIBIBYTE, sides=2, largest=16, config='default'),
}


class Slice(NamedTuple):
  """Some chips of one generation, side by side.

  Attributes:
    name: generation and sides, 'v5e:2x4'.
    chip: what each chip is.
    sides: number of chips along each axis.
  """

  name: str
  chip: Chip
  sides: tuple[int, ...]

  @property
  def chips(self) -> int:
    """Number of chips."""
    return math.prod(self.sides)

  @property
  def host(self) -> tuple[int, ...]:
    """Number of a host's chips along three axes."""
    return (*(min(side, 2) for side in self.sides[:2]), 1)

  def devices(self) -> Sequence[jax.Device]:
    """Devices that the TPU compiler compiles for; there is nothing behind them.

    Raises:
      ImportError: libtpu is not installed.
    """
    if not has_compiler():
      raise ImportError(
        f"topology {self.name} needs the TPU compiler, which is not there; pip install 'jax[tpu]'."
      )
    from jax.experimental import topologies

    for name, value in _ENVIRONMENT.items():
      os.environ.setdefault(name, value)
    options = {'chip_config_name': self.chip.config, 'chips_per_host_bounds': self.host}
    return topologies.get_topology_desc(self.name, 'tpu', **options).devices


def has_compiler() -> bool:
  """Whether libtpu is installed."""
  return importlib.util.find_spec('libtpu') is not None


def find_slice(name: str) -> Slice:
  """The slice of a name.

  Args:
    name: generation, colon and sides, 'v5e:2x4' or 'v4:2x2x1'.

  Raises:
    ValueError: there is none.

  Example:
    >>> find_slice('v5e:2x4').chips
    8
  """
  generation, _, text = str(name).partition(':')
  chip = CHIPS.get(generation)
  sides = tuple(map(int, text.split('x'))) if re.fullmatch(r'\d{1,3}(x\d{1,3})*', text) else ()
  if chip is None or len(sides) != chip.sides or not _is_cut(chip, sides):
    raise ValueError(
      f'topology {shown(name)} is unknown; give {", ".join(CHIPS)} with the chips of each side, '
      f'all 1, or even numbers with a third that may be 1: {_EXAMPLES} and the like.'
    )
  return Slice(f'{generation}:{"x".join(map(str, sides))}', chip, sides)


def _is_cut(chip: Chip, sides: Sequence[int]) -> bool:
  """Whether slices have such sides: a single chip, or hosts of 2 x 2."""
  if set(sides) == {1}:
    return True
  are_hosts = all(side % 2 == 0 for side in sides[:2])
  are_even = all(side % 2 == 0 or side == 1 for side in sides)
  return are_hosts and are_even and all(0 < side <= chip.largest for side in sides)


class Reading(NamedTuple):
  """What training on streamed images takes.

  Attributes:
    rates: images a second, of all devices together, at 45% and at 20% of the peak.
    per_core: images that a core of this machine reads and decodes in a second.

  Example:
    >>> Reading((900.0, 400.0), per_core=250.0).cores
    (4, 2)
  """

  rates: tuple[float, ...]
  per_core: float

  @property
  def cores(self) -> tuple[int, ...]:
    """The cores that decode as fast as training takes images."""
    return tuple(math.ceil(rate / self.per_core) for rate in self.rates)


def images_per_core(examples: Examples, image_size: int, rule: ResizeRule) -> float | None:
  """Images that a core reads, decodes and resizes in a second, by some that are spread over all.

  Waiting for a disk does not count. None where none of them can be decoded.
  """
  indices = np.linspace(0, len(examples.labels) - 1, _TIMED + 1).astype(int)
  seconds = []
  for index in indices:
    with contextlib.suppress(OSError):
      start = time.thread_time()
      resize(examples.image(int(index)), image_size, rule)
      seconds.append(time.thread_time() - start)
  warm = seconds[1:]  # the first one finds decoders and opens files
  return 1 / max(float(np.mean(warm)), 1e-9) if warm else None
