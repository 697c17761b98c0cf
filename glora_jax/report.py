"""What a run says of itself: `report.md` and its pictures, drawn from results alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colors, patches, ticker

from glora_jax import space
from glora_jax.data.task import Task
from glora_jax.files import whole
from glora_jax.search import Archive, pareto_front
from glora_jax.space import Spec

PAPER_LABEL = ("PROTOCOL 'paper': the subnet was SEARCHED ON THE TEST SET and trained on train+val. "
               'The test accuracies below reproduce how the paper was probably made; they estimate nothing unseen.')
_TITLES = {'linear': 'linear probe', 'winner_supernet': 'winner, as searched', 'winner': 'winner, finetuned'}


def table(result: dict[str, Any]) -> str:
  """The accuracies as a Markdown table, with the paper protocol's warning where it is due."""
  rows = {name: result[name] for name in ('linear', *result['presets'], 'winner_supernet', 'winner')
          if name in result} | result['presets']
  percent = lambda value: 'trained on' if value is None else f'{100 * value:.1f}'
  lines = ['| subnet | trained params (head apart) | val accuracy | test accuracy |', '|---|---:|---:|---:|']
  lines += [f"| {_TITLES.get(name, name)} | {row['params']:,} | {percent(row['val_accuracy'])} | {percent(row['test_accuracy'])} |"
            for name, row in rows.items()]
  return '\n'.join(([f'**{PAPER_LABEL}**', ''] if result['protocol'] == 'paper' else []) + lines)


def write(workdir: str, result: dict[str, Any], spec: Spec, archive: Archive, task: Task, num_images: int, fitness: str,
          presets: dict[str, dict[str, float]]) -> None:
  """Writes `report.md`, `structure.png`, `search.png`, `pareto.png` and `training.png` into the workdir.

  Args:
    workdir: of the run.
    result: the content of `result.json`.
    spec: of the genomes.
    archive: of the search.
    task: what was learned.
    num_images: that the search scored each subnet on.
    fitness: of the search.
    presets: parameters and accuracy of the presets with the supernet's weights, by name; marks in the Pareto plot.
  """
  warning = f' ({PAPER_LABEL.split(":")[0]})' if result['protocol'] == 'paper' else ''
  genome = np.array(result['winner']['genome'])
  draw_structure(os.path.join(workdir, 'structure.png'), spec, genome)
  draw_search(os.path.join(workdir, 'search.png'), archive, num_images, result['hypervolume'], warning)
  draw_pareto(os.path.join(workdir, 'pareto.png'), spec, archive, num_images, result, presets, warning)
  draw_training(os.path.join(workdir, 'training.png'), os.path.join(workdir, 'metrics.jsonl'))
  seconds = ', '.join(f'{name} {value:.0f} s' for name, value in result['seconds'].items())
  budget = 'no limit' if result['budget'] is None else f"{result['budget']:,} parameters"
  searched = 'test' if result['protocol'] == 'paper' else 'val'
  protocol = PAPER_LABEL if result['protocol'] == 'paper' else (
      'The supernet was trained on the training images; the search saw the validation images only. The list of subnets was '
      'frozen in `test_list.json` before the test images were read, and nothing but this report reads their outcome.')
  text = f"""# GLoRA on {task.name}: {100 * result['winner']['test_accuracy']:.1f}% with {result['winner']['params']:,} trained parameters

A frozen ViT (`{result['weights']}`, normalization `{result['normalization']}`) got five support tensors for each of its
{len(spec)} linear layers (largest subnet {space.count_params(spec, spec.num_codes - 1):,} parameters). A supernet of all their forms was
trained, and {result['evaluations']:,} subnets were scored on {num_images} {searched} images under a budget of {budget}, by {fitness}.
The winner was then folded into the base weights: `folded/` is a plain ViT, with no trace of GLoRA (largest
difference of a logit: {result['fold_max_abs_diff']:.1e}).
{_stopped(result)}
{table(result)}

Images: {result['data']['origin']}, resized by '{result['data']['resize']}'. {' '.join(result['data']['notes'])}
{protocol} Seed {result['seed']}; {seconds}.

## What was chosen

![The form of every support tensor in every layer](structure.png)

A scales and B shifts the weights, C is a prompt, D scales and E shifts the bias: W' = W + W*A + B, b' = b + b*D + E + C W.

## How it was found

![Accuracy over the generations](search.png)

![Error against trained parameters](pareto.png)

## How it was trained

![Loss of every training stage](training.png)

## Using the folded model

```python
from glora_jax.data import augment, image
from glora_jax.models import weights

model, params, metadata = weights.load('{workdir}/folded')
pixels = image.resize(image.decode('photo.jpg'), metadata['image_size'], '{result['data']['resize']}')
logits = model.apply({{'params': params}}, augment.normalize(pixels[None], metadata['normalization']))
print(metadata['classes'][logits[0].argmax()])
```
"""
  with whole(os.path.join(workdir, 'report.md')) as temporary, open(temporary, 'w') as file:
    file.write(text)


def _stopped(result):
  number, evaluations = result['stopped_early'], result['evaluations']
  return (f'\n{number:,} of the {evaluations:,} were left before their last image, when they could not become parents any more; that '
          'changes nothing of what is selected.\n' if number else '')


def _save(figure, path):
  with whole(path) as temporary:
    figure.savefig(temporary, format='png', dpi=150, bbox_inches='tight')
  plt.close(figure)


