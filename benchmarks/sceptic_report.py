"""What `sceptic` says of its figures: a table, `diagnostics.md` and `diagnostics.png`, all drawn from the content of `diagnostics.json`."""

import os

import numpy as np
from matplotlib import ticker

from glora_jax.reports import drawing

TEAL, RED, GREY, PURPLE, YELLOW = (
  '#5aa7a7',
  '#c0392b',
  '#999999',
  '#8e6bb0',
  '#f6c667',
)  # those of the run's own pictures
COLUMNS = ('val_accuracy', 'test_accuracy', 'val_loss', 'test_loss')
_TITLES = ('val accuracy', 'test accuracy', 'val loss', 'test loss')
_OFF = {
  'A': 'A, scale of W',
  'B': 'B, shift of W',
  'C': 'C, prompt',
  'D': 'D, scale of b',
  'E': 'E, shift of b',
  'all': 'all five',
}


def number(value, name, signed=False):
  """Accuracies in percent, losses, and the rest of what a cell can hold."""
  if value is None:
    return 'none'
  sign = '+' if signed else ''
  return f'{100 * value:{sign}.1f}' if 'accuracy' in name else f'{value:{sign}.3f}'


def mean_spread(entry, name):
  return f'{number(entry[name]["mean"], name)} ± {number(entry[name]["spread"], name)}'


def markdown(titles, rows):
  """A Markdown table; the first column is text."""
  lines = [titles, ['---', *['---:'] * (len(titles) - 1)], *rows]
  return '\n'.join(f'| {" | ".join(map(str, line))} |' for line in lines)


def headline(d):
  """What the last line of the output holds: the machine and one number or a few for each question."""
  searches, ranks, fit = (
    d['random_search'],
    d['supernet_ranks']['correlations'],
    d['generalization'],
  )
  losses = lambda weights: {
    tensor: entry['change']['test_loss']
    for tensor, entry in d['ablation'][weights]['without'].items()
  }
  rounded = lambda values: {
    name: None if value is None else round(value, 4) for name, value in values.items()
  }
  return {
    'benchmark': d['benchmark'],
    'label': d['label'],
    'machine': d['machine'],
    'searched_minus_random': rounded(searches['searched_minus_random']),
    'spearman_supernet_alone': rounded(
      {metric: ranks[metric]['supernet']['spearman'] for metric in COLUMNS}
    ),
    'kendall_supernet_alone': rounded(
      {metric: ranks[metric]['supernet']['kendall'] for metric in COLUMNS}
    ),
    'spearman_params_alone': rounded(
      {metric: ranks[metric]['params']['spearman'] for metric in COLUMNS}
    ),
    'winner_over_first_generation': rounded(fit['winner_over_first']),
    'test_loss_without': {weights: rounded(losses(weights)) for weights in d['ablation']},
    'seconds': d['seconds'],
  }


def _correlation(value):
  return 'none' if value is None else f'{value:+.2f}'


def _search_rows(d):
  searches = d['random_search']
  names = {
    'searched': f'winner of a search, mean of {len(searches["searched"])}',
    'random': f'best of as many random ones, mean of {len(searches["random"])}',
  }
  return [
    [title, *(mean_spread(searches['mean_and_spread'][name], metric) for metric in COLUMNS)]
    for name, title in names.items()
  ]


def _rank_rows(d):
  ranks = d['supernet_ranks']['correlations']
  p = lambda value: '' if value is None else f' (p {value:.2g})'
  with_p = lambda entry, kind: _correlation(entry[kind]) + p(entry[f'{kind}_p'])
  rows = [
    [
      f'{kind.capitalize()}, {title} against alone',
      *(with_p(ranks[metric][of], kind) for metric in COLUMNS),
    ]
    for of, title in (('supernet', 'supernet'), ('params', 'parameters'))
    for kind in ('spearman', 'kendall')
  ]
  left = [_correlation(ranks[metric]['supernet_given_params']) for metric in COLUMNS]
  return [*rows, ['Spearman, supernet against alone, size held still', *left]]


def _fit_rows(d):
  fit = d['generalization']
  title = lambda name: f'generation {fit["generation"][name]}, mean of {len(fit[name]["subnets"])}'
  rows = [
    [title(name), *(mean_spread(fit[name]['mean_and_spread'], metric) for metric in COLUMNS)]
    for name in ('first', 'last')
  ]
  return [
    *rows,
    ['winner, as searched', *(number(fit['winner'][metric], metric) for metric in COLUMNS)],
  ]


