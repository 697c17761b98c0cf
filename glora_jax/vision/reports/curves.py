"""A run's search and its trainings as charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from glora_jax.method.genomes import count_params
from glora_jax.method.space import Spec
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import pareto_front
from glora_jax.vision.files import read_lines
from glora_jax.vision.reports.charts import Chart, Line, Mark, Rule, axis, steps, thin
from glora_jax.vision.reports.page import SERIES, Blocks, Pair, Result, group_by
from glora_jax.vision.structure_names import SEARCH, stage_title, structure_of

_FEW = 60  # points of a curve, at most, that have tooltips


def search_blocks(result: Result, spec: Spec, archive: Archive | None) -> Blocks:
  """Charts of a search, and how its front grew; empty without a search.

  Args:
    result: see `report.write_run`.
    spec: the layers that the search chose forms for.
    archive: the search's; None without a search.
  """
  if archive is None:
    return []
  split, number = searched_images(result)
  accuracy, volumes = 100 * archive.correct / number, result['hypervolume']
  generation = archive.generation
  generations = np.unique(generation)
  best = [(each, accuracy[generation <= each].max()) for each in generations]
  progress = Chart(
    'Accuracy of the structures by generation',
    axis('generation', [0, *generations], whole=True),
    axis(f'accuracy in % on {number:,} {split} images', accuracy, most=100),
    [
      Line('a structure', 'teal', thin(generation, accuracy), 'dots'),
      Line('mean', 'dim', [(each, accuracy[generation == each].mean()) for each in generations]),
      Line('best so far', 'red', best),
    ],
    [Mark(at, f'generation {at[0]}: best so far {at[1]:.1f}%', 'red') for at in best],
  )
  params, error = count_params(spec, archive.genomes), 100 - accuracy
  front = [_mark('', params[at], error[at], 'teal', 'dot') for at in pareto_front(params, error)]
  presets = [
    _mark(f'{name}: ', found['params'], 100 * (1 - found['accuracy']), 'purple', 'diamond')
    for name, found in result['presets'].items()
  ]
  searched = np.array(result['structures'][SEARCH]['genome'])
  chosen = [
    _mark('chosen: ', params[at], error[at], 'red', 'star')
    for at in np.flatnonzero((archive.genomes == searched).all(axis=(1, 2)))
  ]
  limit = [] if result['budget'] is None else [result['budget']]
  cloud = Chart(
    "Error against parameters, with the supernet's weights",
    axis('trained parameters', [0, *params, *limit, *(mark.at[0] for mark in presets)]),
    axis('error in %', [*error, *(mark.at[1] for mark in presets)], most=100),
    [
      Line('scored', 'grey', thin(params, error), 'dots'),
      Line('Pareto front', 'teal', steps([mark.at for mark in front])),
    ],
    [*front, *presets, *chosen],
    [Rule(value, f'budget, {value:,}', 'dim') for value in limit],
    [('presets', 'purple', 'diamond'), ('chosen', 'red', 'star')],
  )
  grown = f"""
    Structures are scored with the supernet's weights. The hypervolume of the front (the share of
    all pairs of error and parameters that some structure matches or beats) grew from
    {volumes[0]:.3f} after the first generation to {volumes[-1]:.3f} after the last.
  """
  return [Pair([progress, cloud]), grown]


def searched_images(result: Result) -> tuple[str, int]:
  """The split that a search scored structures on, and its number of images."""
  split = 'test' if result['protocol'] == 'paper' else 'val'
  return split, result['data']['images'][split]


def _mark(name: str, params: float, error: float, color: str, shape: str) -> Mark:
  return Mark((params, error), f'{name}{params:,} parameters, {error:.1f}% wrong', color, shape)


class _Measurement(TypedDict):
  stage: str
  epoch: float


def training_blocks(metrics: str, result: Result) -> Blocks:
  """Accuracy and loss of every training stage by epoch, as far as they are finite.

  Args:
    metrics: path of `metrics.jsonl`.
    result: content of `result.json`.
  """
  lines = read_lines(metrics, 'metrics', _Measurement)
  stages = group_by(lines, lambda line: line['stage'])
  charts = [_training_chart(stages, result, metric) for metric in ('accuracy', 'loss')]
  drawn = [chart for chart in charts if chart]
  if not drawn:
    return []
  random = ' The supernet draws random structures at each step.' if 'supernet' in stages else ''
  return [
    Pair(drawn),
    'Solid lines are on training images, with the augmentation of the config except for linear '
    f'probes.{random}',
  ]


def _training_chart(
  stages: Mapping[str, Sequence[Mapping[str, Any]]], result: Result, metric: str
) -> Chart | None:
  """A metric by epoch, dashed on validation images; None if no value can be drawn."""
  is_loss, structures = metric == 'loss', result['structures']
  scale = 1 if is_loss else 100
  lines, marks = [], []
  for number, (stage, measured) in enumerate(stages.items()):
    color, name = f'series-{number % len(SERIES)}', stage_title(stage, structures)
    best = structures.get(structure_of(stage), {}).get('best_epoch')
    for field, kind, split in ((metric, 'line', ''), (f'val_{metric}', 'dashed', ', validation')):
      curve = [
        (line['epoch'], scale * value)
        for line in measured
        if (value := line.get(field)) is not None and (value > 0 or not is_loss)
      ]
      if curve:
        lines.append(Line(name, color, curve, kind))
      for x, y in curve:
        # A compiled call may end some steps after the epoch.
        is_best = kind == 'dashed' and round(x) == best
        if is_best or len(curve) <= _FEW:
          shape = 'star' if is_best else 'hidden' if curve[1:] else 'dot'
          marks.append(Mark((x, y), f'{name}{split}, epoch {x:g}: {y:.4g}', color, shape))
  if not lines:
    return None
  xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
  drawn = {line.kind for line in lines} | {mark.shape for mark in marks}
  legend = [('validation images', 'dim', 'dashed'), ('best epoch', 'dim', 'star')]
  return Chart(
    f'{metric.capitalize()} by epoch',
    axis('epoch', [0, *xs], whole=True),
    axis('loss', ys, is_log=True) if is_loss else axis('accuracy in %', ys, most=100),
    lines,
    marks,
    legend=[each for each in legend if each[-1] in drawn],
  )
