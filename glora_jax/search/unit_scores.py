"""Scores of all that a structure can train, and starting values of LoRAs, from the mean gradient.

A *unit* can be added to a structure alone: a vector, or one rank of a LoRA. Scores of all units are
comparable: each is the squared gradient of the unit's parameters at the base model.

    E vector   g                      A vector   sum over inputs of W * G
    C vector   W @ g                  LoRA of B  u^T G, of A  u^T (W * G)

Here G [in, out] is the mean gradient of a kernel W, and g [out] that of its bias. u is a left
singular vector of the matrix that it is multiplied with, scaled to the length c of a column of
Xavier's down factor. If the down factor is u and the up factor zero, u^T G is the gradient of the
up factor, and its square is c^2 times that of G's singular value.

Forms that are not considered span no more than these do, and cost as much or more: constants, the
vector of B (a LoRA of rank one whose down factor is a constant), D next to E, the LoRA of C.

Functions of NumPy arrays, which know neither models nor devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from glora_jax.method.space import Tensor


class UnitScores(NamedTuple):
  """Scores of the units of every layer, float64; 0 for a unit that does not exist.

  Attributes:
    A_vector: [layer].
    A_lora: [layer, rank], each rank alone.
    B_lora: [layer, rank], likewise.
    C_vector: [layer].
    E_vector: [layer].
  """

  A_vector: np.ndarray
  A_lora: np.ndarray
  B_lora: np.ndarray
  C_vector: np.ndarray
  E_vector: np.ndarray

  def total(self) -> float:
    """The sum of all scores."""
    return sum(float(scores.sum()) for scores in self)

  def shares(self) -> UnitScores:
    """Each score as a share of the total; all 0 if the total is."""
    total = self.total() or 1.0
    return UnitScores(*(scores / total for scores in self))


# The tensor and the form of each field of `UnitScores`, in their order.
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


class LayerGradients(NamedTuple):
  """The mean gradients of one layer.

  Attributes:
    kernel: directions of G, the gradient of W.
    scaled_kernel: directions of W * G; None if the space has no LoRA of A.
    scale: gradient of A's vector: W * G summed over the inputs, [out].
    bias: gradient of the bias, [out]; None without bias.
    prompt: gradient of C's vector: W @ bias, [in]; None without bias.
  """

  kernel: Directions
  scaled_kernel: Directions | None
  scale: np.ndarray
  bias: np.ndarray | None
  prompt: np.ndarray | None


def score_units(gradients: LayerGradients, ranks: int, norm: float) -> UnitScores:
  """Scores of the units of one layer.

  Args:
    gradients: see `LayerGradients`.
    ranks: number of ranks of A and of B that are scored.
    norm: length of the down factors' columns.

  Returns:
    float64 [] and [rank].
  """

  def square(vector: np.ndarray | None) -> np.ndarray:
    return np.zeros(()) if vector is None else np.square(vector, dtype=np.float64).sum()

  def squares(directions: Directions | None) -> np.ndarray:
    found = np.zeros(0) if directions is None else directions.squares[:ranks]
    return norm**2 * np.pad(found, (0, ranks - len(found)))

  return UnitScores(
    A_vector=square(gradients.scale),
    A_lora=squares(gradients.scaled_kernel),
    B_lora=squares(gradients.kernel),
    C_vector=square(gradients.prompt),
    E_vector=square(gradients.bias),
  )


def mean_scores(losses: Sequence[UnitScores]) -> UnitScores:
  """The mean of several losses' scores, each scaled to a total of 1 first.

  Args:
    losses: scores from each loss, of the same layers and ranks.

  Returns:
    Scores whose total is 1 at most.

  Example:
    >>> mean_scores([UnitScores(*np.ones((5, 2))), UnitScores(*np.full((5, 2), 7.0))]).E_vector
    array([0.1, 0.1])
  """
  shares = [scores.shares() for scores in losses]
  return UnitScores(*(np.mean(field, axis=0) for field in zip(*shares, strict=True)))


def xavier_norm(in_features: int, rank: int) -> float:
  """Root of the expected squared norm of a column of a Xavier-uniform matrix [in, rank]."""
  return math.sqrt(2 * in_features / (in_features + rank))


def find_directions(right: np.ndarray, left: np.ndarray, probe: np.ndarray) -> Directions:
  """The first directions of a matrix G [in, out], from its products with thin matrices.

  Args:
    right: G times a random matrix, [in, k].
    left: `probe`.T @ G, [l, out] with l at least k.
    probe: random orthonormal columns, [in, l].

  Returns:
    As many as `right` has columns, float64; those of G itself if k is G's rank or more.

  Example:
    >>> rng = np.random.default_rng(0)
    >>> gradient, right, probe = rng.normal(size=(6, 1)) * np.ones(4), np.eye(4, 2), np.eye(6, 5)
    >>> directions = find_directions(gradient @ right, probe.T @ gradient, probe)
    >>> bool(np.isclose(directions.squares[0], (gradient**2).sum()))
    True
  """
  right, left, probe = (np.asarray(array, np.float64) for array in (right, left, probe))
  # The columns of `basis` span those of G, nearly: G is basis @ core. With the probe in front,
  # left = (probe.T @ basis) @ core, which least squares solve for the small matrix `core`.
  basis = np.linalg.qr(right).Q
  probed = probe.T @ basis
  core = np.linalg.solve(probed.T @ probed, probed.T @ left)
  squares, vectors = np.linalg.eigh(core @ core.T)
  vectors = basis @ vectors[:, ::-1]
  largest = np.take_along_axis(vectors, np.abs(vectors).argmax(0)[None], axis=0)
  return Directions(vectors * np.where(largest < 0, -1, 1), np.maximum(squares[::-1], 0))


def align_factors(
  adapter: Mapping[str, np.ndarray], directions: Mapping[str, np.ndarray], norm: float
) -> dict[str, np.ndarray]:
  """Starting values of one layer: down factors along directions, all else at the base model.

  Args:
    adapter: the layer's adapter (`method.adapter.adapter_shapes`).
    directions: orthonormal columns [in, n] for `A_down`, `B_down` or both. Columns of these beyond
      the n-th are unchanged, and so is `C_up`, which only a LoRA of C reads.
    norm: length that the columns get.

  Returns:
    The adapter in its shapes and dtypes; with it every structure is the base layer.
  """
  unchanged = ('A_down', 'B_down', 'C_up')
  aligned = {
    name: np.array(value) if name in unchanged else np.zeros_like(value)
    for name, value in adapter.items()
  }
  for name, columns in directions.items():
    number = min(columns.shape[-1], aligned[name].shape[-1])
    aligned[name][:, :number] = norm * columns[:, :number]
  return aligned
