"""The sample inputs of a model: which are arrays, and which are taken as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax


class Sample:
  """Arguments of a call, of which arrays may be mere shapes.

  Attributes:
    arrays: the arrays among them.
  """

  def __init__(self, inputs: tuple, kwargs: Mapping[str, Any]):
    self._leaves, self._structure = jax.tree.flatten((inputs, dict(kwargs)))
    self.arrays = [leaf for leaf in self._leaves if is_array(leaf)]

  def arguments(self, arrays: Sequence[Any]) -> tuple[tuple, dict[str, Any]]:
    """The positional and keyword arguments, with other arrays in the place of these."""
    remaining = iter(arrays)
    leaves = [next(remaining) if is_array(leaf) else leaf for leaf in self._leaves]
    return self._structure.unflatten(leaves)

  def __str__(self) -> str:
    return ', '.join(f'{array.dtype}{list(array.shape)}' for array in self.arrays)


def is_array(leaf: Any) -> bool:
  """Whether a leaf is an array, or the shape of one."""
  return hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')
