"""A structure as a page shows it: block by block to scale, and what it was read off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from glora_jax.method.genomes import genome_to_json
from glora_jax.method.space import TENSORS, Spec
from glora_jax.reports.charts import Axis, Chart, Line, Mark, Rule, axis, steps, thinned
from glora_jax.reports.page import Details, Section
from glora_jax.reports.tables import Table, code, grouped, paragraph, sentence_case
from glora_jax.search.allocated import Allocation, Unit, agreement

MEANINGS = ('scale W', 'shift W', 'prompt', 'scale b', 'shift b')  # of the tensors A to E
FORMS = {
  'A.vector': 'A vector',
  'A.lora': 'A LoRA',
  'B.lora': 'B LoRA',
  'C.vector': 'C vector',
  'E.vector': 'E vector',
}
DRAWN = {'none': 'none', 'constant': 'constant', 'vector': 'vector', 'lora': 'LoRA, its rank'}
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


class Figure(NamedTuple):
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


class Structures(NamedTuple):
  """Structures with one legend."""

  figures: Sequence[Figure]

  def forms(self) -> list[tuple[str, str]]:
    """(form, what the legend says) of the forms that are drawn."""
    layers = (each for figure in self.figures for _, row in figure.blocks for each in row if each)
    drawn = {piece.form for each in layers for piece in each.pieces}
    return [(form, label) for form, label in DRAWN.items() if form in drawn]


def figure(title: str, spec: Spec, genome: np.ndarray | Sequence) -> Figure:
  """What a page shows of a structure.

  Args:
    title: what it is the structure of.
    spec: the layers; slices of one stacked layer, 'blocks/mlp/fc1[2]', are one column.
    genome: int [layer, 5].
  """
  genome = np.asarray(genome)
  costs = spec.cost_table[np.arange(len(spec))[:, None], np.arange(5), genome]  # [layer, 5]
  shares = 100 * costs / (costs.sum(axis=1).max(initial=0) or 1)
  starts = shares.cumsum(axis=1) - shares
  blocks: dict[str, dict[str, Layer]] = {}
  rows = []
  for at, forms in enumerate(genome_to_json(spec, genome)['layers']):
    pieces = [
      Piece(
        f'{letter}, {MEANINGS[number]}',
        forms[letter].partition(':')[0],
        forms[letter].partition(':')[2],
        int(costs[at, number]),
        round(float(starts[at, number]), 2),
        round(float(shares[at, number]), 2),
      )
      for number, letter in enumerate(TENSORS)
    ]
    name, params = spec.layers[at].name, int(costs[at].sum())
    match = _STACKED.fullmatch(name)
    kind, block = (match['kind'], match['block']) if match else ('', name)
    blocks.setdefault(block, {})[kind] = Layer(name, params, pieces)
    rows.append((name, *map(_form, pieces), f'{params:,}'))
  kinds = list(dict.fromkeys(kind for row in blocks.values() for kind in row))
  headings = [kind.rpartition('/')[2] for kind in kinds]
  columns = ('layer', *TENSORS, 'parameters')
  return Figure(
    title,
    int(costs.sum()),
    headings if len(set(headings)) == len(kinds) else kinds,
    [(block, [row.get(kind) for kind in kinds]) for block, row in blocks.items()],
    Table(f'{title}, in numbers', columns, rows, text_columns=1 + len(TENSORS)),
  )


def _form(piece: Piece) -> str:
  """'vector, 64' for instance: the form, the rank of a LoRA, the parameters."""
  if piece.form == 'none':
    return ''
  form = f'LoRA of rank {piece.rank}' if piece.rank else piece.form
  return f'{form}, {piece.params:,}'


def section(allocation: Allocation, result: Mapping[str, Any]) -> Section:
  """What a page says of a structure that was bought by values.

  Args:
    allocation: the structure.
    result: content of the run's `result.json`.
  """
  blocks = [
    tell_choice(allocation, result),
    value_chart(allocation),
    Details(values_table(list(allocation.units()))),
  ]
  whose = 'gradient' if result['allocation']['epochs'] else 'backbone'
  return Section('allocation', f"The {whose}'s structure", blocks)


def tell_choice(allocation: Allocation, result: Mapping[str, Any]) -> str:
  """How a structure was chosen, within which budget, and what that took."""
  cost = result['allocation']
  numbers = Markup('Numbers: {}.').format(code('structure/'))
  if not cost['epochs']:
    return paragraph(
      f"""
      The structure of {allocation.count_params():,} parameters is what pays best within
      {allocation.budget:,} by what each unit of this backbone (a vector, or one rank of a LoRA) was
      worth on other tasks. No gradient was taken.
      """,
      numbers,
    )
  head = f'{cost["head_epochs"]} epoch' + 's' * (cost['head_epochs'] != 1)
  return paragraph(
    f"""
    The structure of {allocation.count_params():,} parameters was read off one gradient of the
    pretrained model, after {head} of training the head alone, in one pass over the training
    images. Each unit (a vector, or one rank of a LoRA) is worth the squared gradient along it, and
    the best by value per parameter were bought, up to {allocation.budget:,} parameters.
    """,
    allocation.proposed
    and """
    That budget is the knee of the curve below, where more parameters begin to pay less than
    average.
    """,
    allocation.borrowed
    and f"""
    The gradients of its batches have little in common, so {100 * allocation.borrowed:.0f}% of the
    values come from another gradient: that of telling which way the same images were shifted.
    """,
    # Those of the paper's protocol are among the training images.
    result['protocol'] == 'honest' and 'No validation image was used.',
    f'Head and gradient count as {cost["epochs"]} epochs, by which its training is shorter.',
    numbers,
  )


def value_chart(allocation: Allocation) -> Chart:
  """What the units of a structure are worth by budget, the best bought first."""
  params, values, knee = allocation.curve
  percent = 100 / max(float(values[-1]), float(np.finfo(np.float32).tiny)) * values
  best = f'knee: {params[knee]:,} parameters, {percent[knee]:.0f}%'
  return Chart(
    'Value by budget',
    axis('trained parameters', [0, params[-1], allocation.budget]),
    Axis('value, % of all on offer', [0, 25, 50, 75, 100]),
    [Line('', 'teal', steps(thinned(params, percent)))],
    [Mark((params[knee], percent[knee]), best, 'dim')],
    [Rule(allocation.budget, f'budget, {allocation.budget:,}', 'red')],
    [('knee', 'dim', 'dot')],
  )


def values_table(units: Sequence[Unit]) -> Table:
  """Value by layer and form, for the forms that are on offer in a layer at least.

  Args:
    units: what could be bought.
  """
  total = sum(unit.value for unit in units) or 1.0
  forms = [form for form in FORMS if any(unit.form == form for unit in units)]
  rows = [
    (layer, *(_value([unit for unit in same if unit.form == form], total) for form in forms))
    for layer, same in grouped(units, lambda unit: unit.layer).items()
  ]
  caption = 'Value by layer and form, in percent; bought ones are bold, with the rank of a LoRA'
  return Table(caption, ('layer', *(FORMS[form] for form in forms)), rows)


def _value(units: Sequence[Unit], total: float) -> str:
  """The value of a form in a layer in percent of the total, bold where it was bought."""
  if not units:
    return ''
  share = f'{100 * sum(unit.value for unit in units) / total:.1f}'
  if not (bought := sum(unit.bought for unit in units)):
    return share
  rank = f' ({bought})' if units[0].part else ''
  return Markup('<strong>{}</strong>{}').format(share, rank)


def agreements(genomes: Iterable[tuple[str, Sequence]]) -> list[str]:
  """How much structures agree, in sentences for each name that several have.

  Args:
    genomes: (what it is a structure of, int [rows, 5]).

  Example:
    >>> lora = np.zeros((3, 5), np.int8)
    >>> lora[0, 1] = 3
    >>> agreements([('gradient', lora), ('gradient', lora), ('other', lora)])[0].partition(' (')[0]
    'Gradient: of the tensors that one of 2 seeds trains, another trains 100% in the same form'
  """
  sentences = []
  for name, same in grouped(genomes, lambda each: each[0]).items():
    if len(same) > 1:
      found = agreement([np.array(genome) for _, genome in same])
      share, chance = (round(100 * value) for value in found)
      little = ' That is little: do not read much into where one of them puts its parameters.'
      sentences.append(
        f'{sentence_case(name)}: of the tensors that one of {len(same)} seeds trains, another '
        f'trains {share}% in the same form (shifted to other layers: {chance}%).'
        f'{little if found.is_little else ""}'
      )
  return sentences