def _ablation_rows(d, weights):
  """The whole subnet first, then what is off, the parameters saved and the changes; no val figures of weights trained on val."""
  seen = weights == 'finetuned' and d['run']['finetuned_on_val']
  cell = lambda value, metric, signed: (
    'trained on' if seen and 'val' in metric else number(value, metric, signed)
  )
  whole, without = d['ablation'][weights]['whole'], d['ablation'][weights]['without']
  rows = [['nothing', '', *(cell(whole[metric], metric, False) for metric in COLUMNS)]]
  return [
    *rows,
    *(
      [
        _OFF[tensor],
        f'{entry["params_saved"]:,}',
        *(cell(entry['change'][metric], metric, True) for metric in COLUMNS),
      ]
      for tensor, entry in without.items()
    ),
  ]


def table(d):
  """All answers in one table, for a terminal."""
  rows = [*_search_rows(d), *_rank_rows(d), *_fit_rows(d)]
  for weights in d['ablation']:
    rows += [
      [f'winner, {weights}: {name} off', *cells] for name, _, *cells in _ablation_rows(d, weights)
    ]
  return f'{d["label"]}\n\n{markdown(("", *_TITLES), rows)}'


def text(d):
  """The content of `diagnostics.md`."""
  run, searches, ranks, fit = (
    d[name] for name in ('run', 'random_search', 'supernet_ranks', 'generalization')
  )
  points, loss = (
    lambda value: number(value, 'accuracy', signed=True),
    lambda value: number(value, 'loss', signed=True),
  )
  better, over, winner = (
    searches['searched_minus_random'],
    fit['winner_over_first'],
    d['ablation']['supernet']['whole'],
  )
  train, val, test = (run['images'][split] for split in ('train', 'val', 'test'))
  budget = 'no budget' if run['budget'] is None else f'a budget of {run["budget"]:,} parameters'
  each_search = [
    [
      f'{name} {n}',
      f'{entry["evaluations"]:,}',
      f'{entry["params"]:,}',
      *(number(entry[metric], metric) for metric in COLUMNS),
    ]
    for name in ('searched', 'random')
    for n, entry in enumerate(searches[name], 1)
  ]
  named = [
    *((f'random {n}', entry) for n, entry in enumerate(ranks['subnets'], 1)),
    ('winner', ranks['winner']),
  ]
  each_subnet = [
    [
      name,
      f'{entry["params"]:,}',
      *(
        number(entry[weights][metric], metric)
        for metric in COLUMNS
        for weights in ('supernet', 'alone')
      ),
    ]
    for name, entry in named
  ]
  generations = [(f'generation {fit["generation"][name]}', fit[name]) for name in ('first', 'last')]
  means = [
    (
      f'{name}, mean',
      {gap: entry['mean_and_spread'][gap]['mean'] for gap in ('accuracy_gap', 'loss_gap')},
    )
    for name, entry in generations
  ]
  gaps = [
    [name, points(entry['accuracy_gap']), loss(entry['loss_gap'])]
    for name, entry in [
      *means,
      ('winner, as searched', fit['winner']),
      ('winner over generation 0', over),
    ]
  ]
  within = [
    [
      name,
      *(
        _correlation(entry['correlations'][kind][of])
        for kind in ('accuracy', 'loss')
        for of in ('spearman', 'kendall')
      ),
    ]
    for name, entry in generations
  ]
  ablations = {
    weights: markdown(('off', 'parameters saved', *_TITLES), _ablation_rows(d, weights))
    for weights in d['ablation']
  }
  seconds = ', '.join(
    f'{name.replace("_", " ")} {value:.0f}' for name, value in d['seconds'].items()
  )
  return f"""# What a sceptic asks of the run on {run['task']}, seed {run['seed']}

**{d['label']}.**

The run scored {run['evaluations']:,} subnets on {val} validation images in the mode '{run['mode']}', by {run['fitness']}, under
{budget}. There are {test} test images. Accuracies are in percent, and ± is the standard deviation. One image is
{100 / val:.2f} points of validation accuracy and {100 / test:.2f} of test accuracy.

![The four answers as pictures](diagnostics.png)

## a. Is the search better than chance?

The winner of a search less the best of as many random subnets, on average: {points(better['val_accuracy'])} points of validation and
{points(better['test_accuracy'])} of test accuracy, {loss(better['val_loss'])} of validation and {loss(better['test_loss'])} of test loss.
All searches use this run's one supernet, so the spread is that of searching alone, not of training.

{markdown(('', *_TITLES), _search_rows(d))}

Each of them; 'searched 1' is the run's own winner:

{markdown(('', 'evaluations', 'parameters', *_TITLES), each_search)}

## b. Does the supernet rank subnets as training them alone does?

{len(ranks['subnets'])} random subnets of all sizes within the budget were scored with the supernet's weights, and then trained alone: each from
the same start, on the same {train} images, by the supernet's recipe of {ranks['steps']:,} steps. A correlation compares what the supernet says
on the validation images, or the number of parameters, with the subnet trained alone on the images that the column names.
+1 is the same order; more parameters with less loss count as negative. With so few subnets it is uncertain by several tenths.

{markdown(('', *_TITLES), _rank_rows(d))}

Each subnet, with the supernet's weights (S) and trained alone (T); the winner is not among the correlated:

{markdown(('', 'parameters', *(f'{title}, {letter}' for title in _TITLES for letter in 'ST')), each_subnet)}

## c. Did the search fit its {val} images?

From the mean of the random generation to the winner, accuracy changed by {points(over['val_accuracy'])} points on validation and by
{points(over['test_accuracy'])} on test; loss changed by {loss(over['val_loss'])} and {loss(over['test_loss'])}. What validation gained and test
did not is how much the search fit its images: {points(over['accuracy_gap'])} points and {loss(over['loss_gap'])} of loss.

{markdown(('', *_TITLES), _fit_rows(d))}

The gap, how much validation flatters: validation accuracy less test accuracy, and test loss less validation loss.

{markdown(('', 'accuracy', 'loss'), gaps)}

Rank correlation of validation and test across a generation:

{markdown(('', 'accuracy, Spearman', 'accuracy, Kendall', 'loss, Spearman', 'loss, Kendall'), within)}

## d. Which support tensors does the winner need?

The first row is the winner, {winner['params']:,} parameters; the others are changes against it, with one tensor switched off in every
layer. Nothing is trained again after that, so this says what the trained subnet leans on, not how good one without the
tensor would become.

With the supernet's weights:

{ablations['supernet']}

After finetuning:

{ablations['finetuned']}

## How this was made

`python -m benchmarks.sceptic` on {d['machine']['cores']} cores of {d['machine']['cpu']}, device {d['machine']['device']},
jax {d['machine']['jax']}. Seconds: {seconds}.
"""


