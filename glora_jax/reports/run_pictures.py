"""The pictures of a report, each drawn from arrays into one PNG: subnet, search, front, training, confusion, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, patches, ticker

from glora_jax.method import genomes, space
from glora_jax.method.space import Spec
from glora_jax.reports.drawing import panels, save
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import pareto_front

MATRIX_CLASSES = 40  # more do not fit into a confusion matrix that can be read
PAIRS = 20  # shown in its place
_TEAL, _RED = '#5aa7a7', '#c0392b'
_STAGES = {
  'baselines/linear': 'linear probe',
  'finetune': 'winner, finetuned',
  'finetune_choice': 'winner, to choose the epochs',
}


def draw_structure(path: str, spec: Spec, genome: np.ndarray) -> None:
  """The allele of every tensor in every layer as a coloured grid, with the parameters of each layer above."""
  ranks = sorted({rank for layer in spec for rank in layer.space.ranks})
  kinds = ['none', 'constant', 'vector', *(f'lora{rank}' for rank in ranks)]
  palette = [
    '#f2f2f2',
    '#f6c667',
    '#5aa7a7',
    *matplotlib.colormaps['Purples'](np.linspace(0.55, 0.95, len(ranks))),
  ]
  names = [
    [layer.space.names(t)[code] for t, code in zip(space.TENSORS, row, strict=True)]
    for layer, row in zip(spec, genome, strict=True)
  ]
  image = np.array([[kinds.index(name) for name in row] for row in names]).T  # [tensor, layer]
  costs = spec.cost_table[np.arange(len(spec))[:, None], np.arange(5), genome].sum(1)

  figure, (bars, grid) = panels(
    2, 1, figsize=(max(6, 0.42 * len(spec) + 2), 4.6), sharex=True, height_ratios=[1, 2.2]
  )
  bars.bar(range(len(spec)), costs, color='#555555', width=0.8)
  bars.set_ylabel('trained\nparameters')
  bars.spines[['top', 'right']].set_visible(False)
  bars.set_title(f'The chosen subnet: {int(costs.sum()):,} trained parameters', loc='left')
  grid.imshow(
    image, cmap=colors.ListedColormap(palette), vmin=-0.5, vmax=len(kinds) - 0.5, aspect='auto'
  )
  grid.set_yticks(range(5), ['A  scale W', 'B  shift W', 'C  prompt', 'D  scale b', 'E  shift b'])
  grid.set_xticks(range(len(spec)), [layer.name for layer in spec], rotation=90, fontsize=7)
  grid.set_xticks(np.arange(len(spec) + 1) - 0.5, minor=True)
  grid.set_yticks(np.arange(6) - 0.5, minor=True)
  grid.grid(which='minor', color='white', linewidth=1.5)
  grid.tick_params(which='both', length=0)
  grid.spines[:].set_visible(False)
  handles = [
    patches.Patch(facecolor=color, edgecolor='#999999', label=kind.replace('lora', 'LoRA, rank '))
    for kind, color in zip(kinds, palette, strict=True)
  ]
  figure.legend(handles=handles, loc='outside lower center', ncols=len(kinds), frameon=False)
  save(figure, path, bbox_inches='tight')


def draw_search(
  path: str, archive: Archive, num_images: int, volumes: Sequence[float], warning: str = ''
) -> None:
  """Every scored subnet by generation, with the generation's mean and the best so far; and the hypervolume of the front."""
  figure, axes = panels(1, 3, figsize=(13, 3.8))
  axes[2].plot(np.unique(archive.generation), volumes, 'o-', color='#8e6bb0')
  axes[2].set(xlabel='generation', ylabel='hypervolume of the front')
  axes[2].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axes[2].spines[['top', 'right']].set_visible(False)
  number, archive = len(archive), archive.scored()
  generations = np.unique(archive.generation)
  for axis, values, best, label in (
    (axes[0], 100 * archive.correct / num_images, np.maximum, 'accuracy in %'),
    (axes[1], archive.loss / num_images, np.minimum, 'loss'),
  ):
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(archive))
    axis.scatter(
      archive.generation + jitter,
      values,
      s=8,
      color='#5aa7a7',
      alpha=0.45,
      linewidths=0,
      label='one subnet',
    )
    axis.plot(
      generations,
      [values[archive.generation == g].mean() for g in generations],
      color='#555555',
      label='mean of the generation',
    )
    ends = [best.reduce(values[archive.generation <= g]) for g in generations]
    axis.step(generations, ends, where='mid', color='#c0392b', linewidth=2, label='best so far')
    axis.set(xlabel='generation', ylabel=label)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].legend(frameon=False, loc='lower right')
  stopped = f', {number - len(archive):,} of them stopped early' if number > len(archive) else ''
  axes[0].set_title(f'{number:,} subnets on {num_images} images{stopped}{warning}', loc='left')
  save(figure, path, bbox_inches='tight')


