"""A structure on a page: block by block to scale, and how it was allocated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from glora_jax.method.genomes import genome_to_json, lookup
from glora_jax.method.space import FLAT_FORMS, TENSORS, Spec
from glora_jax.search.allocation import Allocation, Unit
from glora_jax.vision.reports.charts import Axis, Chart, Line, Mark, Rule, axis, steps, thin
from glora_jax.vision.reports.page import Blocks, Result, Table, group_by, paragraph, sentence_case

MEANINGS = ('scale W', 'shift W', 'prompt', 'scale b', 'shift b')  # of the tensors A to E
FORMS = {
  'A.vector': 'A vector',
  'A.lora': 'A LoRA',
  'B.lora': 'B LoRA',
  'C.vector': 'C vector',
  'E.vector': 'E vector',
}
DRAWN = {'none': 'none', 'constant': 'constant', 'vector': 'vector', 'lora': 'LoRA, its rank'}
_LITTLE = 0.5  # of the way from chance to one and the same structure
# Codes from the first LoRA on are one form: ranks differ by degrees.
_FIRST_LORA = np.array([len(FLAT_FORMS[tensor]) for tensor in TENSORS])


class Piece(NamedTuple):
  """A tensor of a layer's adapter.

  Attributes:
    meaning: its letter and its effect, 'B, shift W'.
    form: 'none', 'constant', 'vector' or 'lora'.
    rank: of a LoRA, '4'; '' for other forms.
    text: the form in words, and its trained parameters.
    start: where it begins in the layer's bar, in percent of the largest layer.
    share: its length there.
  """

  meaning: str
  form: str
  rank: str
  text: str
  start: float
  share: float


class Layer(NamedTuple):
  """A layer of the figure.

  Attributes:
    name: its name.
    params: trained parameters.
    pieces: the tensors of its adapter, A to E.
  """

  name: str
  params: int
  pieces: Sequence[Piece]


class Figure(NamedTuple):
  """A structure.

  Attributes:
    title: name of the structure.
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
  """Structures with one legend, (form, its name)."""

  figures: Sequence[Figure]
  legend: Sequence[tuple[str, str]] = tuple(DRAWN.items())


def describe(spec: Spec, genome: np.ndarray | Sequence) -> list[dict[str, Any]]:
  """The form of every tensor and its trained parameters, layer by layer, as in `result.json`.

  Args:
    spec: the layers.
    genome: int [layer, 5].

  Example:
    >>> from glora_jax import Layer, Spec, preset
    >>> spec = Spec((Layer('fc1', 8, 32),))
    >>> [layer] = describe(spec, preset(spec, 'lora'))
    >>> layer['layer'], layer['B'], layer['params']
    ('fc1', 'lora:4', [0, 160, 0, 0, 0])
  """
  costs, layers = lookup(spec.cost_table, genome), genome_to_json(spec, genome)['layers']
  return [{**layer, 'params': own.tolist()} for layer, own in zip(layers, costs, strict=True)]


def figure(title: str, layers: Sequence[Mapping[str, Any]]) -> Figure:
  """The figure of a structure.

  Args:
    title: name of the structure.
    layers: what `describe` returns; slices of one stacked layer, 'blocks/mlp/fc1[2]', are one
      column, and so are layers of several blocks, 'blocks/2/mlp/fc1'.
  """
  longest = max((sum(layer['params']) for layer in layers), default=0) or 1
  drawn = [_draw(layer, longest) for layer in layers]
  blocks: dict[tuple[str, str], dict[str, Layer]] = {}  # by path and label
  for layer in drawn:
    if apart := re.fullmatch(r'(.*/\d+)/(.*)', layer.name):
      path, kind = apart.groups()
      block = path, '.'.join(re.findall(r'\d+', path))
    else:
      kind, _, label = layer.name.removesuffix(']').rpartition('[')
      block = label, label
    blocks.setdefault(block, {})[kind] = layer
  kinds = list(dict.fromkeys(kind for row in blocks.values() for kind in row))
  headings = [kind.rpartition('/')[2] for kind in kinds]
  rows = [
    (
      layer.name,
      *('' if each.form == 'none' else each.text for each in layer.pieces),
      f'{layer.params:,}',
    )
    for layer in drawn
  ]
  return Figure(
    title,
    sum(layer.params for layer in drawn),
    headings if len(set(headings)) == len(kinds) else kinds,
    [(label, [row.get(kind) for kind in kinds]) for (_, label), row in blocks.items()],
    Table(
      f'{title}, in numbers',
      ('layer', *TENSORS, 'parameters'),
      rows,
      text_columns=1 + len(TENSORS),
      is_folded=True,
    ),
  )


