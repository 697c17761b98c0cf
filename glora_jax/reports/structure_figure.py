"""A structure as a page shows it: block by block, what every layer got, to scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glora_jax.method.space import TENSORS, Spec
from glora_jax.reports.curves import MEANINGS, structure
from glora_jax.reports.markdown import Table, plain

_STACKED = re.compile(r'(?P<kind>.*)\[(?P<block>\d+)\]')


class Piece(NamedTuple):
  """A support tensor of a layer.

  Attributes:
    meaning: its letter and what it does, 'B, shift W'.
    form: 'none', 'constant', 'vector' or 'lora'.
    rank: of a LoRA, '4'; '' of other forms.
    params: trained parameters.
    start: where it begins in the layer's bar, in percent of the largest layer.
    share: its length there.
  """

  meaning: str
  form: str
  rank: str
  params: int
  start: float
  share: float


class Layer(NamedTuple):
  """A layer of the figure.

  Attributes:
    name: its name.
    params: trained parameters.
    pieces: its support tensors, A to E.
  """

  name: str
  params: int
  pieces: Sequence[Piece]


class StructureFigure(NamedTuple):
  """A structure.

  Attributes:
    title: what it is the structure of.
    params: trained parameters.
    kinds: the heading of every column: a kind of layer.
    blocks: (name of the row, a layer or None for every kind).
    table: the form of every tensor and the parameters of every layer.
  """

  title: str
  params: int
  kinds: Sequence[str]
  blocks: Sequence[tuple[str, Sequence[Layer | None]]]
  table: Table


def structure_figure(title: str, spec: Spec, genome: np.ndarray | Sequence) -> StructureFigure:
  """What a page shows of a structure.

  Args:
    title: what it is the structure of.
    spec: the layers; slices of one stacked layer, 'blocks/mlp/fc1[2]', are one column.
    genome: int [layer, 5].
  """
  layers = _layers(spec, np.asarray(genome))
  kinds: list[str] = []
  blocks: dict[str, dict[str, Layer]] = {}
  for layer in layers:
    match = _STACKED.fullmatch(layer.name)
    kind, block = (match['kind'], match['block']) if match else ('', layer.name)
    if kind not in kinds:
      kinds.append(kind)
    blocks.setdefault(block, {})[kind] = layer
  rows = [(block, [row.get(kind) for kind in kinds]) for block, row in blocks.items()]
  headings = [kind.rpartition('/')[2] for kind in kinds]
  return StructureFigure(
    title,
    sum(layer.params for layer in layers),
    headings if len(set(headings)) == len(kinds) else kinds,
    rows,
    _table(layers),
  )


def _layers(spec: Spec, genome: np.ndarray) -> list[Layer]:
  chosen = structure(spec, genome)
  largest = max((sum(tensor.params for tensor in row) for row in chosen), default=0) or 1
  layers = []
  for layer, row in zip(spec, chosen, strict=True):
    shares = [100 * tensor.params / largest for tensor in row]
    starts = np.cumsum([0.0, *shares])
    pieces = [
      Piece(
        f'{letter}, {meaning}',
        tensor.form.partition(':')[0],
        tensor.rank,
        tensor.params,
        round(float(start), 2),
        round(share, 2),
      )
      for letter, meaning, tensor, start, share in zip(
        TENSORS, MEANINGS, row, starts, shares, strict=False
      )
    ]
    layers.append(Layer(layer.name, sum(tensor.params for tensor in row), pieces))
  return layers


def _table(layers: Sequence[Layer]) -> Table:
  rows = [
    (plain(layer.name), *(_form(piece) for piece in layer.pieces), f'{layer.params:,}')
    for layer in layers
  ]
  return Table(('layer', *TENSORS, 'parameters'), rows, text_columns=1 + len(TENSORS))


def _form(piece: Piece) -> str:
  """'vector, 64' for instance: the form, the rank of a LoRA, the parameters."""
  if piece.form == 'none':
    return ''
  form = f'LoRA of rank {piece.rank}' if piece.rank else piece.form
  return f'{form}, {piece.params:,}'
