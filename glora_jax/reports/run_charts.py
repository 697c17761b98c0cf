"""The charts of a run's page: accuracies, search, values by budget, training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glora_jax.reports import curves
from glora_jax.reports.charts import (
  Axis,
  Chart,
  DotPlot,
  Dots,
  Line,
  Mark,
  Rule,
  axis,
  points,
  steps,
)
from glora_jax.reports.findings import Findings
from glora_jax.reports.markdown import plain
from glora_jax.reports.page import SERIES
from glora_jax.reports.verdict import interval, subnets, titles
from glora_jax.search.allocated import Allocation

_SHOWN = 400  # points of a crowd, at most; the others look no different
_FEW = 60  # points of a curve that answer a pointer


def accuracy_plot(result: Mapping[str, Any]) -> DotPlot:
  """The test accuracy of every row, with its interval.

  Args:
    result: content of `result.json`.
  """
  number, rows = result['data']['images']['test'], subnets(result)
  names = titles(result)
  intervals = {name: interval(row['test_accuracy'], number) for name, row in rows.items()}
  ends = [100 * end for known in intervals.values() for end in known]
  scale = axis('test accuracy in %', ends, most=100)
  drawn = [
    Dots(
      label=names[name],
      value=f'{100 * row["test_accuracy"]:.1f}',
      marks=[
        Mark(
          (scale.place(100 * row['test_accuracy']), 50),
          f'{100 * row["test_accuracy"]:.2f}%, 95% interval {intervals[name]}; '
          f'{row["params"]:,} trained parameters',
          _color(name),
        )
      ],
      detail=f'{row["params"]:,}',
      low=scale.place(100 * intervals[name].low),
      high=scale.place(100 * intervals[name].high),
      is_strong=name == 'winner',
    )
    for name, row in rows.items()
  ]
  title = f'Test accuracy in %, with intervals of 95% on {number:,} images, and parameters'
  return DotPlot(title, scale, drawn)


def _color(name: str) -> str:
  if name.startswith('winner'):
    return 'red' if name == 'winner' else 'dim'
  return 'dim' if name == 'linear' else 'purple'


def search_charts(findings: Findings) -> list[Chart]:
  """Accuracy by generation, and error against parameters; none where nothing was searched."""
  if findings.archive is None:
    return []
  return [_progress_chart(findings), _cloud_chart(findings)]


def _progress_chart(findings: Findings) -> Chart:
  archive, number = findings.archive, findings.search_images
  accuracy = 100 * archive.correct / number
  found = curves.progress(archive.generation, accuracy, np.maximum)
  x = Axis('generation', _whole_numbers(int(archive.generation.max(initial=0))))
  y = axis(f'accuracy in % on {number:,} {findings.search_split} images', accuracy, most=100)
  best = points(x, y, found.generations, found.best)
  marks = [
    Mark(place, f'generation {generation}: best so far {value:.1f}%', 'red')
    for place, generation, value in zip(best, found.generations, found.best, strict=True)
  ]
  return Chart(
    'Accuracy of the subnets by generation',
    x,
    y,
    [
      Line('one subnet', 'teal', _few(points(x, y, archive.generation, accuracy)), 'dots'),
      Line('mean', 'dim', points(x, y, found.generations, found.means)),
      Line('best so far', 'red', best),
    ],
    marks,
  )


def _whole_numbers(last: int) -> list[float]:
  """At most eight whole numbers from 0 on, the last one at or above the given one."""
  step = max(1, -(-last // 7))
  return [float(number) for number in range(0, max(last, 1) + step, step)]


def _cloud_chart(findings: Findings) -> Chart:
  result, number = findings.result, findings.search_images
  cloud = curves.cloud(findings.spec, findings.archive, number, result['winner']['genome'])
  presets = {
    plain(name): (row['params'], 100 * (1 - row['accuracy']))
    for name, row in findings.presets.items()
  }
  limit = [] if result['budget'] is None else [result['budget']]
  x = axis('trained parameters', [0, *cloud.params, *limit, *(p for p, _ in presets.values())])
  y = axis('error in %', [*cloud.error, *(error for _, error in presets.values())], most=100)
  front = points(x, y, cloud.params[cloud.front], cloud.error[cloud.front])
  marks = [
    Mark(place, f'{params:,} parameters, {error:.1f}% wrong', 'teal')
    for place, params, error in zip(
      front, cloud.params[cloud.front], cloud.error[cloud.front], strict=True
    )
  ]
  marks += [
    Mark(
      points(x, y, [params], [error])[0],
      f'{name}: {params:,} parameters, {error:.1f}% wrong',
      'purple',
      'diamond',
    )
    for name, (params, error) in presets.items()
  ]
  marks += [
    Mark(
      points(x, y, [params], [error])[0],
      f'the winner: {params:,} parameters, {error:.1f}% wrong',
      'red',
      'star',
    )
    for params, error in zip(cloud.params[cloud.winner], cloud.error[cloud.winner], strict=True)
  ]
  return Chart(
    "Error against parameters, with the supernet's weights",
    x,
    y,
    [
      Line('scored', 'grey', _few(points(x, y, cloud.params, cloud.error)), 'dots'),
      Line('front of these', 'teal', steps(front)),
    ],
    marks,
    [Rule(x.place(value), f'budget, {value:,}', 'dim') for value in limit],
    [('presets', 'purple', 'diamond'), ('winner', 'red', 'star')],
  )


def _few(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """Different places, evenly thinned where they are very many; the last one stays."""
  different = list(dict.fromkeys(places))
  step = max(1, -(-len(different) // _SHOWN))
  return [*different[:-1:step], *different[-1:]]


def value_chart(allocation: Allocation) -> Chart:
  """What the units of a structure are worth by budget."""
  params, percent, knee = curves.value_curve(allocation)
  x = axis('trained parameters', [0, params[-1], allocation.budget])
  y = Axis('held-out value, % of all on offer', [0, 25, 50, 75, 100])
  places = points(x, y, params, percent)
  marks = [Mark(places[knee], f'knee: {params[knee]:,} parameters, {percent[knee]:.0f}%', 'dim')]
  rules = [Rule(x.place(allocation.budget), f'budget, {allocation.budget:,}', 'red')]
  curve = Line('', 'teal', steps(_few(places)))
  return Chart('Value by budget', x, y, [curve], marks, rules, [('knee', 'dim', 'dot')])


def training_charts(metrics: str) -> list[Chart]:
  """Accuracy and loss of every training stage by epoch, as far as they can be drawn.

  Args:
    metrics: path of `metrics.jsonl`.
  """
  measured = curves.training(metrics)
  charts = [
    _training_chart(measured, 'accuracy', 'accuracy in %', 100, is_log=False),
    _training_chart(measured, 'loss', 'loss', 1, is_log=True),
  ]
  return [chart for chart in charts if chart is not None]


def _training_chart(
  measured: Mapping[str, Sequence[Mapping[str, Any]]],
  metric: str,
  label: str,
  scale: float,
  *,
  is_log: bool,
) -> Chart | None:
  """A metric by epoch; dashed that of validation images, where a stage was measured on them.

  None where no value can be drawn.
  """
  found = {
    (title, prefix): _curve(lines, f'{prefix}{metric}', scale, is_log)
    for title, lines in measured.items()
    for prefix in ('', 'val_')
  }
  found = {name: curve for name, curve in found.items() if curve}
  if not found:
    return None
  x = axis('epoch', [0, *(epoch for curve in found.values() for epoch, _ in curve)], whole=True)
  values = [value for curve in found.values() for _, value in curve]
  y = axis(label, values, is_log=is_log, most=math.inf if is_log else 100)
  stages = list(measured)
  lines, marks = [], []
  for (title, prefix), curve in found.items():
    color = f'series-{stages.index(title) % len(SERIES)}'
    places = points(x, y, *zip(*curve, strict=True))
    name = f'{title}, validation' if prefix else title
    lines.append(Line(name, color, places, 'dashed' if prefix else 'line'))
    if len(places) <= _FEW:
      shape = 'hidden' if len(places) > 1 else 'dot'  # of which no line can be drawn
      marks += [
        Mark(place, f'{name}, epoch {epoch:g}: {value:.4g}', color, shape)
        for place, (epoch, value) in zip(places, curve, strict=True)
      ]
  return Chart(f'{label.capitalize()} by epoch', x, y, lines, marks)


def _curve(
  lines: Sequence[Mapping[str, Any]], field: str, scale: float, is_log: bool
) -> list[tuple[float, float]]:
  """(epoch, value) wherever a field was measured and can be drawn."""
  measured = [(line['epoch'], scale * line[field]) for line in lines if field in line]
  return [
    (epoch, value) for epoch, value in measured if np.isfinite(value) and (value > 0 or not is_log)
  ]
