"""The page of a run, `report.html`: its sentences and tables, and code that uses what it leaves."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from glora_jax.method.genomes import count_params
from glora_jax.method.presets import GRADIENT
from glora_jax.models.weights import EMBEDDED
from glora_jax.reports import charts, errors, page, run_charts
from glora_jax.reports.findings import Findings
from glora_jax.reports.markdown import PAPER_LABEL, Table, paragraph, percent, plain, weights_name
from glora_jax.reports.structure import (
  VALUES_EXPLAINED,
  structure_figure,
  tell_choice,
  tell_cost,
  values_table,
)
from glora_jax.reports.verdict import interval, tell_verdict, titles

STAGES = {
  'head': 'head alone, before the gradient',
  'training': 'training of fixed structures',
  'finetune': 'finetuning',
  'tuning': 'learning rates',
}
EQUATION = paragraph(r"""
  A scales and B shifts the weights, C is a prompt, D scales and E shifts the bias:
  W' = W + W\*A + B, b' = b + b\*D + E + C W.
""")


def write(workdir: str, findings: Findings) -> None:
  """Writes `report.html` into the workdir of a run."""
  page.write(workdir, 'run.html', facts(workdir, findings))


def facts(workdir: str, findings: Findings) -> dict[str, Any]:
  """What the template of a run asks for."""
  result, other = findings.result, findings.allocation
  chosen, number = result['structures'][result['result']], result['data']['images']['test']
  provenances = page.distinct(findings.made)
  shown = dict.fromkeys((result['result'], 'search', GRADIENT))
  structures = [
    structure_figure(
      titles(result)[name], findings.specs[name], result['structures'][name]['genome']
    )
    for name in shown
    if name in result['structures']
  ]
  return {
    'task': findings.task.name,
    'verdict': tell_verdict(result),
    'warning': PAPER_LABEL if findings.is_paper else '',
    'accuracy': f'{100 * chosen["test_accuracy"]:.1f}%',
    'interval': interval(chosen['test_accuracy'], number),
    'params': chosen['params'],
    'seconds': sum(result['seconds'].values()),
    'accuracies': run_charts.accuracy_plot(result),
    'accuracy_table': accuracies(result),
    'rows_explained': tell_rows(result),
    'equation': EQUATION,
    'structures': structures,
    'cost': stage_bars(result['seconds']),
    'search': run_charts.search_charts(findings),
    'searched': tell_search(result),
    'allocation': other
    and {
      'told': [tell_choice(other, result), tell_cost(result)],
      'chart': run_charts.value_chart(other),
      'table': values_table(list(other.units())),
      'explained': VALUES_EXPLAINED,
    },
    'training': run_charts.training_charts(os.path.join(workdir, 'metrics.jsonl')),
    'trained': tell_training(findings),
    'errors': errors.facts(findings.task.classes, findings.outcome),
    'told': [
      tell_run(findings),
      tell_protocol(findings),
      tell_images(result),
    ],
    'seed': str(result['seed']),
    'weights': weights_name(result),
    'provenances': provenances,
    'devices': ', '.join(dict.fromkeys(each['device'].partition(';')[0] for each in provenances)),
    'snippets': snippets(workdir, findings),
  }


def stage_bars(seconds: Mapping[str, float]) -> list[charts.Bar]:
  """A bar for the time of every stage, in the order in which they ran."""
  return charts.bars(
    [(STAGES.get(stage, stage), value, page.duration(value)) for stage, value in seconds.items()]
  )


def table(result: Mapping[str, Any]) -> str:
  """The accuracies as a Markdown table, with the paper protocol's warning where it is due.

  Args:
    result: content of `result.json`.
  """
  warning = f'**{PAPER_LABEL}**\n\n' if result['protocol'] == 'paper' else ''
  return f'{warning}{accuracies(result)}'


def accuracies(result: Mapping[str, Any]) -> Table:
  """Parameters and accuracies of every row.

  Args:
    result: content of `result.json`.
  """
  names = titles(result)
  further_tests = list(result['structures']['linear'].get('other_test_accuracies', ()))
  columns = ('structure', 'trained params (head apart)', 'val accuracy', 'test accuracy')
  rows = []
  for name, row in result['structures'].items():
    shares = [row['val_accuracy'], row['test_accuracy']]
    shares += [row['other_test_accuracies'][test] for test in further_tests]
    rows.append((names[name], f'{row["params"]:,}', *map(percent, shares)))
  return Table((*columns, *(f'on {test}' for test in further_tests)), rows)


def tell_rows(result: Mapping[str, Any]) -> str:
  """What the structures of the table are, and which of them is the result."""
  name, structures = result['result'], result['structures']
  label = f'**{titles(result)[name]}**'
  best = max((row['val_accuracy'] or 0, -row['params']) for row in structures.values())
  chosen = structures[name]
  if (chosen['val_accuracy'], -chosen['params']) == best:
    sentence = f'The result is the structure with the best validation accuracy: {label}.'
  else:
    sentence = f'The result is {label}.'
  trained_on = """
    Where the val accuracy is 'trained on', the validation images were trained on, too.
  """
  is_unseen = all(row['val_accuracy'] is not None for row in structures.values())
  return paragraph(
    sentence, 'The linear probe trains the head alone.', '' if is_unseen else trained_on
  )


def tell_run(findings: Findings) -> str:
  """What was frozen, searched or chosen, and folded."""
  result, spec = findings.result, findings.spec
  is_embedded = result['weights'] == EMBEDDED
  base = 'the small one that comes with glora_jax' if is_embedded else weights_name(result)
  if findings.archive is not None:
    budget = result['budget']
    limit = 'without a limit on' if budget is None else f'of at most {budget:,}'
    largest = count_params(spec, spec.num_codes - 1)
    chosen = f"""
      A supernet of all their forms was trained (its largest structure has {largest:,} parameters),
      and the search scored {result['evaluations']:,} structures {limit} parameters on the
      {findings.search_images:,} {findings.search_split} images, by {findings.fitness}.
    """
  else:
    is_read_off = result['structure'] == GRADIENT
    origin = 'read off one gradient' if is_read_off else f'given: `{result["structure"]}`'
    chosen = f'Which of them are trained, and in which form, was {origin}.'
  return paragraph(
    f"""
    A pretrained ViT ({base}) was frozen, and each of its {len(spec)} linear layers got five support
    tensors.
    """,
    chosen,
    f"""
    The result was then folded into the frozen weights: `folded/` is a plain ViT of the same size,
    without a trace of GLoRA (largest difference of a logit: {result['fold_max_abs_diff']:.1e}).
    """,
  )


def tell_protocol(findings: Findings) -> str:
  """Which images had a part in what."""
  if findings.is_paper:
    return PAPER_LABEL
  if 'file' in findings.result['structures']:
    parts = """
      The structure was given by a file, which does not say what it was chosen by: where that were
      these validation or test images, the accuracies on them are too good.
    """
  elif findings.archive is None:
    parts = """
      Weights and structures come from the training images; the validation images chose the epochs
      that are kept, and the result.
    """
  else:
    parts = """
      Weights come from the training images; the validation images chose the searched structure, the
      epochs that are kept, and the result.
    """
  frozen = """
    The list of structures was frozen in `test_list.json` before the test images were read, and
    nothing but this report reads their outcome.
  """
  return paragraph(parts, frozen)


def tell_images(result: Mapping[str, Any]) -> str:
  """The data, the seed, and the seconds of every stage."""
  data = result['data']
  numbers = ', '.join(f'{number:,} {split}' for split, number in data['images'].items())
  seconds = ', '.join(f'{stage} {value:.0f} s' for stage, value in result['seconds'].items())
  return paragraph(
    f"Images: {plain(data['origin'])}; {numbers}; resized by '{data['resize']}',",
    f'normalized as `{result["normalization"]}`.',
    *map(plain, data['notes']),
    f'Seed {result["seed"]}; {seconds}.',
    '`config.json` has every field of the config, `result.json` every number of this page.',
  )


def tell_search(result: Mapping[str, Any]) -> str:
  """What the charts of a search are of, and how its front grew; nothing where none was."""
  if not (volumes := result['hypervolume']):
    return ''
  return paragraph(f"""
    All structures have the supernet's weights here. The hypervolume of the front grew from
    {volumes[0]:.3f} after the first generation to {volumes[-1]:.3f} after the last: the share of
    all pairs of error and parameters, up to 100% and the largest structure, that some scored
    structure is at least as good as in both. 1 would be free and perfect.
  """)


def tell_training(findings: Findings) -> str:
  """What the curves of training are of."""
  return paragraph(
    'Loss and accuracy are of the training images as training sees them, augmented.',
    "The supernet's are of the random structures of each step."
    if findings.archive is not None
    else '',
    "The head's alone, before the gradient was read, are of features of the images without "
    'augmentation, where the model gives such features.'
    if findings.allocation is not None
    else '',
  )


def snippets(workdir: str, findings: Findings) -> list[tuple[str, str, str]]:
  """(title, command, Python) of predicting, loading in timm, and applying the adapter."""
  folded, converted = os.path.join(workdir, 'folded'), os.path.join(workdir, 'timm')
  predict = ['python', '-m', 'glora_jax.predict', '--model', folded, 'photo.jpg']
  convert = ['python', '-m', 'glora_jax.convert', folded, converted, '--format', 'timm']
  predict_code = f"""\
