"""What streamed images ask of a host: how many a second training takes, and who decodes them."""

from __future__ import annotations

import contextlib
import math
import time
from typing import NamedTuple

import numpy as np

from glora_jax.data.examples import Examples
from glora_jax.data.image import ResizeRule, resize

_TIMED = 48  # images


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
