"""The next generation of a search while it is put together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from glora_jax.method.genomes import canonicalize
from glora_jax.method.space import Spec

_TRIES = 10  # rounds of draws before a brood is content with fewer new children


class Brood:
  """Children that are canonical, unlike each other, and not known yet.

  Args:
    spec: the genomes' spec.
    known: canonical genomes that must not come again, int8 [subnet, layer, 5].
  """

  def __init__(self, spec: Spec, known: np.ndarray):
    self._spec = spec
    self._known = {genome.tobytes() for genome in known}
    self._children: list[np.ndarray] = []

  def __len__(self) -> int:
    return len(self._children)

  def fill(self, size: int, draw: Callable[[int], np.ndarray]) -> None:
    """Draws children until there are `size` of them, or too many draws were known already.

    Args:
      size: number of children afterwards, those that are there already included.
      draw: number -> as many genomes or more, int8 [genome, layer, 5], of which the first are
        taken; asked again for what is missing.
    """
    for _ in range(_TRIES):
      missing = size - len(self)
      if missing <= 0:
        return
      for genome in canonicalize(self._spec, draw(missing)):
        if len(self) < size and genome.tobytes() not in self._known:
          self._known.add(genome.tobytes())
          self._children.append(genome)

  def genomes(self) -> np.ndarray:
    """The children in the order in which they were added, int8 [child, layer, 5]."""
    return np.array(self._children, np.int8).reshape(-1, len(self._spec), 5)
