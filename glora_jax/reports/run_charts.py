"""The charts of a run's page: accuracies, search, values by budget, training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from glora_jax.files import number as to_number
from glora_jax.method.genomes import count_params
from glora_jax.records import read_lines
from glora_jax.reports.charts import (
  Axis,
  Chart,
  DotPlot,
  Dots,
  Line,
  Mark,
  Rule,
  axis,
  steps,
)
from glora_jax.reports.findings import Findings
from glora_jax.reports.markdown import plain
from glora_jax.reports.page import SERIES
from glora_jax.reports.verdict import interval, titles
from glora_jax.search.allocated import Allocation
from glora_jax.search.pareto import pareto_front

SEARCH = 'search'  # the name of the structure that was searched
STAGES = {
  'training/linear': 'linear probe',
  'head': 'head, to read the gradient',
  'finetune': 'searched, finetuned',
  'finetune_choice': 'searched, to choose the epochs',
}
_SHOWN = 400  # points of a crowd, at most; the others look no different
_FEW = 60  # points of a curve that answer a pointer


def accuracy_plot(result: Mapping[str, Any]) -> DotPlot:
  """The test accuracy of every row, with its interval.

  Args:
    result: content of `result.json`.
  """
  number, names = result['data']['images']['test'], titles(result)
  colors = {'supernet': 'dim', 'linear': 'dim', result['result']: 'red'}
  drawn = []
  for name, row in result['structures'].items():
    accuracy, known = 100 * row['test_accuracy'], interval(row['test_accuracy'], number)
    exactly = f'{accuracy:.2f}%, 95% interval {known}; {row["params"]:,} trained parameters'
    drawn.append(
      Dots(
        label=names[name],
        value=f'{accuracy:.1f}',
        marks=[Mark((accuracy,), exactly, colors.get(name, 'purple'))],
        detail=f'{row["params"]:,}',
        ends=[100 * end for end in known],
        is_strong=name == result['result'],
      )
    )
  title = f'Test accuracy in %, with intervals of 95% on {number:,} images, and parameters'
  return DotPlot(title, axis('', [end for dots in drawn for end in dots.ends], most=100), drawn)


def search_charts(findings: Findings) -> list[Chart]:
  """Accuracy by generation, and error against parameters; none where nothing was searched."""
  archive = findings.archive
  if archive is None:
    return []
  accuracy = 100 * archive.correct / findings.search_images
  return [
    _progress_chart(findings, archive.generation, accuracy),
    _cloud_chart(findings, archive.genomes, accuracy),
  ]


def _progress_chart(findings: Findings, generation: np.ndarray, accuracy: np.ndarray) -> Chart:
  generations = np.unique(generation)
  means = [(each, accuracy[generation == each].mean()) for each in generations]
  best = [(each, accuracy[generation <= each].max()) for each in generations]
  last = max(1, int(generation.max(initial=0)))
  step = -(-last // 7)
  images = f'{findings.search_images:,} {findings.search_split} images'
  return Chart(
    'Accuracy of the structures by generation',
    Axis('generation', [*range(0, last + step, step)]),
    axis(f'accuracy in % on {images}', accuracy, most=100),
    [
      Line('one subnet', 'teal', _few(generation, accuracy), 'dots'),
      Line('mean', 'dim', means),
      Line('best so far', 'red', best),
    ],
    [Mark(at, f'generation {at[0]}: best so far {at[1]:.1f}%', 'red') for at in best],
  )


def _cloud_chart(findings: Findings, genomes: np.ndarray, accuracy: np.ndarray) -> Chart:
  searched = np.array(findings.result['structures'][SEARCH]['genome'])
  params, error = count_params(findings.spec, genomes), 100 - accuracy
  presets = {
    f'{plain(name)}: ': (row['params'], 100 * (1 - row['accuracy']))
    for name, row in findings.presets.items()
  }
  front = [(params[at], error[at]) for at in pareto_front(params, error)]
  is_searched = (genomes == searched).all(axis=(1, 2))
  budget = findings.result['budget']
  limit = [] if budget is None else [budget]

  def mark(title, at, color, shape='dot'):
    return Mark(at, f'{title}{at[0]:,} parameters, {at[1]:.1f}% wrong', color, shape)

  return Chart(
    "Error against parameters, with the supernet's weights",
    axis('trained parameters', [0, *params, *limit, *(x for x, _ in presets.values())]),
    axis('error in %', [*error, *(y for _, y in presets.values())], most=100),
    [
      Line('scored', 'grey', _few(params, error), 'dots'),
      Line('front of these', 'teal', steps(front)),
    ],
    [
      *(mark('', at, 'teal') for at in front),
      *(mark(name, at, 'purple', 'diamond') for name, at in presets.items()),
      *(
        mark('searched: ', at, 'red', 'star')
        for at in zip(params[is_searched], error[is_searched], strict=True)
      ),
    ],
    [Rule(value, f'budget, {value:,}', 'dim') for value in limit],
    [('presets', 'purple', 'diamond'), ('searched', 'red', 'star')],
  )


def _few(xs: np.ndarray, ys: np.ndarray) -> list[tuple[Any, Any]]:
  """Different points, evenly thinned where they are very many; the last one stays."""
  different = list(dict.fromkeys(zip(xs, ys, strict=True)))
  step = max(1, -(-len(different) // _SHOWN))
  return [*different[:-1:step], *different[-1:]]


def value_chart(allocation: Allocation) -> Chart:
  """What the units of a structure are worth held out by budget, the best bought first."""
  params, values, knee = allocation.curve
  percent = 100 / max(float(values[-1]), float(np.finfo(np.float32).tiny)) * values
  best = f'knee: {params[knee]:,} parameters, {percent[knee]:.0f}%'
  return Chart(
    'Value by budget',
    axis('trained parameters', [0, params[-1], allocation.budget]),
    Axis('held-out value, % of all on offer', [0, 25, 50, 75, 100]),
    [Line('', 'teal', steps(_few(params, percent)))],
    [Mark((params[knee], percent[knee]), best, 'dim')],
    [Rule(allocation.budget, f'budget, {allocation.budget:,}', 'red')],
    [('knee', 'dim', 'dot')],
  )


class _Measurement(TypedDict):
  stage: str
  epoch: float


def training_charts(metrics: str) -> list[Chart]:
  """Accuracy and loss of every training stage by epoch, as far as they can be drawn.

  Args:
    metrics: path of `metrics.jsonl`.
  """
  stages: dict[str, list[dict[str, Any]]] = {}
  for line in read_lines(metrics, 'metrics', _Measurement):
    stage = line['stage']
    title = STAGES.get(stage, stage.removeprefix('training/'))
    stages.setdefault(title, []).append({name: to_number(value) for name, value in line.items()})
  charts = [
    _training_chart(stages, 'accuracy', 'accuracy in %', 100, is_log=False),
    _training_chart(stages, 'loss', 'loss', 1, is_log=True),
  ]
  return [chart for chart in charts if chart is not None]


def _training_chart(
  stages: Mapping[str, Sequence[Mapping[str, Any]]],
  metric: str,
  label: str,
  scale: float,
  *,
  is_log: bool,
) -> Chart | None:
  """A metric by epoch, dashed that of validation images; None where no value can be drawn."""
  drawn = []
  for number, (title, measured) in enumerate(stages.items()):
    color = f'series-{number % len(SERIES)}'
    for field, name, kind in (
      (metric, title, 'line'),
      (f'val_{metric}', f'{title}, validation', 'dashed'),
    ):
      values = [(line['epoch'], scale * line.get(field, math.nan)) for line in measured]
      curve = [(x, y) for x, y in values if np.isfinite(y) and (y > 0 or not is_log)]
      if curve:
        drawn.append(Line(name, color, curve, kind))
  if not drawn:
    return None
  xs, ys = zip(*(point for line in drawn for point in line.points), strict=True)
  marks = [
    Mark(
      (x, y),
      f'{line.label}, epoch {x:g}: {y:.4g}',
      line.color,
      'hidden' if len(line.points) > 1 else 'dot',  # of one no line can be drawn
    )
    for line in drawn
    for x, y in line.points
    if len(line.points) <= _FEW
  ]
  return Chart(
    f'{label.capitalize()} by epoch',
    axis('epoch', [0, *xs], whole=True),
    axis(label, ys, is_log=is_log, most=math.inf if is_log else 100),
    drawn,
    marks,
  )
