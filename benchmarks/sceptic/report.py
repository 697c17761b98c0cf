"""What the four answers say together: a table, `diagnostics.md`, `diagnostics.png`, a last line.

All of it is drawn from the content of `diagnostics.json`.
"""

import os

from benchmarks.machinery.output import rounded
from benchmarks.sceptic import ablation, generalization, random_search, supernet_ranks
from benchmarks.sceptic.display import METRICS, TITLES, Answer
from glora_jax.files import write_json
from glora_jax.reports import drawing, markdown

DIGITS = 4  # of the numbers in the last line


def headline(diagnostics: Answer) -> Answer:
  """What the last line of the output holds: one number or a few for each question."""
  correlations = diagnostics['supernet_ranks']['correlations']

  def column(predictor: str, coefficient: str) -> Answer:
    return {
      metric: rounded(correlations[metric][predictor][coefficient], DIGITS) for metric in METRICS
    }

  return {
    'label': diagnostics['label'],
    'searched_minus_random': _rounded(diagnostics['random_search']['searched_minus_random']),
    'spearman_supernet_alone': column('supernet', 'spearman'),
    'kendall_supernet_alone': column('supernet', 'kendall'),
    'spearman_params_alone': column('params', 'spearman'),
    'winner_over_first_generation': _rounded(diagnostics['generalization']['winner_over_first']),
    'test_loss_without': {
      weights: _rounded(
        {tensor: scores['change']['test_loss'] for tensor, scores in found['without'].items()}
      )
      for weights, found in diagnostics['ablation'].items()
    },
    'seconds': diagnostics['seconds'],
  }


def _rounded(values: dict[str, float | None]) -> dict[str, float | None]:
  return {name: rounded(value, DIGITS) for name, value in values.items()}


def table(diagnostics: Answer) -> str:
  """All answers in one table, for a terminal."""
  rows = [
    *random_search.rows(diagnostics['random_search']),
    *supernet_ranks.rows(diagnostics['supernet_ranks']),
    *generalization.rows(diagnostics['generalization']),
  ]
  for weights, found in diagnostics['ablation'].items():
    trained_on_val = weights == 'finetuned' and diagnostics['run']['finetuned_on_val']
    rows += [
      [f'winner, {weights}: {off} off', *cells]
      for off, _, *cells in ablation.rows(found, trained_on_val)
    ]
  return f'{diagnostics["label"]}\n\n{markdown.table(("", *TITLES), rows)}'


def text(diagnostics: Answer) -> str:
  """The content of `diagnostics.md`."""
  run, machine = diagnostics['run'], diagnostics['machine']
  images = run['images']
  budget = 'no budget' if run['budget'] is None else f'a budget of {run["budget"]:,} parameters'
  seconds = ', '.join(
    f'{name.replace("_", " ")} {value:.0f}' for name, value in diagnostics['seconds'].items()
  )
  return f"""# What a sceptic asks of the run on {run['task']}, seed {run['seed']}

**{diagnostics['label']}.**

The run scored {run['evaluations']:,} subnets on {images['val']} validation images in the mode
'{run['mode']}', by {run['fitness']}, under {budget}. There are {images['test']} test images.
Accuracies are in percent, and ± is the standard deviation. One image is
{100 / images['val']:.2f} points of validation accuracy and {100 / images['test']:.2f} of test
accuracy.

![The four answers as pictures](diagnostics.png)

{random_search.section(diagnostics['random_search'])}
{supernet_ranks.section(diagnostics['supernet_ranks'], images['train'])}
{generalization.section(diagnostics['generalization'], images['val'])}
{ablation.section(diagnostics['ablation'], run['finetuned_on_val'])}
## How this was made

`python -m benchmarks.sceptic` on {machine['cores']} cores of {machine['cpu']}, device
{machine['device']}, jax {machine['jax']}. Seconds: {seconds}.
"""


def draw(path: str, diagnostics: Answer) -> None:
  """Draws the four answers, a panel each."""
  figure, axes = drawing.panels(2, 2, figsize=(13, 9.5))
  random_search.draw(axes[0, 0], diagnostics['random_search'])
  supernet_ranks.draw(axes[0, 1], diagnostics['supernet_ranks'])
  generalization.draw(axes[1, 0], diagnostics['generalization'])
  ablation.draw(axes[1, 1], diagnostics['ablation'])
  figure.get_layout_engine().set(w_pad=0.2, h_pad=0.2)
  run = diagnostics['run']
  figure.suptitle(
    f'What a sceptic asks: {run["task"]}, seed {run["seed"]}, {run["images"]["val"]} validation '
    f'and {run["images"]["test"]} test images. Diagnostic, reads test images',
    fontsize=11,
    color=drawing.palette().dim,
  )
  drawing.save(figure, path)


def write(folder: str, diagnostics: Answer) -> None:
  """Writes `diagnostics.json`, `diagnostics.md` and `diagnostics.png` into the folder."""
  os.makedirs(folder, exist_ok=True)
  write_json(os.path.join(folder, 'diagnostics.json'), diagnostics)
  with open(os.path.join(folder, 'diagnostics.md'), 'w') as file:
    file.write(text(diagnostics))
  draw(os.path.join(folder, 'diagnostics.png'), diagnostics)
