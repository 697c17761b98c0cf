"""What a comparison says: `table.md`, `table.csv`, `accuracy.png` and `report.md`, drawn from its result alone."""

from __future__ import annotations

import csv
import io
import os
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import ticker

from glora_jax.files import whole
from glora_jax.reports.drawing import panels, save

TITLES = {
  'linear': 'linear probe',
  'bitfit': 'BitFit',
  'lora': 'LoRA',
  'ssf': 'SSF-like',
  'prompt': 'prompts',
  'full': 'all of GLoRA',
  'finetuning': 'full fine-tuning',
}


def budget_of(name: str) -> int | None:
  """The budget of a searched row; None of the other methods."""
  return int(name.removeprefix('search-')) if name.startswith('search-') else None


def title(name: str) -> str:
  """What a row is called."""
  budget = budget_of(name)
  return TITLES[name] if budget is None else f'searched, at most {budget:,}'


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
  """A row for each method and budget by parameters: mean and spread over the seeds of everything, in one flat dictionary."""
  lines = []
  for name, seeds in result['methods'].items():
    line = {'method': name, 'rate': result['rate'][name.split('-')[0]]}
    for field in seeds[0]:
      line[field], line[f'{field}_spread'] = spread([entry[field] for entry in seeds])
    lines.append(line)
  return sorted(lines, key=lambda line: line['params'])


def spread(values: Sequence[float]) -> tuple[float, float]:
  """Mean and standard deviation (of a sample; 0 of one value)."""
  return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def table(result: dict[str, Any]) -> str:
  """The table as Markdown."""
  several = len(result['seeds']) > 1

  def percent(line, field):
    around = f' ± {100 * line[f"{field}_spread"]:.1f}' if several and field in line else ''
    return f'{100 * line[field]:.1f}{around}' if field in line else ''

  lines = [
    '| method | trained params (head apart) | learning rate | val | test | test before finetuning | seconds of training |',
    '|---|---:|---:|---:|---:|---:|---:|',
  ]
  lines += [
    f'| {title(line["method"])} | {line["params"]:,.0f} | {line["rate"]:g} | {percent(line, "val_accuracy")} | '
    f'{percent(line, "test_accuracy")} | {percent(line, "inherited_test_accuracy")} | {line["seconds"]:.0f} |'
    for line in rows(result)
  ]
  return '\n'.join(lines)


def verdicts(result: dict[str, Any]) -> list[str]:
  """For every budget: the searched subnet beside the best method within the same budget, by test accuracy, paired over the seeds."""
  lines = rows(result)
  sentences = []
  for line in lines:
    name, budget = line['method'], budget_of(line['method'])
    others = [
      other
      for other in lines
      if budget is not None and budget_of(other['method']) is None and other['params'] <= budget
    ]
    if not others:
      continue
    best = max(others, key=lambda other: other['test_accuracy'])
    pairs = zip(result['methods'][name], result['methods'][best['method']], strict=True)
    mean, deviation = spread(
      [100 * (one['test_accuracy'] - other['test_accuracy']) for one, other in pairs]
    )
    sentences.append(
      f'{title(name).capitalize()}: {mean:+.1f} ± {deviation:.1f} points beside {title(best["method"])}, the best other method within that '
      f'({line["params"]:,.0f} and {best["params"]:,.0f} parameters; mean and spread of the difference at the same seed).'
    )
  return sentences


def draw(path: str, result: dict[str, Any]) -> None:
  """Test accuracy against trained parameters, a point for each method and a line through the searched ones."""
  figure, axis = panels(figsize=(7.5, 4.6))
  lines = rows(result)
  for line in lines:
    found, at = budget_of(line['method']) is not None, (line['params'], 100 * line['test_accuracy'])
    color = '#c0392b' if found else '#8e6bb0'
    axis.errorbar(
      *at,
      100 * line['test_accuracy_spread'],
      fmt='*' if found else 'o',
      markersize=13 if found else 6,
      color=color,
      capsize=3,
    )
    # Searched subnets are named on their right, below, and all others on their left, above, so that neighbours do not collide.
    name = title(line['method']).replace('at most', '≤')
    right = found or line['params'] == 0
    axis.annotate(
      name,
      at,
      textcoords='offset points',
      xytext=(8, -4) if right else (-6, 3),
      ha='left' if right else 'right',
      va='top' if right else 'bottom',
      fontsize=8,
      color=color,
    )
  most = max(line['params'] for line in lines)
  axis.set_xscale('symlog', linthresh=1000)
  axis.set_xlim(left=-200, right=2 * most + 1000)
  axis.set_xticks([0, *(10.0**power for power in range(3, int(np.log10(2 * most + 1000)) + 1))])
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  axis.xaxis.set_minor_locator(ticker.NullLocator())
  axis.set(
    xlabel='trained parameters, head not counted (logarithmic from 1,000 on)',
    ylabel='test accuracy in %',
  )
  axis.set_title(
    f'{result["task"]}, {len(result["seeds"])} seed{"s" * (len(result["seeds"]) > 1)}', loc='left'
  )
  axis.spines[['top', 'right']].set_visible(False)
  axis.grid(axis='y', color='0.92')
  axis.set_axisbelow(True)
  save(figure, path)


def write(workdir: str, result: dict[str, Any]) -> None:
  """Writes the table as Markdown and CSV, the picture, and the report around them."""
  lines, buffer = rows(result), io.StringIO()
  fields = list(dict.fromkeys(field for line in lines for field in line))
  writer = csv.DictWriter(buffer, fields, lineterminator='\n')
  writer.writeheader()
  writer.writerows(lines)
  draw(os.path.join(workdir, 'accuracy.png'), result)
  searched = (
    f', and of a searched subnet {result["finetune_epochs"]} of them are its own finetuning'
    if any(budget_of(name) is not None for name in result['methods'])
    else ''
  )
  report = f"""# Methods side by side on {result['task']}

{table(result)}

![Test accuracy against trained parameters](accuracy.png)

{' '.join(verdicts(result))}

Backbone `{result['weights']}`. Every method was trained for {result['epochs']} epochs of the same images{searched}.
Its learning rate is the best of {', '.join(f'{rate:g}' for rate in result['rates'])} on the validation images,
with a seed that the table does not use, or was given in the config; `rates.json` tells which.
Seeds {', '.join(map(str, result['seeds']))}; mean and standard deviation. The list of all subnets was frozen in `test_list.json` before the
test images were read. Seconds are of one of the runs trained side by side; of a searched subnet those of its supernet and search, too.

Images: {result['data']['origin']}. {' '.join(result['data']['notes'])}
"""
  for name, text in (
    ('table.md', table(result) + '\n'),
    ('table.csv', buffer.getvalue()),
    ('report.md', report),
  ):
    with whole(os.path.join(workdir, name)) as temporary, open(temporary, 'w') as file:
      file.write(text)


def summary(result: dict[str, Any], workdir: str) -> str:
  """What the command line prints at the end."""
  return '\n\n'.join(
    [table(result), *verdicts(result), f'{workdir}/report.md has the whole story.']
  )
