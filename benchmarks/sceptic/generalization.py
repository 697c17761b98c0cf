"""Question c: did the search fit its images?"""

import numpy as np
from matplotlib.axes import Axes

from benchmarks.sceptic import display
from benchmarks.sceptic.display import METRICS, TITLES, Answer
from benchmarks.sceptic.finished_run import FinishedRun, measure
from benchmarks.sceptic.statistics import mean_and_spread, rank_correlation
from glora_jax.reports import drawing, markdown

GAPS = ('accuracy_gap', 'loss_gap')


def answer(finished: FinishedRun) -> Answer:
  """The first and the last generation of the search, on images that it saw and on others."""
  run, archive = finished.run, finished.archive
  last = int(archive.generation.max())
  result: Answer = {'generation': {'first': 0, 'last': last}}
  for name, number in result['generation'].items():
    genomes = archive.genomes[archive.generation == number]
    subnets = measure(run, finished.supernet, genomes, f'c. {name} generation')
    result[name] = {
      'mean_and_spread': mean_and_spread([with_gaps(subnet) for subnet in subnets]),
      'subnets': subnets,
      'correlations': {
        kind: rank_correlation(
          [subnet[f'val_{kind}'] for subnet in subnets],
          [subnet[f'test_{kind}'] for subnet in subnets],
        )
        for kind in ('accuracy', 'loss')
      },
    }
  [winner] = measure(run, finished.supernet, [finished.winner])
  result['winner'] = with_gaps(winner)
  # Over the random generation, whose gap is no fault of the search.
  first = result['first']['mean_and_spread']
  result['winner_over_first'] = {
    name: result['winner'][name] - first[name]['mean'] for name in (*METRICS, *GAPS)
  }
  return result


def with_gaps(scores: dict[str, float]) -> dict[str, float]:
  """Scores of a subnet with how much validation flatters it."""
  return {
    **scores,
    'accuracy_gap': scores['val_accuracy'] - scores['test_accuracy'],
    'loss_gap': scores['test_loss'] - scores['val_loss'],
  }


def rows(fit: Answer) -> list[list[str]]:
  """A row for the mean of each generation, and one for the winner."""
  generations = [
    [
      f'{_generation_title(fit, name)}, mean of {len(fit[name]["subnets"])}',
      *display.means(fit[name]['mean_and_spread']),
    ]
    for name in ('first', 'last')
  ]
  return [*generations, ['winner, as searched', *display.numbers(fit['winner'])]]


def _generation_title(fit: Answer, name: str) -> str:
  return f'generation {fit["generation"][name]}'


def section(fit: Answer, val_images: int) -> str:
  """The answer in Markdown."""
  over = fit['winner_over_first']
  gaps = {
    f'{_generation_title(fit, name)}, mean': {
      gap: fit[name]['mean_and_spread'][gap]['mean'] for gap in GAPS
    }
    for name in ('first', 'last')
  }
  gaps |= {'winner, as searched': fit['winner'], 'winner over generation 0': over}
  gap_rows = [
    [name, display.points(scores['accuracy_gap']), display.loss(scores['loss_gap'])]
    for name, scores in gaps.items()
  ]
  within = [
    [
      _generation_title(fit, name),
      *(
        display.correlation(fit[name]['correlations'][kind][coefficient])
        for kind in ('accuracy', 'loss')
        for coefficient in ('spearman', 'kendall')
      ),
    ]
    for name in ('first', 'last')
  ]
  coefficients = ('accuracy, Spearman', 'accuracy, Kendall', 'loss, Spearman', 'loss, Kendall')
  fitted = f'{display.points(over["accuracy_gap"])} points and {display.loss(over["loss_gap"])}'
  return f"""## c. Did the search fit its {val_images} images?

From the mean of the random generation to the winner, accuracy changed by
{display.points(over['val_accuracy'])} points on validation and by
{display.points(over['test_accuracy'])} on test; loss changed by
{display.loss(over['val_loss'])} and {display.loss(over['test_loss'])}. What validation gained and
test did not is how much the search fit its images: {fitted} of loss.

{markdown.table(('', *TITLES), rows(fit))}

The gap, how much validation flatters: validation accuracy less test accuracy, and test loss less
validation loss.

{markdown.table(('', 'accuracy', 'loss'), gap_rows)}

Rank correlation of validation and test across a generation:

{markdown.table(('', *coefficients), within)}
"""


def draw(axis: Axes, fit: Answer) -> None:
  """Validation against test loss; below the diagonal validation is the harder one."""
  palette = drawing.palette()
  for name, color in (('first', palette.grey), ('last', palette.teal)):
    x, y = (
      [subnet[metric] for subnet in fit[name]['subnets']] for metric in ('val_loss', 'test_loss')
    )
    label = _generation_title(fit, name) + (', random' if name == 'first' else '')
    axis.scatter(x, y, s=45, color=color, alpha=0.75, linewidths=0, label=label, zorder=3)
    dark = drawing.blend(color, palette.ink, 0.5)
    axis.plot(np.mean(x), np.mean(y), '+', color=dark, markersize=18, markeredgewidth=3, zorder=4)
  cross = {'markersize': 11, 'markeredgewidth': 2, 'linestyle': '', 'label': 'mean'}
  axis.plot([], [], '+', color=palette.dim, **cross)
  display.draw_star(axis, fit['winner']['val_loss'], fit['winner']['test_loss'], 'winner')
  low = min(axis.get_xlim()[0], axis.get_ylim()[0])
  high = max(axis.get_xlim()[1], axis.get_ylim()[1])
  axis.plot([low, high], [low, high], '--', color=palette.grey, linewidth=1, label='no gap')
  axis.set(xlabel='validation loss', ylabel='test loss')
  axis.legend(frameon=False, loc='best')
  over = fit['winner_over_first']
  display.set_title(
    axis,
    'c. Did the search fit its images?',
    f'loss from the random mean to the winner: {display.loss(over["val_loss"])} val, '
    f'{display.loss(over["test_loss"])} test',
  )
