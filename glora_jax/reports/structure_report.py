"""What a report says of a structure that was read off a gradient: where it pays, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.reports.markdown import Table, paragraph, plain
from glora_jax.search.agreement import agreement
from glora_jax.search.allocated import Allocation, Unit

FORMS = {
  'A.vector': 'A vector',
  'A.lora': 'A LoRA',
  'B.lora': 'B LoRA',
  'C.vector': 'C vector',
  'E.vector': 'E vector',
}
VALUES_EXPLAINED = """\
Value in percent of all that is on offer; what was bought is bold, a LoRA's rank in brackets."""


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
  layers = dict.fromkeys(unit.layer for unit in units)
  forms = [form for form in FORMS if any(unit.form == form for unit in units)]
  rows = [
    (plain(layer), *(_cell(cells.get((layer, form), []), total) for form in forms))
    for layer in layers
  ]
  return Table(('layer', *(FORMS[form] for form in forms)), rows)


def _cell(units: Sequence[Unit], total: float) -> str:
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
  summary = result['allocation']
  seconds = sum(result['seconds'].get(stage, 0.0) for stage in ('head', 'structure'))
  return paragraph(f"""
    Head and gradient took {seconds:.0f} seconds, compilation included. They count as
    {summary['epochs']} epochs, by which the training is shorter than its recipe says.
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
