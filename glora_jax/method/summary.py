"""Tables as text; the one of an adapted model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glora_jax.method.genomes import largest_genome
from glora_jax.method.space import TENSORS, Layer, Spec


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
