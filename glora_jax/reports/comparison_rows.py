"""The rows of a comparison: what each is called and marked with, its numbers, what went wrong."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from glora_jax.reports.markdown import paragraph, plain, sentence_case, spread
from glora_jax.standard_json import number

_NO_LABELS: Mapping[str, str] = types.MappingProxyType({})
TITLES = {
  'linear': 'linear probe',
  'bitfit': 'BitFit',
  'lora': 'LoRA',
  'ssf': 'SSF-like',
  'prompt': 'prompts',
  'full': 'all of GLoRA',
  'hira': 'HiRA',
  'scale_shift': 'scale and shift',
  'finetuning': 'full fine-tuning',
}
CHOSEN = {'search': 'searched', 'gradient': "the gradient's structure"}  # for a task and a budget
COLORS = {'search': 'red', 'gradient': 'teal'}
# What may become of a seed, by the field of `result.json` that has it in sentences.
TROUBLES = {'diverged': 'diverged', 'learned_nothing': 'learned nothing'}
_REMEDY = (
  'Such a method may train, in a new workdir, at a lower rate (compare.rate, compare.rates), with '
  'bounded gradients (supernet.max_grad_norm=1, and finetune.max_grad_norm=1 for what is searched) '
  'or for more epochs (supernet.epochs).'
)


def budget_of(name: str) -> int | None:
  """The budget of a row whose structure was chosen for the task; None of the other methods.

  Example:
    >>> budget_of('search-40000'), budget_of('gradient-40000'), budget_of('lora')
    (40000, 40000, None)
  """
  method, _, budget = name.partition('-')
  return int(budget) if method in CHOSEN else None


class Style(NamedTuple):
  """How a row is marked.

  Attributes:
    color: name of a colour of the palette.
    shape: 'star' where its structure was chosen for the task, else 'dot'.
  """

  color: str
  shape: Literal['star', 'dot']


def style_of(name: str) -> Style:
  """How a row is marked on the page.

  Example:
    >>> style_of('gradient-40000')
    Style(color='teal', shape='star')
  """
  color = COLORS.get(name.partition('-')[0], 'purple')
  return Style(color, 'dot' if budget_of(name) is None else 'star')


def title(name: str, labels: Mapping[str, str] = _NO_LABELS) -> str:
  """What a row is called.

  Args:
    name: name of the row.
    labels: what tables call presets, by name: those with a rank say which.

  Example:
    >>> title('search-40000'), title('lora', {'lora': 'lora:4'})
    ('searched, at most 40,000', 'lora:4')
  """
  budget = budget_of(name)
  if budget is not None:
    return f'{CHOSEN[name.partition("-")[0]]}, at most {budget:,}'
  label = labels.get(name, name)
  return TITLES.get(name, name) if label == name else label


def rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A row for each method and budget, in the order of their parameters.

  Args:
    result: content of the comparison's `result.json`.

  Returns:
    Flat dictionaries: 'method', 'title', 'rate', and of every number that the runs have its mean
    over the seeds under its name and its standard deviation under `{name}_spread`, None of one;
    'diverged' is the number of seeds of which something diverged, 'learned_nothing' of those that
    end in guessing.
  """
  found = []
  for name, runs in result['methods'].items():
    # A row of a budget is called by its method and the budget.
    method = name if name in result['rate'] else name.rpartition('-')[0]
    label = title(name, result.get('labels', {}))
    row = {'method': name, 'title': label, 'rate': result['rate'][method]}
    for field in runs[0]:
      row[field], deviation = spread([number(run[field]) for run in runs])
      row[f'{field}_spread'] = deviation if len(runs) > 1 else None
    for trouble in TROUBLES:
      row[trouble] = len(result.get(trouble, {}).get(name, {}))
    found.append(row)
  return sorted(found, key=lambda row: row['params'])


def row_title(row: Mapping[str, Any], seeds: int) -> str:
  """The title of a row, and how many of its seeds diverged or learned nothing where some did."""
  share = _share_in_trouble(row, seeds)
  return row['title'] + (share and f' ({share})')


def _share_in_trouble(row: Mapping[str, Any], seeds: int) -> str:
  """How many of a row's seeds diverged or learned nothing; empty where none did."""
  return ', '.join(
    word if seeds == 1 else f'{row[trouble]} of {seeds} seeds {word}'
    for trouble, word in TROUBLES.items()
    if row[trouble]
  )


def troubles(result: Mapping[str, Any]) -> list[str]:
  """What diverged or learned nothing, an item for each row, and then what may help."""
  told = []
  for row in rows(result):
    if share := _share_in_trouble(row, len(result['seeds'])):
      seeds: dict[str, list[str]] = {}
      for trouble in TROUBLES:
        for seed, sentences in result.get(trouble, {}).get(row['method'], {}).items():
          seeds.setdefault(sentences, []).append(seed)
      told.append(
        paragraph(
          f'{sentence_case(plain(row["title"]))}: {share}, which the row counts as it is.',
          *(
            f'Seed{"s" * (len(alike) > 1)} {", ".join(alike)}: {plain(sentences)}'
            for sentences, alike in seeds.items()
          ),
        )
      )
  return [*told, plain(_REMEDY)] if told else []


def percent_of(row: Mapping[str, Any], field: str, *, with_spread: bool) -> str:
  """An accuracy of a row, '96.2 ± 0.6'; nothing where the row has none."""
  if field not in row:
    return ''
  deviation = f' ± {100 * row[f"{field}_spread"]:.1f}' if with_spread else ''
  return f'{100 * row[field]:.1f}{deviation}'
