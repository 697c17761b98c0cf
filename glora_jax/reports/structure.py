"""A structure as a page shows it: block by block to scale, and what it was read off."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from glora_jax.method.genomes import genome_to_json
from glora_jax.method.space import TENSORS, Spec
from glora_jax.reports.markdown import Table, paragraph, plain
from glora_jax.search.allocated import Allocation, Unit, agreement

MEANINGS = ('scale W', 'shift W', 'prompt', 'scale b', 'shift b')  # of the tensors A to E
FORMS = {
  'A.vector': 'A vector',
  'A.lora': 'A LoRA',
  'B.lora': 'B LoRA',
  'C.vector': 'C vector',
  'E.vector': 'E vector',
}
VALUES_EXPLAINED = """\
Value in percent of all that is on offer; what was bought is bold, a LoRA's rank in brackets."""
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
  cells = [(plain(layer.name), *map(_form, layer.pieces), f'{layer.params:,}') for layer in layers]
  return StructureFigure(
    title,
    sum(layer.params for layer in layers),
    headings if len(set(headings)) == len(kinds) else kinds,
    rows,
    Table(('layer', *TENSORS, 'parameters'), cells, text_columns=1 + len(TENSORS)),
  )


def _layers(spec: Spec, genome: np.ndarray) -> list[Layer]:
  costs = spec.cost_table[np.arange(len(spec))[:, None], np.arange(5), genome]  # [layer, 5]
  shares = 100 * costs / (costs.sum(axis=1).max(initial=0) or 1)
  starts = shares.cumsum(axis=1) - shares
  layers = []
  for at, forms in enumerate(genome_to_json(spec, genome)['layers']):
    pieces = []
    for number, (letter, meaning) in enumerate(zip(TENSORS, MEANINGS, strict=True)):
      form, _, rank = forms[letter].partition(':')
      share, start = (round(float(part[at, number]), 2) for part in (shares, starts))
      cost = int(costs[at, number])
      pieces.append(Piece(f'{letter}, {meaning}', form, rank, cost, start, share))
    layers.append(Layer(spec.layers[at].name, int(costs[at].sum()), pieces))
  return layers


def _form(piece: Piece) -> str:
  """'vector, 64' for instance: the form, the rank of a LoRA, the parameters."""
  if piece.form == 'none':
    return ''
  form = f'LoRA of rank {piece.rank}' if piece.rank else piece.form
  return f'{form}, {piece.params:,}'


def tell_choice(allocation: Allocation, result: Mapping[str, Any]) -> str:
  """Where the structure comes from, within which budget, and which images had no part in it."""
  head = result['allocation']['head_epochs']
  epochs = '1 epoch' if head == 1 else f'{head} epochs'
  proposed = """
    No budget was given; the one proposed is the knee of the curve of value by budget, from where on
    more parameters pay less than they do on average.
  """
  unjudged = f"""
    {allocation.unjudged:,} of the parameters are worth nothing held out, where the folds agree too
    little; the mean gradient of all folds has chosen them.
  """
  borrowed = f"""
    The folds have little in common, so that {100 * allocation.borrowed:.0f}% of the values are
    those of another gradient, of telling which way the same images were shifted.
  """
  return paragraph(
    f"""
    The structure of {allocation.count_params():,} parameters was read off one gradient of the
    pretrained model, with a head that was trained alone for {epochs} before. Every unit (a
    vector, or one rank-one part of a LoRA) was valued on folds of the training images that did not
    choose its direction, and the best by value per parameter were bought, up to
    {allocation.budget:,} parameters.
    """,
    proposed if allocation.proposed else '',
    borrowed if allocation.borrowed else '',
    unjudged if allocation.unjudged else '',
    # Those of the paper's protocol are among the training images.
    'No validation image was used.' if result['protocol'] == 'honest' else '',
    '`structure/` has the numbers.',
  )


def values_table(units: Sequence[Unit]) -> Table:
  """Value by layer and form, for the forms that are on offer in a layer at least.

  Args:
    units: what could be bought.
  """
  total = sum(max(unit.value, 0.0) for unit in units) or 1.0
  cells: dict[tuple[str, str], list[Unit]] = {}
  for unit in units:
    cells.setdefault((unit.layer, unit.form), []).append(unit)
  forms = [form for form in FORMS if any(unit.form == form for unit in units)]
  rows = [
    (plain(layer), *(_value(cells.get((layer, form), []), total) for form in forms))
    for layer in dict.fromkeys(unit.layer for unit in units)
  ]
  return Table(('layer', *(FORMS[form] for form in forms)), rows)


def _value(units: Sequence[Unit], total: float) -> str:
  """The value of a form in a layer in percent of the total, bold where it was bought."""
  if not units:
    return ''
  percent = round(100 * sum(unit.value for unit in units) / total, 1)
  share = f'{percent + 0.0:.1f}'  # no '-0.0'
  bought = sum(unit.bought for unit in units)
  if not bought:
    return share
  return f'**{share}** ({bought})' if units[0].part else f'**{share}**'


def tell_cost(result: Mapping[str, Any]) -> str:
  """What the structure cost beside the training, in seconds and in epochs."""
  seconds = sum(result['seconds'].get(stage, 0.0) for stage in ('head', 'structure'))
  return paragraph(f"""
    Head and gradient took {seconds:.0f} seconds, compilation included. They count as
    {result['allocation']['epochs']} epochs, by which the training is shorter than its recipe says.
  """)


def tell_agreement(genomes: Sequence[np.ndarray]) -> str:
  """How much structures agree, in a sentence, and in another one what little agreement means.

  Args:
    genomes: at least two, each int [rows, 5].

  Example:
    >>> lora = np.zeros((3, 5), np.int8)
    >>> lora[0, 1] = 3
    >>> tell_agreement([lora, lora]).partition(' (')[0]
    'Of the tensors that one of 2 seeds trains, another trains 100% in the same form'
  """
  found = agreement(genomes)
  share, chance = (round(100 * value) for value in found)
  warning = 'That is little: do not read much into where one of them puts its parameters.'
  return paragraph(
    f"""
    Of the tensors that one of {len(genomes)} seeds trains, another trains {share}% in the same form
    (shifted to other layers: {chance}%).
    """,
    warning if found.is_little else '',
  )
