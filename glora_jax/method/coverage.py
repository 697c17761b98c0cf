"""What of a model is adapted, as tables: its layers, and why other matrices are not."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glora_jax.method.genomes import largest_genome
from glora_jax.method.groups import Group
from glora_jax.method.site import Site
from glora_jax.method.space import TENSORS, Layer, Spec
from glora_jax.method.trace.events import CHOSEN, HEAD, NO_MODULE, NO_SAMPLE, NOT_SELECTED, ORDINARY
from glora_jax.method.trace.find import Found, Uncovered
from glora_jax.tree import Path, path_name

log = logging.getLogger(__name__)

_MOST_NAMED = 3  # matrices that the log names


@dataclasses.dataclass(frozen=True)
class Matrix:
  """A parameter with two or more axes, stacks of layers not counted.

  Attributes:
    name: its path, joined by '/'.
    shape: its shape.
    share: its part of the model's parameters.
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
    covered: those that are adapted, in the order of their rows.
    uncovered: those that are not, each with its reason.
  """

  covered: tuple[Matrix, ...]
  uncovered: tuple[Matrix, ...]

  @property
  def share(self) -> float:
    """The part of the model's parameters that lies in covered matrices."""
    return sum(matrix.share for matrix in self.covered)

  @property
  def uncovered_share(self) -> float:
    """The part that lies in matrices that are not."""
    return sum(matrix.share for matrix in self.uncovered)

  def __str__(self) -> str:
    return '\n'.join(self.lines()) or 'all weight matrices are adapted'

  def lines(self) -> list[str]:
    """A table of the matrices that are not adapted; no line if there are none."""
    if not self.uncovered:
      return []
    return [f'{self.count(self.uncovered)}:', *align([*map(_line, self.uncovered)], ('share',))]

  def count(self, uncovered: Sequence[Matrix]) -> str:
    """How many matrices are not adapted, in words.

    Args:
      uncovered: all of them, or those that are to be counted.
    """
    number = len(self.covered) + len(self.uncovered)
    are, share = 'is' if len(uncovered) == 1 else 'are', sum(matrix.share for matrix in uncovered)
    return (
      f'{len(uncovered)} of {number} weight matrices {are} not adapted '
      f'({_percent(share)} of parameters)'
    )


class _Line(NamedTuple):
  """A matrix, as text."""

  name: str
  shape: str
  share: str
  reason: str


def _line(matrix: Matrix) -> _Line:
  sizes = 'x'.join(map(str, matrix.shape))
  return _Line(f'  {matrix.name}', sizes, _percent(matrix.share), matrix.reason)


def _percent(share: float) -> str:
  return f'{100 * share:.1f}%'


def coverage(
  groups: Sequence[Group], uncovered: Sequence[Uncovered], shapes: Mapping[Path, Any]
) -> Coverage:
  """The matrices of a model with their shares.

  Args:
    groups: the adapted layers.
    uncovered: the matrices that are in none.
    shapes: all parameters, by path.
  """
  total = sum(shape.size for shape in shapes.values())
  sites = [site for group in groups for site in group.members]
  covered = [_matrix(site.kernel_path, site.kernel_shape, '', total) for site in sites]
  others = [_matrix(*matrix, total) for matrix in uncovered]
  return Coverage(tuple(covered), tuple(others))


def _matrix(path: Path, shape: tuple[int, ...], reason: str, total: int) -> Matrix:
  return Matrix(path_name(path), shape, math.prod(shape) / total, reason)


class Choice(NamedTuple):
  """What was chosen of a model's parameters.

  Attributes:
    sites: all linear layers that were found.
    groups: those that are adapted.
    refused: paths of kernels that cannot be adapted and were left out.
    heads: paths of the parameters that are trained in full.
    shapes: all parameters, by path.
  """

  sites: Sequence[Site]
  groups: Sequence[Group]
  refused: frozenset[Path]
  heads: frozenset[Path]
  shapes: Mapping[Path, Any]