def write(folder, d):
  """Writes `diagnostics.md` and `diagnostics.png` into the folder."""
  with open(os.path.join(folder, 'diagnostics.md'), 'w') as file:
    file.write(text(d))
  figure, axes = drawing.panels(2, 2, figsize=(13, 9.5))
  for axis, draw in zip(
    axes.flat, (draw_searches, draw_ranks, draw_fit, draw_ablation), strict=True
  ):
    draw(axis, d)
    axis.spines[['top', 'right']].set_visible(False)
  figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2)
  run = d['run']
  figure.suptitle(
    f'What a sceptic asks: {run["task"]}, seed {run["seed"]}, {run["images"]["val"]} validation and {run["images"]["test"]} '
    'test images. Diagnostic, reads test images',
    fontsize=11,
    color='#555555',
  )
  drawing.save(figure, os.path.join(folder, 'diagnostics.png'))


def _minus(text):
  return text.replace('-', '\N{MINUS SIGN}')


def _title(axis, question, answer):
  axis.set_title(f'{question}\n', loc='left', fontsize=14, fontweight='bold')
  axis.text(
    0, 1.025, _minus(answer), transform=axis.transAxes, fontsize=10.5, color='#444444'
  ).set_in_layout(False)


def draw_searches(axis, d):
  """The winners of searches and of random searches, on both kinds of images."""
  searches, ticks = d['random_search'], []
  for place, metric in enumerate(('val_accuracy', 'test_accuracy')):
    for side, (name, color, label) in enumerate(
      (('random', GREY, 'best of random'), ('searched', TEAL, 'search'))
    ):
      values, x = [100 * entry[metric] for entry in searches[name]], 3 * place + side
      axis.scatter(
        x + np.linspace(-0.15, 0.15, len(values)),
        values,
        s=55,
        color=color,
        alpha=0.75,
        linewidths=0,
        zorder=3,
      )
      axis.hlines(np.mean(values), x - 0.3, x + 0.3, color=color, linewidth=2.5)
      axis.annotate(
        f'{np.mean(values):.1f}',
        (x + 0.32, np.mean(values)),
        va='center',
        fontsize=10,
        color='#444444',
      )
      if name == 'searched':
        axis.plot(
          x - 0.15 * (len(values) > 1),
          values[0],
          '*',
          color=RED,
          markersize=15,
          zorder=4,
          label='this run' if not place else None,
        )
      ticks.append((x, f'{label}\n{metric.split("_")[0]}'))
  axis.set_xticks(*zip(*ticks, strict=True))
  axis.set_xlim(-0.7, 4.9)
  axis.set_ylabel('accuracy in %')
  axis.legend(frameon=False, loc='best')
  difference = searches['searched_minus_random']
  _title(
    axis,
    'a. Better than chance?',
    f'search less random, equal evaluations: {100 * difference["val_accuracy"]:+.1f} points of val, '
    f'{100 * difference["test_accuracy"]:+.1f} of test',
  )


