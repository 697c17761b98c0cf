"""What may be chosen: alleles on offer, the layers of a model, and a `Spec` that says what a genome's rows are."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Iterator

import numpy as np

TENSORS = ('A', 'B', 'C', 'D', 'E')


@dataclasses.dataclass(frozen=True)
class SearchSpace:
  """The alleles on offer.

  Attributes:
    ranks: LoRA ranks, ascending; the largest is the size of the storage.
    A, B, C, D, E: the alleles on offer for each tensor, as codes or names ('none', 'constant', 'vector', 'lora4' or, where
      there is one rank, 'lora'); None offers all.
    tied: whether all forms of a tensor share storage, as in the official code.

  Example:
    >>> SearchSpace(ranks=(2, 4), A=('none',)).names('C')
    ('none', 'vector', 'lora2', 'lora4')
  """

  ranks: tuple[int, ...] = (4,)
  A: tuple[int, ...] | None = None
  B: tuple[int, ...] | None = None
  C: tuple[int, ...] | None = None
  D: tuple[int, ...] | None = None
  E: tuple[int, ...] | None = None
  tied: bool = True

  def __post_init__(self):
    ranks = (self.ranks,) if isinstance(self.ranks, numbers.Integral) else tuple(self.ranks)
    if (
      not ranks
      or any(not isinstance(r, numbers.Integral) or r < 1 for r in ranks)
      or list(ranks) != sorted(set(ranks))
    ):
      raise ValueError(
        f'ranks={self.ranks} must be positive integers in ascending order, (4,) or (2, 4, 8) for instance.'
      )
    object.__setattr__(self, 'ranks', tuple(int(r) for r in ranks))
    for tensor in TENSORS:
      object.__setattr__(self, tensor, self._offer(tensor, getattr(self, tensor)))

  def _offer(self, tensor, offered):
    names = self.names(tensor)
    if offered is None:
      return tuple(range(len(names)))
    codes = dict(zip(names, range(len(names)), strict=True))
    if len(self.ranks) == 1 and f'lora{self.ranks[0]}' in codes:
      codes['lora'] = codes[f'lora{self.ranks[0]}']
    chosen = (offered,) if isinstance(offered, (str, numbers.Integral)) else tuple(offered)
    chosen = {codes.get(allele, allele) for allele in chosen}
    if not chosen or not chosen <= set(range(len(names))):
      raise ValueError(
        f'{tensor}={offered} is not a choice among {", ".join(names)} (codes 0 to {len(names) - 1}).'
      )
    return tuple(sorted(int(code) for code in chosen))

  def names(self, tensor: str) -> tuple[str, ...]:
    """Names of all forms of a tensor, in the order of their codes."""
    loras = tuple(f'lora{rank}' for rank in self.ranks)
    return {
      'A': ('none', 'constant', 'vector', *loras),
      'C': ('none', 'vector', *loras),
      'D': ('none', 'constant', 'vector'),
    }[{'B': 'A', 'E': 'D'}.get(tensor, tensor)]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One row of a genome: a linear layer (or one slice of a stacked one)."""

  name: str
  in_features: int
  out_features: int
  bias: bool = True
  space: SearchSpace = SearchSpace()

  def offered(self, tensor: str) -> tuple[int, ...]:
    """Codes on offer; a layer without bias has only 'none' for C, D and E."""
    return getattr(self.space, tensor) if self.bias or tensor in 'AB' else (0,)

  def costs(self, tensor: str) -> tuple[int, ...]:
    """Trained parameters of every form of a tensor."""
    fan_in, fan_out, ranks = self.in_features, self.out_features, self.space.ranks
    if tensor in 'AB':
      return (0, 1, fan_out, *(r * (fan_in + fan_out) for r in ranks))
    if not self.bias:
      return (0,) * len(self.space.names(tensor))
    return (0, fan_in, *(r * (fan_in + 1) for r in ranks)) if tensor == 'C' else (0, 1, fan_out)

  def canonical(self, tensor: str) -> tuple[int, ...]:
    """For every code the cheapest one that is the same function whatever the values of the supports are."""
    codes = range(len(self.space.names(tensor)))
    if not self.bias and tensor in 'CDE':
      return tuple(0 for _ in codes)
    # One output: a vector is one number, and in tied storage the very same one.
    vector_is_constant = self.out_features == 1 and tensor != 'C' and self.space.tied
    return tuple(1 if code == 2 and vector_is_constant else code for code in codes)


@dataclasses.dataclass(frozen=True)
class Spec:
  """The rows of a genome, in execution order. Static and hashable."""

  layers: tuple[Layer, ...]

  def __len__(self) -> int:
    return len(self.layers)

  def __iter__(self) -> Iterator[Layer]:
    return iter(self.layers)

  def _table(self, values, dtype):
    """[rows, 5, codes], the last axis filled up with the last value."""
    rows = [[values(layer, tensor) for tensor in TENSORS] for layer in self.layers]
    width = max((len(v) for row in rows for v in row), default=1)
    return np.array(
      [[(*v, *[v[-1]] * (width - len(v))) for v in row] for row in rows], dtype
    ).reshape(len(rows), 5, width)

  @functools.cached_property
  def cost_table(self) -> np.ndarray:
    return self._table(Layer.costs, np.int64)

  @functools.cached_property
  def canonical_table(self) -> np.ndarray:
    return self._table(Layer.canonical, np.int8)

  @functools.cached_property
  def offered_table(self) -> np.ndarray:
    """Codes on offer, [rows, 5, most], filled up with the last one."""
    return self._table(Layer.offered, np.int8)

  @functools.cached_property
  def num_codes(self) -> np.ndarray:
    """Number of forms that exist, int [rows, 5]."""
    return np.array(
      [[len(layer.space.names(t)) for t in TENSORS] for layer in self.layers]
    ).reshape(len(self), 5)

  @functools.cached_property
  def num_offered(self) -> np.ndarray:
    """Number of forms on offer, int [rows, 5]."""
    return np.array([[len(layer.offered(t)) for t in TENSORS] for layer in self.layers]).reshape(
      len(self), 5
    )
