"""What a run says of itself: `report.md` and its pictures, from results alone."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from glora_jax.data.task import Task
from glora_jax.files import whole
from glora_jax.method import genomes
from glora_jax.method.space import Spec
from glora_jax.models.weights import EMBEDDED
from glora_jax.reports import run_pictures
from glora_jax.search.archive import Archive

PAPER_LABEL = (
  "PROTOCOL 'paper': the subnet was SEARCHED ON THE TEST SET and trained on train+val. "
  'The test accuracies below reproduce how the paper was probably made; they estimate nothing unseen.'
)
ERRORS = 12  # thumbnails
_TITLES = {
  'linear': 'linear probe',
  'winner_supernet': 'winner, as searched',
  'winner': 'winner, finetuned',
}


class Outcome(NamedTuple):
  """What the winner answered on the test images.

  Attributes:
    labels: the true classes, int [n].
    classes: the answers, int [n].
    probabilities: of the answers, [n].
    pixels: indices of images -> uint8 [number, size, size, 3].
  """

  labels: np.ndarray
  classes: np.ndarray
  probabilities: np.ndarray
  pixels: Callable[[np.ndarray], np.ndarray]

  def confusion(self, number: int) -> np.ndarray:
    """How many images of each class got each answer, int [true, predicted], of `number` classes."""
    matrix = np.zeros((number, number), np.int64)
    np.add.at(matrix, (self.labels, self.classes), 1)
    return matrix

  def surest_errors(self, most: int = ERRORS) -> np.ndarray:
    """Indices of the wrong answers of the highest probabilities, the highest first; equal ones in the order of the images."""
    wrong = np.flatnonzero(self.classes != self.labels)
    return wrong[np.argsort(-self.probabilities[wrong], kind='stable')][:most]


def table(result: dict[str, Any]) -> str:
  """The accuracies as a Markdown table, with the paper protocol's warning where it is due."""
  rows = {
    'linear': result['linear'],
    **result['presets'],
    'winner_supernet': result['winner_supernet'],
    'winner': result['winner'],
  }
  others = list(result['winner'].get('other_test_accuracies', ()))
  percent = lambda value: 'trained on' if value is None else f'{100 * value:.1f}'
  line = lambda *cells: f'| {" | ".join(cells)} |'
  lines = [
    line(
      'subnet',
      'trained params (head apart)',
      'val accuracy',
      'test accuracy',
      *(f'on {name}' for name in others),
    ),
    f'|---|{"---:|" * (3 + len(others))}',
  ]
  for name, row in rows.items():
    accuracies = (
      row['val_accuracy'],
      row['test_accuracy'],
      *(row['other_test_accuracies'][other] for other in others),
    )
    lines.append(line(_TITLES.get(name, name), f'{row["params"]:,}', *map(percent, accuracies)))
  return '\n'.join(([f'**{PAPER_LABEL}**', ''] if result['protocol'] == 'paper' else []) + lines)


