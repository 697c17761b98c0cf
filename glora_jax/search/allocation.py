"""What every form of every row is worth by the mean gradient, and where its factors start.

A *unit* is what can be bought by itself: a vector, or one rank-one part of a LoRA. All of them lie
in one currency: the squared gradient by the unit's trained numbers at the base model.

    E vector   g                      A vector   sum over inputs of W * G
    C vector   W @ g                  LoRA of B  u^T G, of A  u^T (W * G)

with the mean gradients G [in, out] by a kernel W and g [out] by its bias, and u a left singular
vector of what it stands before, as long as a column of Xavier's down factor, c: with the down
factor on u and the up factor at zero, u^T G is the gradient by the up factor, and its square is
c^2 times that of G's singular value.

Forms that are not considered span no more than these do, and cost as much or more: constants, the
vector of B (a LoRA of rank one whose down factor is a constant), D beside E, the LoRA of C.

Functions of NumPy arrays, which know neither models nor devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from glora_jax.method.space import Tensor


class Values(NamedTuple):
  """What the units of every row are worth, float64; 0 where a unit does not exist.

  Attributes:
    A_vector: [row].
    A_lora: [row, rank], each rank-one part by itself.
    B_lora: [row, rank], likewise.
    C_vector: [row].
    E_vector: [row].
  """

  A_vector: np.ndarray
  A_lora: np.ndarray
  B_lora: np.ndarray
  C_vector: np.ndarray
  E_vector: np.ndarray

  def total(self) -> float:
    """What all of them are worth together."""
    return sum(float(part.sum()) for part in self)

  def shares(self) -> Values:
    """The same on a scale of their own: all values add up to 1, unless all are 0."""
    total = self.total() or 1.0
    return Values(*(part / total for part in self))


# What the fields of `Values` are about: the tensor and its form.
UNIT_FORMS: tuple[tuple[Tensor, Literal['vector', 'lora']], ...] = (
  ('A', 'vector'),
  ('A', 'lora'),
  ('B', 'lora'),
  ('C', 'vector'),
  ('E', 'vector'),
)


class Directions(NamedTuple):
  """The first left singular vectors of a matrix.

  Attributes:
    vectors: [in, n], orthonormal, the largest entry of each column positive.
    squares: squared singular values, [n], descending.
  """

  vectors: np.ndarray
  squares: np.ndarray


class RowGradients(NamedTuple):
  """The mean gradients of one row.

  Attributes:
    kernel: directions of the gradient by W.
    scaled_kernel: of W times the gradient by W; None where A has no LoRA on offer.
    scale: W times the gradient by W, summed over the inputs, [out].
    bias: gradient by the bias, [out]; None without bias.
    prompt: W @ bias, [in]; None without bias.
  """

  kernel: Directions
  scaled_kernel: Directions | None
  scale: np.ndarray
  bias: np.ndarray | None
  prompt: np.ndarray | None


def xavier_norm(in_features: int, rank: int) -> float:
  """Root of the expected squared norm of a column of a Xavier-uniform matrix [in, rank]."""
  return math.sqrt(2 * in_features / (in_features + rank))


def directions_of(right: np.ndarray, left: np.ndarray, probe: np.ndarray) -> Directions:
  """The directions of a matrix G [in, out] by what is left of it.

  Args:
    right: G times a random matrix, [in, k].
    left: `probe`.T @ G, [l, out] with l at least k.
    probe: random orthonormal columns, [in, l].

  Returns:
    As many as `right` has columns, float64; those of G itself where k is G's rank or more.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> gradient, right, probe = rng.normal(size=(6, 1)) * np.ones(4), np.eye(4, 2), np.eye(6, 5)
    >>> found = directions_of(gradient @ right, probe.T @ gradient, probe)
    >>> bool(np.isclose(found.squares[0], (gradient**2).sum()))
    True
  """
  right, left, probe = (np.asarray(array, np.float64) for array in (right, left, probe))
  basis = np.linalg.qr(right).Q
  seen = probe.T @ basis
  small = np.linalg.solve(seen.T @ seen, seen.T @ left)  # G is basis @ small, nearly
  squares, vectors = np.linalg.eigh(small @ small.T)
  vectors = basis @ vectors[:, ::-1]
  largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
  return Directions(vectors * np.where(largest < 0, -1, 1), np.maximum(squares[::-1], 0))


def row_values(gradients: RowGradients, number: int, norm: float) -> Values:
  """What the units of one row are worth.

  Args:
    gradients: see `RowGradients`.
    number: number of rank-one parts of A and of B.
    norm: length of the down factors' columns.

  Returns:
    float64 [] and [number].
  """

  def square(vector: np.ndarray | None) -> np.ndarray:
    return np.zeros(()) if vector is None else np.square(vector, dtype=np.float64).sum()

  def parts(found: Directions | None) -> np.ndarray:
    squares = np.zeros(0) if found is None else found.squares[:number]
    return norm**2 * np.pad(squares, (0, number - len(squares)))

  return Values(
    A_vector=square(gradients.scale),
    A_lora=parts(gradients.scaled_kernel),
    B_lora=parts(gradients.kernel),
    C_vector=square(gradients.prompt),
    E_vector=square(gradients.bias),
  )


def mean_of(losses: Sequence[Values]) -> Values:
  """The mean of values by several losses, each of which counts alike.

  Args:
    losses: values by each loss, of the same rows and parts.

  Returns:
    Values that add up to 1 at most.

  Example:
    >>> mean_of([Values(*np.ones((5, 2))), Values(*np.full((5, 2), 7.0))]).E_vector
    array([0.1, 0.1])
  """
  return Values(
    *(np.mean(parts, axis=0) for parts in zip(*(v.shares() for v in losses), strict=True))
  )


def aligned_factors(
  adapter: Mapping[str, np.ndarray], directions: Mapping[str, np.ndarray], norm: float
) -> dict[str, np.ndarray]:
  """Starting values of one layer: down factors on given directions, all else at the base model.

  Args:
    adapter: the layer's supports (`method.adapter.adapter_shapes`).
    directions: orthonormal columns [in, n] for `A_down`, `B_down` or both; columns of these beyond
      the n-th stay as they are, and so does `C_up`, which a LoRA of C alone reads.
    norm: length that the columns get.

  Returns:
    The supports in their shapes and dtypes, every structure of which is the base layer.
  """
  kept = ('A_down', 'B_down', 'C_up')
  aligned = {
    name: np.array(value) if name in kept else np.zeros_like(value)
    for name, value in adapter.items()
  }
  for name, columns in directions.items():
    number = min(columns.shape[-1], aligned[name].shape[-1])
    aligned[name][:, :number] = norm * columns[:, :number]
  return aligned
