"""Question d: which support tensors does the winner need?"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from tqdm.auto import tqdm

from benchmarks.sceptic import display
from benchmarks.sceptic.display import METRICS, TITLES, Answer
from benchmarks.sceptic.finished_run import FinishedRun, measure
from glora_jax.method.space import TENSORS
from glora_jax.reports import drawing, markdown
from glora_jax.runs.run import Run

ROLES = {
  'A': 'A, scale of W',
  'B': 'B, shift of W',
  'C': 'C, prompt',
  'D': 'D, scale of b',
  'E': 'E, shift of b',
}


def answer(finished: FinishedRun) -> Answer:
  """The winner without each tensor, with the supernet's weights and after finetuning."""
  weights = {'supernet': finished.supernet, 'finetuned': finished.finetuned}
  return {
    name: switch_off(finished.run, variables, finished.winner)
    for name, variables in tqdm(weights.items(), desc='d. ablations', unit='weights')
  }


def switch_off(run: Run, variables: Any, genome: np.ndarray) -> Answer:
  """A subnet as it is, and with each tensor, or all, switched off in every layer.

  Nothing is trained.
  """
  off = {
    tensor: np.where(np.arange(len(TENSORS)) == index, 0, genome)
    for index, tensor in enumerate(TENSORS)
  }
  off['all'] = np.zeros_like(genome)
  whole, *others = measure(run, variables, [genome, *off.values()])
  without = {
    tensor: {
      **scores,
      'params_saved': whole['params'] - scores['params'],
      'change': {metric: scores[metric] - whole[metric] for metric in METRICS},
    }
    for tensor, scores in zip(off, others, strict=True)
  }
  return {'whole': whole, 'without': without}


def rows(ablation: Answer, trained_on_val: bool) -> list[list[str]]:
  """The whole subnet, then what is off, the parameters saved and the changes.

  Args:
    ablation: what `switch_off` returned.
    trained_on_val: whether the weights were, so that figures on val say nothing.
  """

  def cells(scores, signed):
    return [
      'trained on'
      if trained_on_val and 'val' in metric
      else display.number(scores[metric], metric, signed)
      for metric in METRICS
    ]

  titles = {**ROLES, 'all': 'all five'}
  return [
    ['nothing', '', *cells(ablation['whole'], signed=False)],
    *(
      [titles[tensor], f'{scores["params_saved"]:,}', *cells(scores['change'], signed=True)]
      for tensor, scores in ablation['without'].items()
    ),
  ]


def section(ablations: Answer, finetuned_on_val: bool) -> str:
  """The answer in Markdown."""
  columns = ('off', 'parameters saved', *TITLES)
  supernet = markdown.table(columns, rows(ablations['supernet'], False))
  finetuned = markdown.table(columns, rows(ablations['finetuned'], finetuned_on_val))
  return f"""## d. Which support tensors does the winner need?

The first row is the winner, {ablations['supernet']['whole']['params']:,} parameters; the others are
changes against it, with one tensor switched off in every layer. Nothing is trained again after
that, so this says what the trained subnet leans on, not how good one without the tensor would
become.

With the supernet's weights:

{supernet}

After finetuning:

{finetuned}
"""


def draw(axis: Axes, ablations: Answer) -> None:
  """How much test accuracy falls with each tensor switched off."""
  palette = drawing.palette()
  kinds = (
    ('supernet', palette.purple, "supernet's weights"),
    ('finetuned', palette.yellow, 'finetuned'),
  )
  for side, (weights, color, label) in enumerate(kinds):
    without = ablations[weights]['without']
    values = [100 * without[tensor]['change']['test_accuracy'] for tensor in TENSORS]
    x = np.arange(len(TENSORS)) + 0.4 * side - 0.2
    bars = axis.bar(x, values, width=0.38, color=color, label=label)
    labels = [display.typographic(f'{value:+.1f}') for value in values]
    axis.bar_label(bars, labels, fontsize=9.5, padding=2)
  without = ablations['supernet']['without']
  axis.axhline(0, color=palette.dim, linewidth=1)
  axis.margins(y=0.12)
  axis.set_xticks(
    range(len(TENSORS)),
    [f'{ROLES[tensor]}\n{without[tensor]["params_saved"]:,}' for tensor in TENSORS],
  )
  axis.set(
    xlabel='switched off in every layer, and parameters saved',
    ylabel='change of test accuracy in points',
  )
  axis.legend(frameon=False, loc='best')
  whole = [f'{100 * ablations[name]["whole"]["test_accuracy"]:.1f}%' for name, *_ in kinds]
  display.set_title(
    axis,
    'd. Which tensors does the winner need?',
    f'test accuracy of the whole: {" and ".join(whole)}; nothing is trained again',
  )