def draw_pareto(
  path: str,
  spec: Spec,
  archive: Archive,
  num_images: int,
  result: dict[str, Any],
  presets: dict[str, dict[str, float]],
  warning: str = '',
) -> None:
  """Error against trained parameters of all scored subnets, their front, the winner, and the presets; supernet weights."""
  archive = archive.scored()
  params = genomes.count_params(spec, archive.genomes)
  error = 100 * (1 - archive.correct / num_images)
  front = pareto_front(params, error)
  figure, axis = panels(figsize=(7, 4.4))
  axis.scatter(params, error, s=10, color='#bbbbbb', linewidths=0, label='scored in the search')
  axis.step(
    params[front], error[front], where='post', color='#5aa7a7', linewidth=2, label='front of these'
  )
  for place, (name, point) in enumerate(
    sorted(presets.items(), key=lambda item: item[1]['params'])
  ):
    axis.plot(point['params'], 100 * (1 - point['accuracy']), 'D', color='#8e6bb0', markersize=6)
    axis.annotate(
      name,
      (point['params'], 100 * (1 - point['accuracy'])),
      textcoords='offset points',
      xytext=(6, 5 if place % 2 else -11),
      fontsize=8,
    )
  winner = np.flatnonzero((archive.genomes == np.array(result['winner']['genome'])).all((1, 2)))
  axis.plot(params[winner], error[winner], '*', color='#c0392b', markersize=16, label='winner')
  if result['budget'] is not None:
    axis.axvline(result['budget'], color='#555555', linestyle='--', linewidth=1, label='budget')
  axis.plot([], [], 'D', color='#8e6bb0', label='presets')
  axis.set(xlabel='trained parameters, head not counted', ylabel='error in %')
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  axis.set_xlim(left=-0.02 * max(params.max(), *(p['params'] for p in presets.values())))
  axis.spines[['top', 'right']].set_visible(False)
  axis.legend(frameon=False)
  axis.set_title(f"Subnets with the supernet's weights, {num_images} images{warning}", loc='left')
  save(figure, path, bbox_inches='tight')


def draw_training(path: str, metrics: str) -> None:
  """Loss and accuracy of every training stage against epochs; dashed where a stage was also measured on the validation images.

  Args:
    path: of the PNG.
    metrics: of `metrics.jsonl`.
  """
  with open(metrics) as file:
    entries = [json.loads(line) for line in file]
  figure, axes = panels(1, 2, figsize=(11, 3.8))
  stages = list(dict.fromkeys(entry['stage'] for entry in entries))
  for stage, color in zip(
    stages,
    matplotlib.colormaps['tab10' if len(stages) <= 10 else 'tab20'].colors * len(stages),
    strict=False,
  ):
    lines = [entry for entry in entries if entry['stage'] == stage]
    title = _STAGES.get(stage, stage.removeprefix('baselines/'))
    for axis, name, scale in zip(axes, ('loss', 'accuracy'), (1, 100), strict=True):
      for kind, style, label in (
        (name, '-', title),
        (f'val_{name}', '--', 'its validation images'),
      ):
        points = [(entry['epoch'], scale * entry[kind]) for entry in lines if kind in entry]
        if points:
          axis.plot(
            *zip(*points, strict=True),
            style,
            color=color,
            label=label,
            linewidth=1.2,
            marker='.' if len(points) < 20 else None,
          )
  axes[0].set(xlabel='epoch', ylabel='loss', yscale='log')
  lowest, highest = axes[0].get_ylim()
  axes[0].yaxis.set_major_formatter('{x:g}')
  if highest < 100 * lowest:
    axes[0].yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axes[0].yaxis.set_minor_formatter('{x:g}')
  axes[1].set(xlabel='epoch', ylabel='accuracy in %')
  for axis in axes:
    axis.spines[['top', 'right']].set_visible(False)
  figure.legend(*axes[0].get_legend_handles_labels(), loc='outside right center', frameon=False)
  save(figure, path, bbox_inches='tight')


def confused_pairs(matrix: np.ndarray) -> list[tuple[int, int, int]]:
  """(true class, class it was taken for, how often) of a confusion matrix, int [true, predicted]; the most frequent first."""
  errors = matrix - np.diag(np.diag(matrix))
  true, predicted = np.nonzero(errors)
  return sorted(
    ((int(t), int(p), int(errors[t, p])) for t, p in zip(true, predicted, strict=True)),
    key=lambda pair: (-pair[2], pair),
  )


