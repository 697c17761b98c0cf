"""Tables of the adapted matrices in a model, and why others are not adapted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Container, Sequence

import numpy as np

from glora_jax.method.genomes import largest_genome
from glora_jax.method.space import TENSORS, Spec
from glora_jax.method.trace.events import CHOSEN, ORDINARY

log = logging.getLogger(__name__)

_MOST_NAMED = 3  # matrices that the log names


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A parameter with two or more axes, without those that count layers.

  Attributes:
    name: its path, joined by '/'.
    shape: its shape.
    share: its fraction of the model's parameters.
    reason: why it is not adapted, in a few words; '' if it is.
  """

  name: str
  shape: tuple[int, ...]
  share: float
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class Coverage:
  """The matrices of a model; see `Adapted.coverage`.

  Attributes:
    covered: the adapted ones, in the order of their rows.
    uncovered: the others, each with its reason.
  """

  covered: tuple[Matrix, ...]
  uncovered: tuple[Matrix, ...]

  @property
  def share(self) -> float:
    """The fraction of the model's parameters that is in covered matrices."""
    return sum(matrix.share for matrix in self.covered)

  def __str__(self) -> str:
    if not self.uncovered:
      return 'all weight matrices are adapted'
    rows = [
      (f'  {matrix.name}', 'x'.join(map(str, matrix.shape)), f'{matrix.share:.1%}', matrix.reason)
      for matrix in self.uncovered
    ]
    return '\n'.join([f'{_count(self, self.uncovered)}:', *align(rows, right=(2,))])


def _count(coverage: Coverage, uncovered: Sequence[Matrix]) -> str:
  """How many matrices are not adapted, in words."""
  number = len(coverage.covered) + len(coverage.uncovered)
  are, share = 'is' if len(uncovered) == 1 else 'are', sum(matrix.share for matrix in uncovered)
  return (
    f'{len(uncovered)} of {number} weight matrices {are} not adapted ({share:.1%} of parameters)'
  )


def log_uncovered(coverage: Coverage) -> None:
  """Logs in one line which matrices are not adapted, except those that the user has left out.

  It is a warning if one of them might be a linear layer that was not recognized.
  """
  others = [matrix for matrix in coverage.uncovered if matrix.reason not in CHOSEN]
  if not others:
    return
  others.sort(key=lambda matrix: (matrix.reason.startswith(ORDINARY), -matrix.share))
  named = [f'{matrix.name} ({matrix.reason})' for matrix in others[:_MOST_NAMED]]
  more = ['... (adapted.coverage() lists all)'] if len(others) > _MOST_NAMED else []
  level = logging.INFO if others[0].reason.startswith(ORDINARY) else logging.WARNING
  log.log(level, '%s: %s', _count(coverage, others), ', '.join(named + more))


def layer_table(spec: Spec, genome: np.ndarray | None = None) -> list[str]:
  """The lines of a table of layers: sizes, forms, trained and total parameters.

  Args:
    spec: the layers.
    genome: structure to show, int [rows, 5]; None shows all forms to choose from, and counts
      parameters of the largest structure.
  """
  rows: list[Sequence[str]] = [('layer', 'in', 'out', *TENSORS, 'trained', 'total')]
  counted = largest_genome(spec) if genome is None else genome
  for layer, codes in zip(spec, counted.tolist(), strict=True):
    pairs = list(zip(TENSORS, codes, strict=True))
    shown = [layer.choices(tensor) if genome is None else (code,) for tensor, code in pairs]
    forms = (
      ' '.join(layer.names(tensor)[code] for code in codes)
      for tensor, codes in zip(TENSORS, shown, strict=True)
    )
    trained = sum(layer.costs(tensor)[code] for tensor, code in pairs)
    total = (layer.in_features + layer.bias) * layer.out_features
    sides = f'{layer.in_features:,}', f'{layer.out_features:,}'
    rows.append((layer.name, *sides, *forms, f'{trained:,}', f'{total:,}'))
  return align(rows, right=(1, 2, 8, 9))


def align(rows: Sequence[Sequence[str]], right: Container[int]) -> list[str]:
  """Lines with aligned columns.

  Args:
    rows: cells, with those of the header first.
    right: the columns that are aligned to the right.
  """
  columns = []
  for number, cells in enumerate(zip(*rows, strict=True)):
    width = max(map(len, cells))
    side = str.rjust if number in right else str.ljust
    columns.append([side(cell, width) for cell in cells])
  return ['  '.join(cells).rstrip() for cells in zip(*columns, strict=True)]
