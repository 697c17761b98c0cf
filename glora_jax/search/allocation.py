"""What every form of every row is worth by cross-fitted gradients, and where its factors start.

A *unit* is what can be bought by itself: a vector, or one rank-one part of a LoRA. All of them lie
in one currency: the squared gradient by the unit's trained numbers at the base model, its one
factor taken from the mean gradient of all folds but one, the other from that fold. What is noise of
single examples has the value 0 in the mean.

    E vector   g                      A vector   sum over inputs of W * G
    C vector   W @ g                  LoRA of B  u^T G, of A  u^T (W * G)

with the gradients G [in, out] by a kernel W and g [out] by its bias, and u a left singular vector
of the other folds' mean gradient, as long as a column of Xavier's down factor: with the down factor
on u and the up factor at zero, c * u^T G is the gradient by the up factor.

Forms that are not considered span no more than these do, and cost as much or more: constants, the
vector of B (a LoRA of rank one whose down factor is a constant), D beside E, the LoRA of C.

Functions of NumPy arrays, which know neither models nor devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from glora_jax.method.space import Tensor

Measure = Literal['squared', 'sign', 'preconditioned', 'seen']


class Values(NamedTuple):
  """What the units of every row are worth, float64; 0 where a unit does not exist.

  Attributes:
    A_vector: [..., row]; the leading axis is that of the folds, where there is one.
    A_lora: [..., row, rank], each rank-one part by itself.
    B_lora: [..., row, rank], likewise.
    C_vector: [..., row].
    E_vector: [..., row].
  """

  A_vector: np.ndarray
  A_lora: np.ndarray
  B_lora: np.ndarray
  C_vector: np.ndarray
  E_vector: np.ndarray

  def mean(self) -> Values:
    """The mean over the folds, without their axis."""
    return Values(*(values.mean(0) for values in self))


# What the fields of `Values` are about: the tensor and its form.
UNIT_FORMS: tuple[tuple[Tensor, Literal['vector', 'lora']], ...] = (
  ('A', 'vector'),
  ('A', 'lora'),
  ('B', 'lora'),
  ('C', 'vector'),
  ('E', 'vector'),
)


class LayerGradients(NamedTuple):
  """The gradients of one row, each the mean over a fold.

  Attributes:
    kernel: gradient by W along an orthonormal basis of the inputs, float [fold, basis, out].
    scaled_kernel: W times the gradient by W, likewise along a basis of its own; None where A has
      no LoRA on offer.
    scale: W times the gradient by W, summed over the inputs, float [fold, out].
    bias: gradient by the bias, float [fold, out]; None without bias.
    prompt: W @ bias, float [fold, in]; None without bias.
  """

  kernel: np.ndarray
  scaled_kernel: np.ndarray | None
  scale: np.ndarray
  bias: np.ndarray | None
  prompt: np.ndarray | None


def xavier_norm(in_features: int, rank: int) -> float:
  """Root of the expected squared norm of a column of a Xavier-uniform matrix [in, rank]."""
  return math.sqrt(2 * in_features / (in_features + rank))


def left_vectors(matrices: np.ndarray, number: int) -> np.ndarray:
  """The first left singular vectors of matrices.

  Args:
    matrices: float [..., in, out].
    number: number of vectors; min(in, out) at most.

  Returns:
    float64 [..., in, number], orthonormal, the largest entry of each column positive.
  """
  matrices = np.asarray(matrices, np.float64)
  transposed = np.swapaxes(matrices, -1, -2)
  # From the smaller of the two Gram matrices: a few vectors of a long matrix are wanted.
  if matrices.shape[-2] <= matrices.shape[-1]:
    vectors = _largest_eigenvectors(matrices @ transposed, number)
  else:
    right = _largest_eigenvectors(transposed @ matrices, number)
    vectors = np.linalg.qr(matrices @ right).Q
  largest = np.take_along_axis(vectors, np.abs(vectors).argmax(-2)[..., None, :], axis=-2)
  return vectors * np.where(largest < 0, -1, 1)


def _largest_eigenvectors(symmetric: np.ndarray, number: int) -> np.ndarray:
  return np.linalg.eigh(symmetric).eigenvectors[..., ::-1][..., :number]


def other_folds(gradients: np.ndarray) -> np.ndarray:
  """For every fold the mean over the others, [fold, ...]."""
  return (gradients.sum(0) - gradients) / (len(gradients) - 1)


def joint_basis(sketches: np.ndarray, size: int) -> np.ndarray:
  """An orthonormal basis of the directions that all folds need.

  Args:
    sketches: each fold's gradient times random matrices, float [fold, in, sketch].
    size: number of directions of each fold, the first left singular vectors of the others' mean.

  Returns:
    float64 [in, fold * size].
  """
  directions = left_vectors(other_folds(np.asarray(sketches, np.float64)), size)
  return np.linalg.qr(np.concatenate(list(directions), axis=-1)).Q


def vector_values(gradients: np.ndarray, measure: Measure = 'squared') -> np.ndarray:
  """What numbers are worth that are bought together.

  Args:
    gradients: gradient by these numbers, float [fold, number].
    measure: see `allocate`.

  Returns:
    float64 [fold].
  """
  gradients = np.asarray(gradients, np.float64)
  folds = range(len(gradients))
  return np.array([_fold_value(gradients, fold, measure) for fold in folds])


def rank_one_values(
  gradients: np.ndarray, number: int, norm: float, measure: Measure = 'squared'
) -> np.ndarray:
  """What the rank-one parts of a LoRA are worth.

  Args:
    gradients: gradient by the kernel, float [fold, in, out], or along a basis of the inputs.
    number: number of parts.
    norm: length of the down factor's columns.
    measure: see `allocate`.

  Returns:
    float64 [fold, number]; the parts along the first singular vectors of the other folds' mean.
  """
  gradients = np.asarray(gradients, np.float64)
  chosen_by = gradients.mean(0)[None] if measure == 'seen' else other_folds(gradients)
  values = np.zeros((len(chosen_by), number))
  available = min(number, *gradients.shape[1:])
  for fold, matrix in enumerate(chosen_by):
    directions = norm * left_vectors(matrix, available)
    along = np.swapaxes(directions, 0, 1) @ gradients
    values[fold, :available] = _fold_value(along, fold, measure)
  return np.broadcast_to(values, (len(gradients), number))


def _fold_value(gradients: np.ndarray, fold: int, measure: Measure) -> np.ndarray:
  """The value of numbers on one fold; of [fold, ..., number], [...]."""
  if measure == 'seen':
    mean = gradients.mean(0)
    return np.sum(mean * mean, axis=-1)
  others = np.delete(gradients, fold, axis=0)
  return np.sum(_step(others, measure) * gradients[fold], axis=-1)


def _step(gradients: np.ndarray, measure: Measure) -> np.ndarray:
  """The step that some folds [fold, ..., number] would take, [..., number]."""
  mean = gradients.mean(0)
  if measure == 'sign':
    return np.sign(mean)
  if measure == 'preconditioned':
    size = np.sqrt(np.square(gradients).mean(0))
    return mean / np.where(size == 0, 1, size)
  return mean


def layer_values(
  gradients: LayerGradients,
  number: int,
  norm: float,
  measure: Measure = 'squared',
) -> Values:
  """What the units of one row are worth.

  Args:
    gradients: see `LayerGradients`.
    number: number of rank-one parts of A and of B.
    norm: length of the down factors' columns.
    measure: see `allocate`.

  Returns:
    float64 [fold] and [fold, number].
  """
  folds = len(gradients.kernel)
  scaled, bias, prompt = gradients.scaled_kernel, gradients.bias, gradients.prompt
  return Values(
    A_vector=vector_values(gradients.scale, measure),
    A_lora=(
      np.zeros((folds, number))
      if scaled is None
      else rank_one_values(scaled, number, norm, measure)
    ),
    B_lora=rank_one_values(gradients.kernel, number, norm, measure),
    C_vector=np.zeros(folds) if prompt is None else vector_values(prompt, measure),
    E_vector=np.zeros(folds) if bias is None else vector_values(bias, measure),
  )


def squares(gradients: np.ndarray) -> np.ndarray:
  """The part of the squared gradient that folds have in common, and all of it.

  Args:
    gradients: float [fold, ...].

  Returns:
    float64 [2]: inner products of every fold's gradient with the others' mean, and with itself,
    summed over folds. The first over the second falls with the noise of single examples, to 0
    where nothing is common (compare the gradient signal-to-noise ratio, arXiv 2001.07384).
  """
  gradients = np.asarray(gradients, np.float64)
  return np.array([np.sum(other_folds(gradients) * gradients), np.sum(gradients * gradients)])


def stack_rows(rows: list[Values]) -> Values:
  """The values of all rows out of those of each, with the rows' axis after the folds'."""
  return Values(*(np.stack(columns, axis=1) for columns in zip(*rows, strict=True)))


def aligned_factors(
  supports: Mapping[str, np.ndarray], directions: Mapping[str, np.ndarray], norm: float
) -> dict[str, np.ndarray]:
  """Starting values of one layer: down factors on given directions, all else at the base model.

  Args:
    supports: the layer's supports, as `init_supports` returns them.
    directions: orthonormal columns [in, n] for `A_down`, `B_down` or both; columns of these beyond
      the n-th stay as they are, and so does `C_up`, which a LoRA of C alone reads.
    norm: length that the columns get.

  Returns:
    The supports in their shapes and dtypes, every structure of which is the base layer.
  """
  kept = ('A_down', 'B_down', 'C_up')
  aligned = {
    name: np.array(value) if name in kept else np.zeros_like(value)
    for name, value in supports.items()
  }
  for name, columns in directions.items():
    number = min(columns.shape[-1], aligned[name].shape[-1])
    aligned[name][:, :number] = norm * columns[:, :number]
  return aligned
