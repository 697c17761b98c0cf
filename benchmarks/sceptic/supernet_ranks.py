"""Question b: does the supernet rank subnets as training them alone does?"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes

from benchmarks.sceptic import display
from benchmarks.sceptic.display import METRICS, TITLES, Answer
from benchmarks.sceptic.finished_run import FinishedRun, diagnostic_key, measure
from benchmarks.sceptic.statistics import partial_correlation, rank_correlation
from glora_jax.method.genomes import (
  canonicalize,
  check_budget,
  count_params,
  largest_genome,
  random_genomes,
  smallest_genome,
)
from glora_jax.method.space import Spec
from glora_jax.reports import markdown
from glora_jax.runs.run import Run
from glora_jax.training import loop
from glora_jax.training.losses import subnet_loss

SAMPLE_KEY, ALONE_KEY = 200, 201  # purposes of random keys


def spread_sizes(
  rng: np.random.Generator, spec: Spec, number: int, budget: int | None
) -> np.ndarray:
  """Random subnets within the budget, the n-th within its n-th part, int8 [number, layer, 5]."""
  least = count_params(spec, smallest_genome(spec))
  most = count_params(spec, largest_genome(spec))
  limits = np.linspace(least, most if budget is None else min(budget, most), number + 1)[1:]
  genomes = [random_genomes(rng, spec, 1, math.floor(limit)) for limit in limits]
  return canonicalize(spec, np.concatenate(genomes))


def train_alone(run: Run, genome: np.ndarray, title: str) -> Any:
  """Variables of a subnet trained by the supernet's recipe, from the same start, in its order."""
  subnet = run.adapted.fix(genome)
  trainable, frozen = subnet.split(run.variables)
  loss_fn = subnet_loss(subnet, run.augmented, mix=run.mix, train=True)
  recipe, data = run.settings.supernet, run.data(run.train_split)
  state = loop.fit(
    loss_fn, trainable, frozen, *data, recipe, diagnostic_key(run, ALONE_KEY), title=title
  )
  return subnet.join(state.trainable, frozen)


def answer(finished: FinishedRun, number: int) -> Answer:
  """Random subnets, and the winner beside them, with the supernet's weights and trained alone."""
  run = finished.run
  rng = np.random.default_rng(np.asarray(jax.random.key_data(diagnostic_key(run, SAMPLE_KEY))))
  sample = spread_sizes(rng, run.adapted.spec, number, check_budget(run.settings.budget))
  genomes = [*sample, finished.winner]
  shared = measure(run, finished.supernet, genomes, 'b. supernet scores')
  alone = []
  for index, genome in enumerate(genomes):
    trained = train_alone(run, genome, f'b. alone {index + 1}/{len(genomes)}')
    alone += measure(run, trained, [genome])
  *subnets, winner = [
    {
      'params': with_supernet['params'],
      'supernet': {metric: with_supernet[metric] for metric in METRICS},
      'alone': {metric: by_itself[metric] for metric in METRICS},
    }
    for with_supernet, by_itself in zip(shared, alone, strict=True)
  ]
  recipe = run.settings.supernet
  steps = recipe.epochs * recipe.steps_per_epoch(len(run.data(run.train_split).labels))
  correlations = {metric: _correlate(subnets, metric) for metric in METRICS}
  return {'steps': steps, 'subnets': subnets, 'winner': winner, 'correlations': correlations}


def _correlate(subnets: Sequence[Answer], metric: str) -> Answer:
  """What the supernet and the number of parameters say of a metric of subnets trained alone.

  What the search can see is the validation images; what it is for, the subnet on others.
  """
  params = [subnet['params'] for subnet in subnets]
  seen = [subnet['supernet'][metric.replace('test', 'val')] for subnet in subnets]
  wanted = [subnet['alone'][metric] for subnet in subnets]
  by_supernet, by_params = rank_correlation(seen, wanted), rank_correlation(params, wanted)
  size = rank_correlation(params, seen)['spearman']
  left = partial_correlation(by_supernet['spearman'], size, by_params['spearman'])
  return {'supernet': by_supernet, 'params': by_params, 'supernet_given_params': left}


def rows(ranks: Answer) -> list[list[str]]:
  """A row for each correlation."""
  correlations = ranks['correlations']
  cells = [
    [
      f'{kind.capitalize()}, {title} against alone',
      *(_with_p_value(correlations[metric][predictor], kind) for metric in METRICS),
    ]
    for predictor, title in (('supernet', 'supernet'), ('params', 'parameters'))
    for kind in ('spearman', 'kendall')
  ]
  left = [display.correlation(correlations[metric]['supernet_given_params']) for metric in METRICS]
  return [*cells, ['Spearman, supernet against alone, size held still', *left]]


def _with_p_value(correlation: Answer, kind: str) -> str:
  """A correlation with the probability of one as large by chance."""
  p = correlation[f'{kind}_p']
  return display.correlation(correlation[kind]) + ('' if p is None else f' (p {p:.2g})')


def section(ranks: Answer, train_images: int) -> str:
  """The answer in Markdown."""
  named = {f'random {index}': subnet for index, subnet in enumerate(ranks['subnets'], 1)}
  each_subnet = [
    [
      name,
      f'{subnet["params"]:,}',
      *(
        display.number(subnet[weights][metric], metric)
        for metric in METRICS
        for weights in ('supernet', 'alone')
      ),
    ]
    for name, subnet in {**named, 'winner': ranks['winner']}.items()
  ]
  columns = [f'{title}, {letter}' for title in TITLES for letter in 'ST']
  return f"""## b. Does the supernet rank subnets as training them alone does?

{len(ranks['subnets'])} random subnets of all sizes within the budget were scored with the
supernet's weights, and then trained alone: each from the same start, on the same {train_images}
images, by the supernet's recipe of {ranks['steps']:,} steps. A correlation compares what the
supernet says on the validation images, or the number of parameters, with the subnet trained alone
on the images that the column names. A correlation of +1 is the same order; more parameters with
less loss count as negative. With so few subnets it is uncertain by several tenths.

{markdown.table(('', *TITLES), rows(ranks))}

Each subnet, with the supernet's weights (S) and trained alone (T); the winner is not among the
correlated:

{markdown.table(('', 'parameters', *columns), each_subnet)}
"""


def draw(axis: Axes, ranks: Answer) -> None:
  """The loss with the supernet's weights against that of the same subnet trained alone."""
  x = [subnet['supernet']['val_loss'] for subnet in ranks['subnets']]
  y = [subnet['alone']['val_loss'] for subnet in ranks['subnets']]
  params = [subnet['params'] for subnet in ranks['subnets']]
  points = axis.scatter(x, y, c=params, cmap='viridis_r', s=80, linewidths=0, zorder=3)
  winner = ranks['winner']
  display.draw_star(
    axis, winner['supernet']['val_loss'], winner['alone']['val_loss'], 'winner of the search'
  )
  bar = axis.figure.colorbar(
    points, ax=axis, format=ticker.StrMethodFormatter('{x:,.0f}'), pad=0.02
  )
  bar.set_label('trained parameters')
  bar.outline.set_visible(False)
  axis.set(
    xlabel="validation loss with the supernet's weights", ylabel='validation loss, trained alone'
  )
  axis.legend(frameon=False, loc='best')
  correlations = ranks['correlations']['val_loss']
  by_supernet, by_params = (
    display.correlation(correlations[predictor]['spearman']) for predictor in ('supernet', 'params')
  )
  display.set_title(
    axis,
    'b. Does the supernet rank?',
    f'{len(x)} random subnets, Spearman {by_supernet}; parameters against loss {by_params}',
  )