def _draw(layer: Mapping[str, Any], longest: int) -> Layer:
  """A layer of the figure; `longest` parameters fill its bar."""
  pieces, begin = [], 0
  for letter, meaning, params in zip(TENSORS, MEANINGS, layer['params'], strict=True):
    form, _, rank = layer[letter].partition(':')
    text = f'{f"LoRA of rank {rank}" if rank else form}, {params:,}'
    start, share = round(100 * begin / longest, 2), round(100 * params / longest, 2)
    pieces.append(Piece(f'{letter}, {meaning}', form, rank, text, start, share))
    begin += params
  return Layer(layer['layer'], begin, pieces)


def blocks_of(allocation: Allocation | None, result: Result) -> Blocks:
  """How a structure was allocated; empty if none was.

  Args:
    allocation: the allocation.
    result: content of the run's `result.json`.
  """
  if allocation is None:
    return []
  return [
    tell_choice(allocation, result),
    score_chart(allocation),
    scores_table(list(allocation.units())),
  ]


def tell_choice(allocation: Allocation, result: Result) -> str:
  """How a structure was allocated, within which budget, and at what cost."""
  cost = result['allocation']
  numbers = Markup('Numbers: <code>structure/</code>.')
  if not cost['epochs']:
    return paragraph(
      f"""
      The structure of {allocation.count_params():,} parameters has the highest score within a
      budget of {allocation.budget:,}. The score of a unit (a vector, or one rank of a LoRA) is its
      mean score on other tasks of this backbone. No gradient was computed.
      """,
      numbers,
    )
  number = cost['head_epochs']
  head = f'{number} epoch' if number == 1 else f'{number} epochs'
  return paragraph(
    f"""
    The structure of {allocation.count_params():,} parameters was allocated from one gradient of the
    pretrained model. It was computed in one pass over the training images, after {head} of a linear
    probe. The score of a unit (a vector, or one rank of a LoRA) is the squared gradient along it,
    and the units with the highest score per parameter were chosen, up to {allocation.budget:,}
    parameters.
    """,
    allocation.proposed
    and """
    That budget is the knee of the curve below, where more parameters begin to add less score than
    average.
    """,
    allocation.borrowed
    and f"""
    The gradients of different batches have little in common, so a prior has a weight of
    {100 * allocation.borrowed:.0f}% in the scores.
    """,
    # Those of the paper's protocol are among the training images.
    result['protocol'] == 'honest' and 'No validation image was used.',
    f'Its training is {cost["epochs"]} epochs shorter, the cost of linear probe and gradient.',
    numbers,
  )


def score_chart(allocation: Allocation) -> Chart:
  """The score of the units by budget, the best bought first."""
  params, scores, knee = allocation.curve
  percent = 100 / max(float(scores[-1]), float(np.finfo(np.float32).tiny)) * scores
  best = f'knee: {params[knee]:,} parameters, {percent[knee]:.0f}%'
  return Chart(
    'Score by budget',
    axis('trained parameters', [0, params[-1], allocation.budget]),
    Axis('score in % of all units', [0, 25, 50, 75, 100]),
    [Line('', 'teal', steps(thin(params, percent)))],
    [Mark((params[knee], percent[knee]), best, 'dim')],
    [Rule(allocation.budget, f'budget, {allocation.budget:,}', 'red')],
    [('knee', 'dim', 'dot')],
  )