def draw_structure(path: str, spec: Spec, genome: np.ndarray) -> None:
  """The allele of every tensor in every layer as a coloured grid, with the parameters of each layer above."""
  ranks = sorted({rank for layer in spec for rank in layer.space.ranks})
  kinds = ['none', 'constant', 'vector', *(f'lora{rank}' for rank in ranks)]
  palette = ['#f2f2f2', '#f6c667', '#5aa7a7', *plt.get_cmap('Purples')(np.linspace(0.55, 0.95, len(ranks)))]
  names = [[layer.space.names(t)[code] for t, code in zip(space.TENSORS, row, strict=True)] for layer, row in zip(spec, genome, strict=True)]
  image = np.array([[kinds.index(name) for name in row] for row in names]).T  # [tensor, layer]
  costs = spec.cost_table[np.arange(len(spec))[:, None], np.arange(5), genome].sum(1)

  figure, (bars, grid) = plt.subplots(
      2, 1, figsize=(max(6, 0.42 * len(spec) + 2), 4.6), sharex=True, height_ratios=[1, 2.2], layout='constrained')
  bars.bar(range(len(spec)), costs, color='#555555', width=0.8)
  bars.set_ylabel('trained\nparameters')
  bars.spines[['top', 'right']].set_visible(False)
  bars.set_title(f'The chosen subnet: {int(costs.sum()):,} trained parameters', loc='left')
  grid.imshow(image, cmap=colors.ListedColormap(palette), vmin=-0.5, vmax=len(kinds) - 0.5, aspect='auto')
  grid.set_yticks(range(5), ['A  scale W', 'B  shift W', 'C  prompt', 'D  scale b', 'E  shift b'])
  grid.set_xticks(range(len(spec)), [layer.name for layer in spec], rotation=90, fontsize=7)
  grid.set_xticks(np.arange(len(spec) + 1) - 0.5, minor=True)
  grid.set_yticks(np.arange(6) - 0.5, minor=True)
  grid.grid(which='minor', color='white', linewidth=1.5)
  grid.tick_params(which='both', length=0)
  grid.spines[:].set_visible(False)
  handles = [patches.Patch(facecolor=color, edgecolor='#999999', label=kind.replace('lora', 'LoRA, rank '))
             for kind, color in zip(kinds, palette, strict=True)]
  figure.legend(handles=handles, loc='outside lower center', ncols=len(kinds), frameon=False)
  _save(figure, path)


def draw_search(path: str, archive: Archive, num_images: int, volumes: Sequence[float], warning: str = '') -> None:
  """Every scored subnet by generation, with the generation's mean and the best so far; and the hypervolume of the front."""
  figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout='constrained')
  axes[2].plot(np.unique(archive.generation), volumes, 'o-', color='#8e6bb0')
  axes[2].set(xlabel='generation', ylabel='hypervolume of the front')
  axes[2].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  axes[2].spines[['top', 'right']].set_visible(False)
  number, archive = len(archive), archive.scored()
  generations = np.unique(archive.generation)
  for axis, values, best, label in (
      (axes[0], 100 * archive.correct / num_images, np.maximum, 'accuracy in %'),
      (axes[1], archive.loss / num_images, np.minimum, 'loss')):
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(archive))
    axis.scatter(archive.generation + jitter, values, s=8, color='#5aa7a7', alpha=0.45, linewidths=0, label='one subnet')
    axis.plot(generations, [values[archive.generation == g].mean() for g in generations], color='#555555', label='mean of the generation')
    ends = [best.reduce(values[archive.generation <= g]) for g in generations]
    axis.step(generations, ends, where='mid', color='#c0392b', linewidth=2, label='best so far')
    axis.set(xlabel='generation', ylabel=label)
    axis.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].legend(frameon=False, loc='lower right')
  stopped = f', {number - len(archive):,} of them stopped early' if number > len(archive) else ''
  axes[0].set_title(f'{number:,} subnets on {num_images} images{stopped}{warning}', loc='left')
  _save(figure, path)


def draw_pareto(path: str, spec: Spec, archive: Archive, num_images: int, result: dict[str, Any],
                presets: dict[str, dict[str, float]], warning: str = '') -> None:
  """Error against trained parameters of all scored subnets, their front, the winner, and the presets; supernet weights."""
  archive = archive.scored()
  params = space.count_params(spec, archive.genomes)
  error = 100 * (1 - archive.correct / num_images)
  front = pareto_front(params, error)
  figure, axis = plt.subplots(figsize=(7, 4.4), layout='constrained')
  axis.scatter(params, error, s=10, color='#bbbbbb', linewidths=0, label='scored in the search')
  axis.step(params[front], error[front], where='post', color='#5aa7a7', linewidth=2, label='front of these')
  for name, point in presets.items():
    axis.plot(point['params'], 100 * (1 - point['accuracy']), 'D', color='#8e6bb0', markersize=6)
    axis.annotate(name, (point['params'], 100 * (1 - point['accuracy'])), textcoords='offset points', xytext=(6, 5), fontsize=8)
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
  _save(figure, path)


def draw_training(path: str, metrics: str) -> None:
  """The loss of every training stage against epochs."""
  with open(metrics) as file:
    entries = [json.loads(line) for line in file]
  figure, axis = plt.subplots(figsize=(7, 3.6), layout='constrained')
  for stage in dict.fromkeys(entry['stage'] for entry in entries):
    of_stage = [entry for entry in entries if entry['stage'] == stage]
    axis.plot([e['epoch'] for e in of_stage], [e['loss'] for e in of_stage], label=stage.replace('baselines/', ''))
  axis.set(xlabel='epoch', ylabel='training loss', yscale='log')
  axis.spines[['top', 'right']].set_visible(False)
  axis.legend(frameon=False)
  _save(figure, path)
