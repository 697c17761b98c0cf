"""TPU slices that need not be at hand: what they have, and their devices for the TPU compiler.

The compiler is libtpu (`pip install 'jax[tpu]'`), which needs no TPU. Peaks and memory are those
that Google publishes for each chip.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from glora_jax.limits import shown

GIBIBYTE = 2**30

# What libtpu asks of a machine that has no TPU.
_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # no TPU is used, so that nobody is in the way
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
}


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
_EXAMPLES = 'v4:2x2x1, v4:2x2x2, v5e:1x1, v5e:2x2, v5e:2x4, v5e:4x4, v5p:2x2x1, v6e:2x2, v6e:4x4'


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