def draw_ranks(axis, d):
  """The loss with the supernet's weights against that of the same subnet trained alone."""
  ranks = d['supernet_ranks']
  x, y = (
    [entry[weights]['val_loss'] for entry in ranks['subnets']] for weights in ('supernet', 'alone')
  )
  points = axis.scatter(
    x,
    y,
    c=[entry['params'] for entry in ranks['subnets']],
    cmap='viridis_r',
    s=80,
    linewidths=0,
    zorder=3,
  )
  winner = ranks['winner']
  axis.plot(
    winner['supernet']['val_loss'],
    winner['alone']['val_loss'],
    '*',
    color=RED,
    markersize=16,
    label='winner of the search',
    zorder=4,
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
  loss = ranks['correlations']['val_loss']
  _title(
    axis,
    'b. Does the supernet rank?',
    f'{len(x)} random subnets, Spearman {_correlation(loss["supernet"]["spearman"])}; '
    f'parameters against loss {_correlation(loss["params"]["spearman"])}',
  )


def draw_fit(axis, d):
  """Validation against test loss of the first and the last generation; below the diagonal validation is the harder one."""
  fit = d['generalization']
  for name, color, dark in (('first', GREY, '#444444'), ('last', TEAL, '#1f5f5f')):
    x, y = (
      [entry[metric] for entry in fit[name]['subnets']] for metric in ('val_loss', 'test_loss')
    )
    label = f'generation {fit["generation"][name]}' + (', random' if name == 'first' else '')
    axis.scatter(x, y, s=45, color=color, alpha=0.75, linewidths=0, label=label, zorder=3)
    axis.plot(np.mean(x), np.mean(y), '+', color=dark, markersize=18, markeredgewidth=3, zorder=4)
  axis.plot(
    [], [], '+', color='#444444', markersize=11, markeredgewidth=2, linestyle='', label='mean'
  )
  axis.plot(
    fit['winner']['val_loss'],
    fit['winner']['test_loss'],
    '*',
    color=RED,
    markersize=16,
    label='winner',
    zorder=5,
  )
  low = min(axis.get_xlim()[0], axis.get_ylim()[0])
  high = max(axis.get_xlim()[1], axis.get_ylim()[1])
  axis.plot([low, high], [low, high], color='#bbbbbb', linestyle='--', linewidth=1, label='no gap')
  axis.set(xlabel='validation loss', ylabel='test loss')
  axis.legend(frameon=False, loc='best')
  over = fit['winner_over_first']
  _title(
    axis,
    'c. Did the search fit its images?',
    f'loss from the random mean to the winner: {over["val_loss"]:+.3f} val, '
    f'{over["test_loss"]:+.3f} test',
  )


def draw_ablation(axis, d):
  """How much test accuracy falls with each tensor switched off."""
  tensors = [tensor for tensor in _OFF if tensor != 'all']
  for side, (weights, color, label) in enumerate(
    (('supernet', PURPLE, "supernet's weights"), ('finetuned', YELLOW, 'finetuned'))
  ):
    values = [
      100 * d['ablation'][weights]['without'][tensor]['change']['test_accuracy']
      for tensor in tensors
    ]
    bars = axis.bar(np.arange(5) + 0.4 * side - 0.2, values, width=0.38, color=color, label=label)
    axis.bar_label(bars, fmt=lambda value: _minus(f'{value:+.1f}'), fontsize=9.5, padding=2)
  saved = d['ablation']['supernet']['without']
  axis.axhline(0, color='#555555', linewidth=1)
  axis.margins(y=0.12)
  axis.set_xticks(
    range(5), [f'{_OFF[tensor]}\n{saved[tensor]["params_saved"]:,}' for tensor in tensors]
  )
  axis.set(
    xlabel='switched off in every layer, and parameters saved',
    ylabel='change of test accuracy in points',
  )
  axis.legend(frameon=False, loc='best')
  whole = ' and '.join(
    f'{100 * d["ablation"][weights]["whole"]["test_accuracy"]:.1f}%'
    for weights in ('supernet', 'finetuned')
  )
  _title(
    axis,
    'd. Which tensors does the winner need?',
    f'test accuracy of the whole: {whole}; nothing is trained again',
  )