def write(
  workdir: str,
  result: dict[str, Any],
  spec: Spec,
  archive: Archive,
  task: Task,
  fitness: str,
  presets: dict[str, dict[str, float]],
  outcome: Outcome,
) -> None:
  """Writes `report.md` and its pictures into the workdir.

  Args:
    workdir: of the run.
    result: the content of `result.json`.
    spec: of the genomes.
    archive: of the search.
    task: what was learned.
    fitness: of the search.
    presets: parameters and accuracy of the presets with the supernet's weights, by name; marks in the Pareto plot.
    outcome: of the winner.
  """
  paper = result['protocol'] == 'paper'
  warning = f' ({PAPER_LABEL.split(":")[0]})' if paper else ''
  searched = 'test' if paper else 'val'
  num_images, picture = result['data']['images'][searched], lambda name: os.path.join(workdir, name)
  run_pictures.draw_structure(picture('structure.png'), spec, np.array(result['winner']['genome']))
  run_pictures.draw_search(
    picture('search.png'), archive, num_images, result['hypervolume'], warning
  )
  run_pictures.draw_pareto(
    picture('pareto.png'), spec, archive, num_images, result, presets, warning
  )
  run_pictures.draw_training(picture('training.png'), os.path.join(workdir, 'metrics.jsonl'))
  seconds = ', '.join(f'{name} {value:.0f} s' for name, value in result['seconds'].items())
  images = ', '.join(f'{number:,} {split}' for split, number in result['data']['images'].items())
  budget = (
    'without a limit on parameters'
    if result['budget'] is None
    else f'of at most {result["budget"]:,} parameters'
  )
  base = (
    'the small one that comes with glora_jax'
    if result['weights'] == EMBEDDED
    else f'`{result["weights"]}`'
  )
  protocol = (
    PAPER_LABEL
    if paper
    else (
      'The supernet was trained on the training images; the search saw the validation images only. The list of subnets was '
      'frozen in `test_list.json` before the test images were read, and nothing but this report reads their outcome.'
    )
  )
  winner = result['winner']
  between = (
    ' What stands between it and the winner are presets, each trained alone as well.'
    if result['presets']
    else ''
  )
  finetuned = (
    'then finetuned by itself'
    if result['finetuned']
    else 'and once more, since this run finetunes nothing'
  )
  trained_on = (
    " Where the val accuracy is 'trained on', the validation images were trained on, too."
    if winner['val_accuracy'] is None
    else ''
  )
  title = f'{100 * winner["test_accuracy"]:.1f}% of the test images right, {winner["params"]:,} trained parameters'
  text = f"""# GLoRA on {_plain(task.name)}: {title}

{table(result)}

The linear probe trains the head alone.{between} The winner is the subnet that the search chose: first with the weights that it shares
with all others in the supernet, {finetuned}.{trained_on}

## What was run

A pretrained ViT ({base}) was frozen, and each of its {len(spec)} linear layers got five support tensors. A supernet of
all their forms was trained (its largest subnet has {genomes.count_params(spec, spec.num_codes - 1):,} parameters), and the search scored
{result['evaluations']:,} subnets {budget} on the {num_images:,} {searched} images, by {fitness}. The winner was then folded into the
frozen weights: `folded/` is a plain ViT of the same size, without a trace of GLoRA (largest difference of a logit:
{result['fold_max_abs_diff']:.1e}).
{_stopped(result)}
{protocol}

Images: {_plain(result['data']['origin'])}; {images}; resized by '{result['data']['resize']}', normalized as
`{result['normalization']}`. {' '.join(map(_plain, result['data']['notes']))}
Seed {result['seed']}; {seconds}. `config.json` has every field of the config, `result.json` every number of this page.

## Where it errs

{_errors(workdir, task.classes, outcome, warning)}

## What was chosen

![The form of every support tensor in every layer](structure.png)

A scales and B shifts the weights, C is a prompt, D scales and E shifts the bias: W' = W + W\\*A + B, b' = b + b\\*D + E + C W.

## How it was found

![Accuracy over the generations](search.png)

All subnets have the supernet's weights here. The hypervolume is the share of all pairs of error and parameters, up to 100% and the largest
subnet, that some scored subnet is at least as good as in both: 1 would be free and perfect.

![Error against trained parameters](pareto.png)

## How it was trained

![Loss and accuracy of every training stage](training.png)

Both are of the training images as training sees them, augmented; the supernet's are of the random subnets of each step.

## Using the folded model

```python
from glora_jax.data import augment, image
from glora_jax.models import weights

model, params, metadata = weights.load({os.path.join(workdir, 'folded')!r})
pixels = image.resize(image.decode('photo.jpg'), metadata['image_size'], metadata['resize'])
logits = model.apply({{'params': params}}, augment.normalize(pixels[None], metadata['normalization']))
print(metadata['classes'][logits[0].argmax()])
```

The same for any number of images or folders of them, with probabilities (`--json` for one JSON object a line):

```
python -m glora_jax.predict --model {shlex.quote(os.path.join(workdir, 'folded'))} photo.jpg
```
"""
  with whole(os.path.join(workdir, 'report.md')) as temporary, open(temporary, 'w') as file:
    file.write(text)


def _stopped(result):
  number, evaluations = result['stopped_early'], result['evaluations']
  return (
    f'\n{number:,} of the {evaluations:,} were left before their last image, when they could not become parents any more; that '
    'changes nothing of what is selected.\n'
    if number
    else ''
  )


def _errors(workdir, classes, outcome, warning):
  """Draws the confusion and the surest errors; what the report says of them."""
  matrix, errors = outcome.confusion(len(classes)), outcome.surest_errors()
  run_pictures.draw_confusion(os.path.join(workdir, 'confusion.png'), classes, matrix, warning)
  shown = (
    'The share of each class that was found, and which class was taken for which'
    if len(classes) <= run_pictures.MATRIX_CLASSES
    else 'The pairs of classes that were confused most often'
  )
  confusion = f'![{shown}](confusion.png)'
  if not len(errors):
    return f'The winner got all {len(outcome.labels):,} test images right: there is no error to show.\n\n{confusion}'
  name = lambda number: _plain(classes[number])
  run_pictures.draw_errors(
    os.path.join(workdir, 'errors.png'),
    outcome.pixels(errors),
    *([classes[number] for number in of[errors]] for of in (outcome.labels, outcome.classes)),
    outcome.probabilities[errors],
  )
  number = len(outcome.labels) - int(np.trace(matrix))
  often = '; '.join(
    f'{name(true)} taken for {name(answer)} ({count})'
    for true, answer, count in run_pictures.confused_pairs(matrix)[:3]
  )
  these = (
    f'These are the {len(errors)} that the winner was surest of'
    if len(errors) < number
    else 'These are all'
  )
  return (
    f'The winner got {number:,} of {len(outcome.labels):,} test images wrong. Most often: {often}.\n\n{confusion}\n\n'
    f'![The wrong answers with the highest probabilities](errors.png)\n\n{these}, as the model saw them: the true class, and after an '
    'arrow the answer and its probability.'
  )


def _plain(text):
  """Text that Markdown leaves as it is."""
  return re.sub(r'([\\`*_{}\[\]<>#|$~])', r'\\\1', ' '.join(text.split()))