def find_uncovered(choice: Choice, found: Found | None) -> tuple[Uncovered, ...]:
  """The matrices that are not adapted, in the order of the parameters.

  Args:
    choice: what was chosen.
    found: what the trace of the model says; None if there was none.
  """
  covered = {site.kernel_path for group in choice.groups for site in group.members}
  left_out = [*(site.kernel_path for site in choice.sites), *choice.refused]
  own = dict.fromkeys(left_out, NOT_SELECTED)
  reasons = {**dict(_other_reasons(choice, found)), **own}
  return tuple(
    Uncovered(path, shape.shape, HEAD if path in choice.heads else reasons[path])
    for path, shape in choice.shapes.items()
    if path in reasons and path not in covered
  )


def _other_reasons(choice: Choice, found: Found | None) -> Iterator[tuple[Path, str]]:
  """Reasons of matrices that are in no site, by path."""
  if found is None:
    biases = {site.bias_path for site in choice.sites}
    for path, shape in choice.shapes.items():
      if len(shape.shape) > 1 and path not in biases:
        yield path, NO_SAMPLE
    return
  for site in found.sites:
    yield site.kernel_path, NO_MODULE
  for matrix in found.uncovered:
    yield matrix.path, matrix.reason


def log_uncovered(whole: Coverage) -> None:
  """Says in one line which matrices of a model are not adapted, but for what a user left out.

  It is a warning where a matrix is used in a way that might be a linear layer's.
  """
  others = [matrix for matrix in whole.uncovered if matrix.reason not in CHOSEN]
  if not others:
    return
  others.sort(key=_by_concern)
  is_usual = _is_ordinary(others[0])
  named = [f'{matrix.name} ({matrix.reason})' for matrix in others[:_MOST_NAMED]]
  more = ['... (adapted.coverage() lists all)'] if len(others) > _MOST_NAMED else []
  level = logging.INFO if is_usual else logging.WARNING
  log.log(level, '%s: %s', whole.count(others), ', '.join(named + more))


def _by_concern(matrix: Matrix) -> tuple[bool, float]:
  return _is_ordinary(matrix), -matrix.share


def _is_ordinary(matrix: Matrix) -> bool:
  return matrix.reason.startswith(ORDINARY)


class LayerRow(NamedTuple):
  """One line of the table, as text."""

  layer: str
  inputs: str
  outputs: str
  A: str
  B: str
  C: str
  D: str
  E: str
  trained: str
  total: str


HEADER = LayerRow('layer', 'in', 'out', 'A', 'B', 'C', 'D', 'E', 'trained', 'total')
NUMBERS = ('inputs', 'outputs', 'trained', 'total')


def layer_table(spec: Spec, genome: np.ndarray | None = None) -> list[str]:
  """The lines of a table of layers: sizes, alleles, trained and total parameters.

  Args:
    spec: the layers.
    genome: whose alleles to show, int [rows, 5]; None shows all on offer, and counts those of the
      largest subnet.
  """
  rows = [HEADER]
  counted = largest_genome(spec) if genome is None else genome
  for layer, codes in zip(spec, counted.tolist(), strict=True):
    if genome is None:
      alleles = [layer.offered(tensor) for tensor in TENSORS]
    else:
      alleles = [(code,) for code in codes]
    rows.append(_layer_row(layer, alleles, codes))
  return align(rows, NUMBERS)


def _layer_row(layer: Layer, alleles: Sequence[Sequence[int]], counted: Sequence[int]) -> LayerRow:
  """A layer with some alleles of each tensor, and the one of each that is counted."""
  names = [
    ' '.join(layer.space.names(tensor)[code] for code in codes)
    for tensor, codes in zip(TENSORS, alleles, strict=True)
  ]
  trained = sum(layer.costs(tensor)[code] for tensor, code in zip(TENSORS, counted, strict=True))
  total = (layer.in_features + layer.bias) * layer.out_features
  return LayerRow(
    layer.name,
    f'{layer.in_features:,}',
    f'{layer.out_features:,}',
    *names,
    trained=f'{trained:,}',
    total=f'{total:,}',
  )


def align(rows: Sequence[NamedTuple], numbers: Sequence[str]) -> list[str]:
  """Lines with aligned columns.

  Args:
    rows: cells, all text, with those of the header first.
    numbers: the fields that are aligned to the right.
  """
  columns = []
  for field, cells in zip(rows[0]._fields, zip(*rows, strict=True), strict=True):
    width = max(map(len, cells))
    side = str.rjust if field in numbers else str.ljust
    columns.append([side(cell, width) for cell in cells])
  return ['  '.join(cells).rstrip() for cells in zip(*columns, strict=True)]
