"""The pictures of a run: the chosen subnet, the search, its front, and the training."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colors, patches, ticker
from matplotlib.axes import Axes

from glora_jax.method.space import TENSORS, Spec
from glora_jax.reports.curves import MEANINGS, cloud, progress, structure, training
from glora_jax.reports.drawing import blend, halo, outline_cells, palette, panels, readable_on, save
from glora_jax.search.archive import Archive

MARKERS = ('.', '^', 's')  # the next one where there are more stages than colours
MARKS = 20  # on a curve, at most


def draw_structure(path: str, spec: Spec, genome: np.ndarray) -> None:
  """Draws the form of every tensor in every layer as a grid, and each layer's parameters above.

  Args:
    path: path of the PNG.
    spec: the layers.
    genome: int8 [layer, 5].
  """
  forms = _form_colors(spec)
  chosen = structure(spec, genome)
  costs = [sum(tensor.params for tensor in layer) for layer in chosen]
  figure, (bars, grid) = panels(
    2, 1, figsize=(max(6, 0.42 * len(spec) + 2), 4.6), sharex=True, height_ratios=[1, 2.2]
  )
  bars.bar(range(len(spec)), costs, color=palette().dim, width=0.8)
  bars.set_ylabel('trained\nparameters')
  bars.set_title(f'The chosen subnet: {sum(costs):,} trained parameters', loc='left')

  numbers = {form: number for number, form in enumerate(forms)}
  cells = np.array([[numbers[tensor.form] for tensor in layer] for layer in chosen])
  grid.imshow(
    cells.T,
    cmap=colors.ListedColormap(list(forms.values())),
    vmin=-0.5,
    vmax=len(forms) - 0.5,
    aspect='auto',
  )
  letters = [f'{tensor}  {meaning}' for tensor, meaning in zip(TENSORS, MEANINGS, strict=True)]
  grid.set_yticks(range(5), letters)
  grid.set_xticks(range(len(spec)), [layer.name for layer in spec], rotation=90, fontsize=7)
  outline_cells(grid, (5, len(spec)), color=palette().paper, linewidth=1.5)
  for row, layer in enumerate(chosen):
    for column, tensor in enumerate(layer):
      if tensor.rank:
        _write_rank(grid, row, column, tensor.rank, forms[tensor.form])
  shown = {'LoRA, its rank' if ':' in form else form: color for form, color in forms.items()}
  handles = [
    patches.Patch(facecolor=color, edgecolor=palette().grey, label=label)
    for label, color in shown.items()
  ]
  figure.legend(handles=handles, loc='outside lower center', ncols=len(shown), frameon=False)
  save(figure, path)


def _write_rank(axis: Axes, row: int, tensor: int, rank: str, color: str) -> None:
  style = {'ha': 'center', 'va': 'center', 'fontsize': 'small', 'color': readable_on(color)}
  axis.text(row, tensor, rank, **style)


def _form_colors(spec: Spec) -> dict[str, str]:
  """Every form that a tensor of the spec can have, and its colour, darker for higher ranks."""
  ranks = sorted({rank for layer in spec for rank in layer.space.ranks})
  shades = 0.6 * np.arange(len(ranks))[::-1] / max(len(ranks), 1)
  return {
    'none': palette().blank,
    'constant': palette().yellow,
    'vector': palette().teal,
    **{
      f'lora:{rank}': blend(palette().purple, palette().paper, shade)
      for rank, shade in zip(ranks, shades, strict=True)
    },
  }


def draw_search(
  path: str, archive: Archive, num_images: int, volumes: Sequence[float], warning: str = ''
) -> None:
  """Draws accuracy and loss of every scored subnet by generation, and the hypervolume of the front.

  Args:
    path: path of the PNG.
    archive: the search's.
    num_images: how many images a subnet was scored on.
    volumes: the hypervolume after every generation.
    warning: for the title.
  """
  figure, (accuracy, loss, volume) = panels(1, 3, figsize=(13, 3.8))
  _draw_progress(accuracy, archive.generation, 100 * archive.correct / num_images, np.maximum)
  _draw_progress(loss, archive.generation, archive.loss / num_images, np.minimum)
  volume.plot(np.unique(archive.generation), volumes, 'o-', color=palette().purple)
  for axis, label in (
    (accuracy, 'accuracy in %'),
    (loss, 'loss'),
    (volume, 'hypervolume of the front'),
  ):
    axis.set(xlabel='generation', ylabel=label)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  accuracy.legend(frameon=False, loc='lower right')
  accuracy.set_title(f'{len(archive):,} subnets on {num_images} images{warning}', loc='left')
  save(figure, path, bbox_inches='tight')


def _draw_progress(
  axis: Axes, generation: np.ndarray, values: np.ndarray, better: np.ufunc
) -> None:
  """A point for each subnet, their means, and the best so far.

  Args:
    axis: where to draw.
    generation: int [subnet].
    values: [subnet].
    better: `np.maximum` or `np.minimum`.
  """
  jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
  axis.scatter(
    generation + jitter,
    values,
    s=8,
    color=palette().teal,
    alpha=0.45,
    linewidths=0,
    label='one subnet',
  )
  generations, means, best = progress(generation, values, better)
  axis.plot(generations, means, color=palette().dim, label='mean')
  axis.step(generations, best, where='mid', color=palette().red, linewidth=2, label='best so far')


def draw_pareto(
  path: str,
  spec: Spec,
  archive: Archive,
  num_images: int,
  result: Mapping[str, Any],
  presets: Mapping[str, Mapping[str, float]],
  warning: str = '',
) -> None:
  """Draws error against trained parameters: all scored subnets, their front, winner, and presets.

  Args:
    path: path of the PNG.
    spec: the layers.
    archive: the search's.
    num_images: how many images a subnet was scored on.
    result: content of `result.json`, for the winner and the budget.
    presets: parameters and accuracy of each preset with the supernet's weights, by name.
    warning: for the title.
  """
  params, error, front, winner = cloud(spec, archive, num_images, result['winner']['genome'])
  figure, axis = panels(figsize=(7, 4.4))
  axis.scatter(
    params, error, s=10, color=palette().grey, linewidths=0, label='scored in the search'
  )
  axis.step(
    params[front],
    error[front],
    where='post',
    color=palette().teal,
    linewidth=2,
    label='front of these',
  )
  _draw_presets(axis, presets)
  axis.plot(params[winner], error[winner], '*', color=palette().red, markersize=16, label='winner')
  if result['budget'] is not None:
    axis.axvline(result['budget'], color=palette().dim, linestyle='--', linewidth=1, label='budget')
  axis.plot([], [], 'D', color=palette().purple, label='presets')
  axis.set(xlabel='trained parameters, head not counted', ylabel='error in %')
  axis.xaxis.set_major_formatter(ticker.StrMethodFormatter('{x:,.0f}'))
  largest = max(params.max(), *(preset['params'] for preset in presets.values()))
  axis.set_xlim(left=-0.02 * largest)
  axis.legend(frameon=False)
  axis.set_title(f"Subnets with the supernet's weights, {num_images} images{warning}", loc='left')
  save(figure, path, bbox_inches='tight')


def _draw_presets(axis: Axes, presets: Mapping[str, Mapping[str, float]]) -> None:
  """A diamond for each preset, and its name below or above in turn, so that fewer collide."""
  by_params = sorted(presets.items(), key=lambda preset: preset[1]['params'])
  for place, (name, preset) in enumerate(by_params):
    point = preset['params'], 100 * (1 - preset['accuracy'])
    axis.plot(*point, 'D', color=palette().purple, markersize=6)
    axis.annotate(
      name,
      point,
      textcoords='offset points',
      xytext=(6, 5 if place % 2 else -11),
      fontsize=8,
      path_effects=halo(),
    )


def draw_training(path: str, metrics: str) -> None:
  """Draws loss and accuracy of every training stage against epochs.

  A dashed line shows those of the validation images, where a stage was measured on them too.

  Args:
    path: path of the PNG.
    metrics: path of `metrics.jsonl`.
  """
  figure, (loss, accuracy) = panels(1, 2, figsize=(11, 3.8))
  styles = itertools.cycle(itertools.product(MARKERS, palette().series))
  for (title, measured), (marker, color) in zip(training(metrics).items(), styles, strict=False):
    for prefix, line, label in (('', '-', title), ('val_', '--', 'its validation images')):
      style = {'linestyle': line, 'marker': marker, 'color': color, 'label': label}
      _draw_curve(loss, measured, f'{prefix}loss', 1, style)
      _draw_curve(accuracy, measured, f'{prefix}accuracy', 100, style)
  loss.set(xlabel='epoch', ylabel='loss', yscale='log')
  _name_ticks(loss)
  accuracy.set(xlabel='epoch', ylabel='accuracy in %')
  figure.legend(*loss.get_legend_handles_labels(), loc='outside right center', frameon=False)
  save(figure, path, bbox_inches='tight')


def _draw_curve(
  axis: Axes,
  measured: Sequence[Mapping[str, Any]],
  metric: str,
  scale: float,
  style: Mapping[str, Any],
) -> None:
  """A metric against epochs, where a stage measured it."""
  points = [(line['epoch'], scale * line[metric]) for line in measured if metric in line]
  if points:
    epochs, values = zip(*points, strict=True)
    axis.plot(epochs, values, linewidth=1.2, markevery=-(-len(points) // MARKS), **style)


def _name_ticks(axis: Axes) -> None:
  """Plain numbers along a logarithmic axis, between the decades too where it spans few."""
  axis.yaxis.set_major_formatter('{x:g}')
  lowest, highest = axis.get_ylim()
  if highest < 100 * lowest:
    axis.yaxis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axis.yaxis.set_minor_formatter('{x:g}')
