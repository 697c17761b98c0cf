"""What a comparison has found: `table.csv`, and the sentences and the table of its page."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.files import whole
from glora_jax.reports import markdown
from glora_jax.reports.comparison_rows import (
  budget_of,
  percent_of,
  row_title,
  rows,
  title,
)
from glora_jax.reports.markdown import (
  Table,
  paragraph,
  plain,
  sentence_case,
  spread,
)
from glora_jax.reports.structure_report import tell_agreement


def table(result: Mapping[str, Any]) -> str:
  """The table as Markdown."""
  return str(accuracies(result))


def accuracies(result: Mapping[str, Any]) -> Table:
  """What every row has come to, means and spreads over the seeds."""
  seeds = len(result['seeds'])
  titles = (
    'method',
    'trained params (head apart)',
    'learning rate',
    'val',
    'test',
    'test before finetuning',
    'seconds of training',
  )
  names = ('val_accuracy', 'test_accuracy', 'inherited_test_accuracy')
  cells = [
    (
      plain(row_title(row, seeds)),
      f'{row["params"]:,.0f}',
      f'{row["rate"]:g}',
      *(percent_of(row, name, with_spread=seeds > 1) for name in names),
      f'{row["seconds"]:.0f}',
    )
    for row in rows(result)
  ]
  return Table(titles, cells)


def verdicts(result: Mapping[str, Any]) -> list[str]:
  """A sentence for every structure chosen: it beside the best method within its budget.

  The best by test accuracy; the difference is that of runs of the same seed.
  """
  compared = rows(result)
  sentences = []
  for row in compared:
    budget = budget_of(row['method'])
    if budget is None:
      continue
    rivals = [
      rival
      for rival in compared
      if budget_of(rival['method']) is None and rival['params'] <= budget
    ]
    if rivals:
      best = max(rivals, key=lambda rival: rival['test_accuracy'])
      sentences.append(_verdict(result, row, best))
  return sentences


def _verdict(result: Mapping[str, Any], chosen: Mapping[str, Any], best: Mapping[str, Any]) -> str:
  """A row whose structure was chosen beside the best of its rivals, in a sentence."""
  pairs = zip(result['methods'][chosen['method']], result['methods'][best['method']], strict=True)
  differences = [100 * (ours['test_accuracy'] - theirs['test_accuracy']) for ours, theirs in pairs]
  mean, deviation = spread(differences)
  is_one = len(differences) == 1
  points = f'{mean:+.1f}' if is_one else f'{mean:+.1f} ± {deviation:.1f}'
  origin = 'one seed' if is_one else 'mean and spread of the difference at the same seed'
  return (
    f'{sentence_case(chosen["title"])}: {points} points beside '
    f'{plain(best["title"])}, the best fixed method within that '
    f'({chosen["params"]:,.0f} and {best["params"]:,.0f} parameters; {origin}).'
  )


def agreements(result: Mapping[str, Any]) -> list[str]:
  """How much the gradient's structures of the seeds agree, a sentence for each budget."""
  return [
    f'{sentence_case(title(name))}: {tell_agreement([np.array(genome) for genome in genomes])}'
    for name, genomes in result.get('structures', {}).items()
    if len(genomes) > 1
  ]


def write(workdir: str, result: Mapping[str, Any]) -> None:
  """Writes the table as CSV."""
  path = os.path.join(workdir, 'table.csv')
  with whole(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
    file.write(_csv(rows(result)))


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
  """Dictionaries as CSV, a column for every key that any of them has."""
  buffer = io.StringIO()
  fields = list(dict.fromkeys(field for line in lines for field in line))
  writer = csv.DictWriter(buffer, fields, lineterminator='\n')
  writer.writeheader()
  writer.writerows(lines)
  return buffer.getvalue()


def tell_best(result: Mapping[str, Any]) -> str:
  """The row of the highest test accuracy, in a sentence; the smallest of several."""
  compared = rows(result)
  best = max(compared, key=lambda row: row['test_accuracy'])
  as_good = sum(row['test_accuracy'] == best['test_accuracy'] for row in compared)
  others = f', as are {as_good - 1} others' if as_good > 2 else ', as is one other'
  accuracy = percent_of(best, 'test_accuracy', with_spread=len(result['seeds']) > 1)
  return (
    f'Of {len(compared)} rows, {plain(best["title"])} is the most accurate'
    f'{others if as_good > 1 else ""}: {accuracy}% of the '
    f'test images right with {best["params"]:,.0f} trained parameters.'
  )


def tell_images(result: Mapping[str, Any]) -> str:
  """Where the images come from."""
  data = result['data']
  return paragraph(f'Images: {plain(data["origin"])}.', *map(plain, data['notes']))


def tell_making(result: Mapping[str, Any]) -> str:
  """How the rows were trained, their rates chosen, and what was tested."""
  is_search = any(name.startswith('search-') for name in result['methods'])
  finetuning = (
    f', and of a searched subnet {result["finetune_epochs"]} of them are its own finetuning'
    if is_search
    else ''
  )
  rows_of_gradients = result.get('allocation_epochs', {}).values()
  spared = sorted({epochs for row in rows_of_gradients for epochs in row})
  shorter = f"""
    A gradient's structure is read off the training images; head and gradient count as
    {' or '.join(map(str, spared))} of its epochs.
  """
  rates = ', '.join(f'{rate:g}' for rate in result['rates'])
  is_one, seeds = len(result['seeds']) == 1, ', '.join(map(str, result['seeds']))
  runs = f'Seed {seeds}.' if is_one else f'Seeds {seeds}; mean and standard deviation.'
  return paragraph(
    f"""
    Backbone {markdown.weights_name(result)}. Every method was trained for {result['epochs']} epochs
    of the same images{finetuning}.
    """,
    shorter if spared else '',
    f"""
    Its learning rate is the best of {rates} on the validation images, with a seed that the table
    does not use, or was given in the config; `rates.json` tells which. {runs} The list of all
    subnets was frozen in `test_list.json` before the test images were read. Seconds are of one of
    the runs trained side by side; of a structure that was chosen those of the choice, too.
    """,
  )


def summary(result: Mapping[str, Any], workdir: str) -> str:
  """What the command line prints at the end."""
  last = f'{workdir}/report.html has the whole story.'
  return '\n\n'.join((table(result), *verdicts(result), last))