def draw_confusion(
  path: str, classes: Sequence[str], matrix: np.ndarray, warning: str = ''
) -> None:
  """Which class was taken for which: the whole matrix of up to `MATRIX_CLASSES` classes, of more the most confused pairs.

  Args:
    path: of the PNG.
    classes: their names.
    matrix: int [true, predicted], numbers of images.
    warning: for the title.
  """
  if len(classes) > MATRIX_CLASSES:
    return _draw_pairs(path, classes, matrix, warning)
  number, of_class, names = len(classes), matrix.sum(1), [_short(name) for name in classes]
  shares = matrix / np.maximum(of_class, 1)[:, None]
  diagonal = np.eye(number, dtype=bool)
  side = max(3, 0.27 * number)
  figure, axis = panels(figsize=(side + 2.2, side + 1.2))
  # Two scales, since the errors of a good model would vanish beside its right answers.
  most = max(shares[~diagonal].max(initial=0), 1e-9)
  axis.imshow(np.ma.masked_where(~diagonal, shares), cmap=_fade(_TEAL), vmin=0, vmax=1)
  axis.imshow(np.ma.masked_where(diagonal, shares), cmap=_fade(_RED), vmin=0, vmax=most)
  size = 8 if number <= 20 else 5.5
  for (row, column), count in np.ndenumerate(matrix):
    if count:
      dark = shares[row, column] > (0.6 if row == column else 0.6 * most)
      axis.text(
        column,
        row,
        f'{count}',
        ha='center',
        va='center',
        fontsize=size if count < 1000 or number <= 10 else 0.7 * size,
        color='white' if dark and row != column else '#222222',
      )
  found = [
    f'{100 * share:.0f}%' if count else 'none'
    for share, count in zip(np.diag(shares), of_class, strict=True)
  ]
  axis.set_yticks(
    range(number),
    [f'{name}  {share}' for name, share in zip(names, found, strict=True)],
    fontsize=size + 0.5,
    parse_math=False,
  )
  axis.set_xticks(
    range(number),
    names,
    fontsize=size + 0.5,
    rotation=90 if max(map(len, names)) > 2 else 0,
    parse_math=False,
  )
  axis.set_xticks(np.arange(number + 1) - 0.5, minor=True)
  axis.set_yticks(np.arange(number + 1) - 0.5, minor=True)
  axis.grid(which='minor', color='#e4e4e4', linewidth=0.6)
  axis.tick_params(which='both', length=0)
  axis.spines[:].set_visible(False)
  axis.set(xlabel='answer of the model', ylabel='true class, and how much of it was found')
  axis.set_title(f'{matrix.sum():,} test images{warning}', loc='left', fontsize=10, wrap=True)
  save(figure, path, bbox_inches='tight')


def _draw_pairs(path, classes, matrix, warning):
  pairs = confused_pairs(matrix)[:PAIRS]
  figure, axis = panels(figsize=(8, 1.2 + 0.26 * max(len(pairs), 2)))
  axis.barh(range(len(pairs)), [count for *_, count in pairs], color=_RED, height=0.7)
  labels = [
    f'{_short(classes[true], 32)}, taken for {_short(classes[predicted], 32)}'
    for true, predicted, _ in pairs
  ]
  axis.set_yticks(range(len(pairs)), labels, fontsize=8, parse_math=False)
  for place, (true, _, count) in enumerate(pairs):
    axis.text(count, place, f' {count} of {matrix[true].sum():,}', va='center', fontsize=8)
  axis.set_ylim(max(len(pairs), 1) - 0.4, -0.6)
  axis.set_xlim(0, 1.2 * max((count for *_, count in pairs), default=1))
  axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axis.set_xlabel('test images')
  axis.spines[['top', 'right']].set_visible(False)
  title = (
    f'The {len(pairs)} most confused pairs of {len(classes):,} classes'
    if pairs
    else f'No two of {len(classes):,} classes were confused'
  )
  axis.set_title(f'{title}{warning}', loc='left', fontsize=10)
  save(figure, path, bbox_inches='tight')


def draw_errors(
  path: str,
  images: np.ndarray,
  true: Sequence[str],
  answered: Sequence[str],
  probabilities: Sequence[float],
) -> None:
  """Thumbnails, above each its true class, and after an arrow the answer and its probability.

  Args:
    path: of the PNG.
    images: uint8 [n, height, width, 3], n at least 1.
    true, answered, probabilities: n each.
  """
  columns = min(6, len(images))
  rows = -(-len(images) // columns)
  figure, axes = panels(rows, columns, figsize=(1.75 * columns, 2.15 * rows), squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  for axis, image, *said in zip(axes.flat, images, true, answered, probabilities, strict=False):
    axis.imshow(image, interpolation='nearest' if len(image) < 100 else 'antialiased')
    axis.set_title(
      f'{_short(said[0])}\n→ {_short(said[1], 17)} ({100 * said[2]:.1f}%)',
      fontsize=8,
      parse_math=False,
    )
  save(figure, path, bbox_inches='tight')


def _short(name, length=24):
  return name if len(name) <= length else name[: length - 1] + '…'


def _fade(color):
  return colors.LinearSegmentedColormap.from_list('fade', ['#ffffff', color])
