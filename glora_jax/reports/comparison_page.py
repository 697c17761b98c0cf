"""The page of a comparison, `report.html`, and its table: a row for each method and budget."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.files import number
from glora_jax.method.space import Spec
from glora_jax.reports import page
from glora_jax.reports.charts import DotPlot, Dots, Mark, axis, bars
from glora_jax.reports.markdown import (
  Table,
  paragraph,
  plain,
  sentence_case,
  spread,
  weights_name,
)
from glora_jax.reports.run_page import stage_bars
from glora_jax.reports.structure import structure_figure, tell_agreement

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
  'bounded gradients (training.max_grad_norm=1) '
  'or for more epochs (training.epochs).'
)


def write(workdir: str, result: Mapping[str, Any], spec: Spec, made: Sequence[page.Made]) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a comparison.

  Args:
    workdir: its folder.
    result: content of its `result.json`.
    spec: the layers that the gradient's structures describe.
    made: with what it was made, process by process.
  """
  page.write_table(workdir, rows(result))
  page.write(workdir, 'comparison.html', facts(result, spec, made))


def facts(result: Mapping[str, Any], spec: Spec, made: Sequence[page.Made]) -> dict[str, Any]:
  """What the template of a comparison asks for."""
  structures, seeds = result.get('structures', {}), result['seeds']
  return {
    'task': result['task'],
    'verdict': tell_best(result),
    'warning': ' '.join(troubles(result)),
    'verdicts': verdicts(result),
    'plot': accuracy_plot(result),
    'table': accuracies(result),
    'structures': [  # of the first seed
      structure_figure(f'{title(name)}, seed {seeds[0]}', spec, genomes[0])
      for name, genomes in structures.items()
    ],
    'agreements': [
      f'{sentence_case(title(name))}: {tell_agreement([np.array(genome) for genome in genomes])}'
      for name, genomes in structures.items()
      if len(genomes) > 1
    ],
    'cost': bars(
      [(row['title'], row['seconds'], page.duration(row['seconds'])) for row in rows(result)]
    ),
    'stages': stage_bars(result['seconds']),
    'told': [tell_making(result), tell_images(result)],
    'seeds': ', '.join(map(str, seeds)),
    'weights': weights_name(result),
    'provenances': page.distinct(made),
  }


def summary(result: Mapping[str, Any], workdir: str) -> str:
  """What the command line prints at the end."""
  last = f'{workdir}/report.html has the whole story.'
  return '\n\n'.join((str(accuracies(result)), *verdicts(result), last))


def budget_of(name: str) -> int | None:
  """The budget of a row whose structure was chosen for the task; None of the other methods.

  Example:
    >>> budget_of('search-40000'), budget_of('gradient-40000'), budget_of('lora')
    (40000, 40000, None)
  """
  method, _, budget = name.partition('-')
  return int(budget) if method in CHOSEN else None


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
  fixed = [row for row in rows(result) if budget_of(row['method']) is None]
  sentences = []
  for row in rows(result):
    budget = budget_of(row['method'])
    rivals = [rival for rival in fixed if budget is not None and rival['params'] <= budget]
    if not rivals:
      continue
    best = max(rivals, key=lambda rival: rival['test_accuracy'])
    pairs = zip(result['methods'][row['method']], result['methods'][best['method']], strict=True)
    mean, deviation = spread(
      [100 * (ours['test_accuracy'] - theirs['test_accuracy']) for ours, theirs in pairs]
    )
    points, origin = f'{mean:+.1f}', 'one seed'
    if len(result['seeds']) > 1:
      points += f' ± {deviation:.1f}'
      origin = 'mean and spread of the difference at the same seed'
    sentences.append(
      f'{sentence_case(row["title"])}: {points} points beside '
      f'{plain(best["title"])}, the best fixed method within that '
      f'({row["params"]:,.0f} and {best["params"]:,.0f} parameters; {origin}).'
    )
  return sentences


def accuracy_plot(result: Mapping[str, Any]) -> DotPlot:
  """The test accuracy of every row, with its spread over the seeds, by parameters."""
  seeds, drawn, legend = len(result['seeds']), [], {'fixed': ('purple', 'dot')}
  for row in rows(result):
    method, _, _ = row['method'].partition('-')
    style = (COLORS[method], 'star') if method in CHOSEN else ('purple', 'dot')
    legend[CHOSEN.get(method, 'fixed')] = style
    mean, deviation = 100 * row['test_accuracy'], 100 * (row['test_accuracy_spread'] or 0.0)
    params = f'{row["params"]:,.0f}'
    drawn.append(
      Dots(
        label=plain(row_title(row, seeds)).replace('at most ', '≤\N{NO-BREAK SPACE}'),
        value=percent_of(row, 'test_accuracy', with_spread=seeds > 1),
        marks=[Mark((mean,), f'{mean:.2f}%; {params} trained parameters', *style)],
        detail=params,
        ends=[max(0.0, mean - deviation), min(100.0, mean + deviation)],
      )
    )
  over = f', mean and standard deviation over {seeds} seeds' if seeds > 1 else ''
  return DotPlot(
    f'Test accuracy in %{over}, by trained parameters',
    axis('', [end for dots in drawn for end in dots.ends], most=100),
    drawn,
    [(label, *style) for label, style in legend.items()],
  )


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
    Backbone {weights_name(result)}. Every method was trained for {result['epochs']} epochs
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
