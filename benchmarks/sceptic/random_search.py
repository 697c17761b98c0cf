"""Question a: is the search better than chance?"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from tqdm.auto import tqdm

from benchmarks.sceptic import display
from benchmarks.sceptic.display import METRICS, TITLES, Answer
from benchmarks.sceptic.finished_run import FinishedRun, diagnostic_key, measure
from benchmarks.sceptic.statistics import mean_and_spread
from glora_jax.method.genomes import check_budget
from glora_jax.reports import drawing, markdown
from glora_jax.runs.run import Run
from glora_jax.search import guidance
from glora_jax.search.evolution import Evolution, evolve

SEARCH_KEY = 100  # purpose of the first search's random key


def answer(finished: FinishedRun, seeds: int) -> Answer:
  """The winners of searches, of which the run's own is the first, and of random ones as long."""
  run, archive = finished.run, finished.archive
  own = dataclasses.replace(run.settings.search, stop_early=False)  # which selects the same
  random = dataclasses.replace(own, mode='random', mutations=0, crossovers=0)
  archives = {'searched': [archive], 'random': []}
  plans = [
    (name, settings, number)
    for number in range(seeds)
    for name, settings in (('searched', own), ('random', random))
  ]
  options = _search_options(run, finished.supernet, own)
  for name, settings, number in tqdm(plans[1:], desc='a. searches', unit='search'):
    key = diagnostic_key(run, SEARCH_KEY + number)
    found = evolve(run.adapted.spec, key=key, settings=settings, **options)
    archives[name].append(found)
  winners = {}
  for name, found in archives.items():
    scores = measure(run, finished.supernet, [each.best(own.fitness) for each in found])
    winners[name] = [
      {'evaluations': len(each), **score} for each, score in zip(found, scores, strict=True)
    ]
  summary = {name: mean_and_spread(rows) for name, rows in winners.items()}
  difference = {
    metric: summary['searched'][metric]['mean'] - summary['random'][metric]['mean']
    for metric in METRICS
  }
  return {**winners, 'mean_and_spread': summary, 'searched_minus_random': difference}


def _search_options(run: Run, variables: Any, settings: Evolution) -> dict[str, Any]:
  """What all searches share: scores of the supernet's subnets, the budget, estimates if guided."""

  def score(genomes):
    return run.score(variables, genomes, 'val')

  options = {'score': score, 'budget': check_budget(run.settings.budget), 'progress': False}
  if settings.mode == 'guided':
    guide = guidance.make_guide(run.adapted, run.preprocess, fitness=settings.fitness)
    options['guide'] = lambda genome: guide(variables, jnp.asarray(genome), *run.data('val'))
  return options


def rows(searches: Answer) -> list[list[str]]:
  """A row for the winners of each kind of search."""
  titles = {
    'searched': f'winner of a search, mean of {len(searches["searched"])}',
    'random': f'best of as many random ones, mean of {len(searches["random"])}',
  }
  return [
    [title, *display.means(searches['mean_and_spread'][name])] for name, title in titles.items()
  ]


def section(searches: Answer) -> str:
  """The answer in Markdown."""
  better = searches['searched_minus_random']
  each_search = [
    [
      f'{name} {index}',
      f'{winner["evaluations"]:,}',
      f'{winner["params"]:,}',
      *display.numbers(winner),
    ]
    for name in ('searched', 'random')
    for index, winner in enumerate(searches[name], 1)
  ]
  return f"""## a. Is the search better than chance?

The winner of a search less the best of as many random subnets, on average:
{display.points(better['val_accuracy'])} points of validation and
{display.points(better['test_accuracy'])} of test accuracy, {display.loss(better['val_loss'])} of
validation and {display.loss(better['test_loss'])} of test loss. All searches use this run's one
supernet, so the spread is that of searching alone, not of training.

{markdown.table(('', *TITLES), rows(searches))}

Each of them; 'searched 1' is the run's own winner:

{markdown.table(('', 'evaluations', 'parameters', *TITLES), each_search)}
"""


def draw(axis: Axes, searches: Answer) -> None:
  """The winners of searches and of random searches, on both kinds of images."""
  palette, ticks = drawing.palette(), {}
  for place, split in enumerate(('val', 'test')):
    kinds = (('random', palette.grey, 'best of random'), ('searched', palette.teal, 'search'))
    for side, (name, color, label) in enumerate(kinds):
      values = [100 * winner[f'{split}_accuracy'] for winner in searches[name]]
      x, mean = 3 * place + side, np.mean(values)
      spread_x = x + np.linspace(-0.15, 0.15, len(values))
      axis.scatter(spread_x, values, s=55, color=color, alpha=0.75, linewidths=0, zorder=3)
      axis.hlines(mean, x - 0.3, x + 0.3, color=color, linewidth=2.5)
      axis.annotate(f'{mean:.1f}', (x + 0.32, mean), va='center', fontsize=10, color=palette.dim)
      if name == 'searched':
        own_x = x - 0.15 if len(values) > 1 else x
        display.draw_star(axis, own_x, values[0], None if place else 'this run')
      ticks[x] = f'{label}\n{split}'
  axis.set_xticks(list(ticks), list(ticks.values()))
  axis.set_xlim(-0.7, 4.9)
  axis.set_ylabel('accuracy in %')
  axis.legend(frameon=False, loc='best')
  better = searches['searched_minus_random']
  display.set_title(
    axis,
    'a. Better than chance?',
    f'search less random, equal evaluations: {display.points(better["val_accuracy"])} points of '
    f'val, {display.points(better["test_accuracy"])} of test',
  )
