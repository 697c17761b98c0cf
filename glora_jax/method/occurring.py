"""The alleles that may occur in a stack of layers, where they are known when tracing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from glora_jax.method.space import FLAT_FORMS, TENSORS, Tensor


@dataclasses.dataclass(frozen=True)
class Occurring:
  """For each tensor the codes that may occur in a stack of layers.

  Attributes:
    codes: those of A, B, C, D and E, ascending.
  """

  codes: tuple[tuple[int, ...], ...]

  @classmethod
  def of_alleles(cls, alleles: np.ndarray) -> Occurring:
    """The codes that occur in alleles [layer, 5].

    Example:
      >>> found = Occurring.of_alleles(np.array([[0, 3, 0, 0, 0], [0, 0, 0, 0, 2]]))
      >>> found.tensors, found.is_thin
      (('B', 'E'), True)
    """
    return cls.of_tensors(column.tolist() for column in alleles.T)

  @classmethod
  def of_tensors(cls, codes: Iterable[Iterable[int]]) -> Occurring:
    """The codes of each tensor, in any order."""
    return cls(tuple(tuple(sorted(set(column))) for column in codes))

  @property
  def tensors(self) -> tuple[Tensor, ...]:
    """The tensors that may take part."""
    pairs = zip(TENSORS, self.codes, strict=True)
    return tuple(tensor for tensor, codes in pairs if codes != (0,))

  @property
  def is_thin(self) -> bool:
    """Whether no layer has a LoRA for A, so that no merged kernel is needed."""
    return max(self.codes[0]) < len(FLAT_FORMS['A'])