from glora_jax.models.classifier import Classifier

classifier = Classifier({folded!r})
for path, probabilities in classifier(['photo.jpg']):
  print(path, classifier.classes[probabilities.argmax()], probabilities.max())"""
  convert_code = f"""\
import timm

model = timm.create_model({f'local-dir:{converted}'!r}, pretrained=True)"""
  return [
    ('Predict', shlex.join(predict), predict_code),
    ('Load in timm', shlex.join(convert), convert_code),
    ('Apply the adapter', '', adapter_code(workdir, findings)),
  ]


def adapter_code(workdir: str, findings: Findings) -> str:
  """Python that puts the adapter onto the base that it was trained on."""
  name, revision = findings.result['weights'], findings.result.get('weights_revision')
  base = repr(f'{name.partition("@")[0]}@{revision}' if revision else name)
  if name == EMBEDDED:
    base = 'weights.EMBEDDED_FILE'
  sizes = {'num_classes': len(findings.task.classes), **findings.backbone}
  checksum, hints = (
    ''.join(f', {name}={sizes.pop(name)!r}' for name in names if name in sizes)
    for names in (('sha256',), ('num_heads', 'activation'))
  )
  fitted = ''.join(f', {name}={value!r}' for name, value in sizes.items())
  size = sizes['image_size']
  return f"""\
import jax.numpy as jnp

import glora_jax
from glora_jax.models import fetch, weights

base = fetch.fetch({base}{checksum})
loaded = weights.load(base{hints})
model, params, metadata = weights.refit(*loaded{fitted})
images = jnp.zeros((1, {size}, {size}, 3))  # normalized as '{findings.result['normalization']}'
path = {os.path.join(workdir, 'adapter.safetensors')!r}
adapted = glora_jax.adapt(model, images, structure=path)
adapted, variables = glora_jax.load_adapter(path, adapted, params)
logits = adapted.apply(variables, images)"""
