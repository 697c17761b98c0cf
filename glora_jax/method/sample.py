"""What a model is called with: which are arrays, and which are taken as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from glora_jax.tree import flatten, partition


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


def split_arrays(params: Any) -> tuple[Any, Any]:
  """Two trees, as of `tree.partition`: the arrays among parameters, and what is taken as it is.

  The first is `params` itself, and the second None, where all are arrays.
  """
  is_own = {path: is_array(nn.meta.unbox(leaf)) for path, leaf in flatten(params).items()}
  return (params, None) if all(is_own.values()) else partition(params, is_own.__getitem__)