def scores_table(units: Sequence[Unit]) -> Table:
  """Score by layer and form, for forms that at least one layer can have.

  Args:
    units: all units that could be chosen.
  """
  total = sum(unit.score for unit in units) or 1.0
  forms = [form for form in FORMS if any(unit.form == form for unit in units)]
  rows = [
    (layer, *(_score([unit for unit in same if unit.form == form], total) for form in forms))
    for layer, same in group_by(units, lambda unit: unit.layer).items()
  ]
  return Table(
    'Score by layer and form in percent; chosen units in bold, LoRAs with their rank',
    ('layer', *(FORMS[form] for form in forms)),
    rows,
    is_folded=True,
  )


def _score(units: Sequence[Unit], total: float) -> str:
  """The score of a form in a layer in percent of the total, bold if it was chosen."""
  if not units:
    return ''
  share = f'{100 * sum(unit.score for unit in units) / total:.1f}'
  chosen = sum(unit.chosen for unit in units)
  if not chosen:
    return share
  rank = f' ({chosen})' if units[0].rank else ''
  return Markup('<strong>{}</strong>{}').format(share, rank)


def tell_agreement(name: str, genomes: Sequence[Sequence[Sequence]]) -> str:
  """How much structures of several seeds agree, the mean over tasks; '' if there is one seed.

  Args:
    name: the name of the structures.
    genomes: those of every task, each int [rows, 5].

  Example:
    >>> lora = np.zeros((3, 5), np.int8)
    >>> lora[0, 1] = 3
    >>> tell_agreement('gradient', [[lora, lora]]).partition(' (')[0]
    'Gradient: of the tensors that one of 2 seeds trains, another trains 100% in the same form'
  """
  several = [same for same in genomes if len(same) > 1]
  if not several:
    return ''
  share, chance = np.mean([agreement(same) for same in several], axis=0)
  tasks = f', the mean over {len(several)} tasks' if len(several) > 1 else ''
  told = (
    f'{sentence_case(name)}: of the tensors that one of {len(several[0])} seeds trains, another '
    f'trains {100 * share:.0f}% in the same form ({100 * chance:.0f}% by chance){tasks}.'
  )
  if share - chance < _LITTLE * (1 - chance):
    told += ' That is little: do not read much into the layers that a single seed chooses.'
  return told


def agreement(genomes: Sequence[Sequence]) -> tuple[float, float]:
  """How much structures of one model agree, and how much they would by chance.

  Args:
    genomes: at least two, each int [rows, 5].

  Returns:
    Of the tensors that one of two structures trains, the share that both train in the same form,
    whatever its rank; the mean over all pairs. The same for pairs of which one has its layers
    shifted, the mean over all shifts: what such structures share without agreeing on where.

  Example:
    >>> first, second = np.zeros((2, 4, 5), np.int8)
    >>> first[:, 1], second[:, 1] = [3, 4, 0, 0], [3, 0, 0, 5]
    >>> print('{:.2f} {:.2f}'.format(*agreement([first, second])))
    0.33 0.44
  """
  forms = [np.minimum(genome, _FIRST_LORA) for genome in genomes]
  by_pair = [
    [_share(first, np.roll(second, shift, axis=0)) for shift in range(len(first))]
    for first, second in itertools.combinations(forms, 2)
  ]
  share, *shifted = np.mean(by_pair, axis=0).tolist()
  return share, float(np.mean(shifted)) if shifted else 0.0


def _share(first: np.ndarray, second: np.ndarray) -> float:
  """Of the tensors that one of two trains, the share that both train in the same form."""
  trained = (first > 0) | (second > 0)
  return float((first == second)[trained].mean()) if trained.any() else 1.0
