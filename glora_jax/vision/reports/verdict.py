"""Sentences on a run: how good its result is, why it is the result, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from scipy import stats

from glora_jax.method.genomes import count_params
from glora_jax.vision.reports.findings import Findings
from glora_jax.vision.reports.text import code, paragraph, sentence_case
from glora_jax.vision.structure_names import (
  FINETUNING,
  GENOME_ENDING,
  GRADIENT,
  SEARCH,
  SUPERNET,
  TRANSFER,
)

_THE = {  # in a sentence
  'linear': 'the linear probe',
  SEARCH: 'the searched structure',
  GRADIENT: "the gradient's structure",
  TRANSFER: 'the transferred structure',
}
_CHANCE = 0.05  # larger p-values may be chance


def mcnemar(result_only: int, other_only: int) -> float:
  """The p-value of McNemar's exact test of two classifiers on the same images.

  Args:
    result_only: number of images that only the first classified correctly.
    other_only: number of images that only the second did.

  Example:
    >>> mcnemar(5, 0), mcnemar(3, 3), mcnemar(0, 0)
    (0.0625, 1.0, 1.0)
  """
  number = result_only + other_only
  return float(stats.binomtest(result_only, number).pvalue) if number else 1.0


def tell_verdict(result: Mapping[str, Any]) -> str:
  """The result's accuracy, against the linear probe and the best other structure.

  Example:
    >>> linear = {'label': 'linear probe', 'params': 0, 'test_accuracy': 0.5}
    >>> linear['against_result'] = {'result_only': 40, 'other_only': 0}
    >>> lora = {'label': 'lora:2', 'params': 9, 'test_accuracy': 0.9}
    >>> data = {'images': {'test': 100}}
    >>> structures = {'linear': linear, 'lora': lora}
    >>> tell_verdict({'result': 'lora', 'structures': structures, 'data': data})
    'lora:2 classifies 90.0% of 100 test images correctly with 9 trained parameters, 40.0 points \
more than the linear probe.'
  """
  structures, chosen = result['structures'], result['structures'][result['result']]
  split = 'test' if 'test_accuracy' in chosen else 'val'
  others = {
    name: other for name, other in structures.items() if other is not chosen and split == 'test'
  }
  rivals = [name for name in others if name not in ('linear', SUPERNET)]
  best = max(rivals, key=lambda name: others[name]['test_accuracy'], default='')
  against = [_against(chosen, others[name], name) for name in others if name in ('linear', best)]
  images = (
    f'{result["data"]["images"][split]:,} {"test" if split == "test" else "validation"} images'
  )
  told = (
    f'{sentence_case(_THE.get(result["result"], chosen["label"]))} classifies '
    f'{100 * chosen[f"{split}_accuracy"]:.1f}% of {images} correctly with {chosen["params"]:,} '
    'trained parameters'
  )
  return f'{", ".join(filter(None, [told, " and ".join(against)]))}.'


def _against(chosen: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
  """The result against another structure, and whether the difference may be chance."""
  points = round(100 * (chosen['test_accuracy'] - other['test_accuracy']), 1)
  called = _THE.get(name, other['label'])
  if not points:
    return f'as many as {called}'
  more = f'{abs(points):.1f} points {"less" if points < 0 else "more"} than {called}'
  chance = mcnemar(**other['against_result'])
  doubt = f" (may be chance: McNemar's exact test, p = {chance:.2g})"
  return more if chance < _CHANCE else more + doubt


def tell_result(result: Mapping[str, Any]) -> str:
  """Why this structure is the result; empty if it is the only one."""
  structures, budget = result['structures'], result['budget']
  chosen = structures[result['result']]
  if len(structures) == 1:
    return ''
  within = [
    structure
    for name, structure in structures.items()
    if name != SUPERNET and (budget is None or structure['params'] <= budget)
  ]
  accuracies = [structure['val_accuracy'] for structure in within]
  why = Markup('was chosen by {}').format(code('report.result'))
  if chosen['val_accuracy'] is None and result['result'] in (result['structure'], 'file'):
    why = f'is the {"searched structure" if SEARCH in structures else "requested structure"}'
  elif chosen in within and None not in accuracies and chosen['val_accuracy'] == max(accuracies):
    limit = '' if budget is None else ' within the budget'
    why = f'is the trained structure with the best validation accuracy{limit}'
  return Markup('The result {}: {}.').format(why, code(chosen['label']))


def tell_run(findings: Findings) -> str:
  """How the run went: what was adapted, searched and folded."""
  result = findings.result
  layers = len(result['structures'][result['result']]['genome'])
  made = f'A pretrained ViT was frozen, and adapters were added to {layers} linear layers.'
  if result['result'] == FINETUNING:
    made = 'All weights of a pretrained ViT were trained, without an adapter.'
  searched, kept = '', 'No test image was read, and no model was kept.'
  if findings.archive is not None:
    split, number = findings.searched_images
    spec, budget = findings.spec, result['budget']
    largest = count_params(spec, spec.num_codes - 1)
    searched = f"""
      A supernet of all their forms was trained (its largest structure has {largest:,} parameters),
      and the search scored {result['evaluations']:,} structures
      {'' if budget is None else f'of at most {budget:,} parameters'} on {number:,} {split} images
      by {findings.fitness}.
    """
  if 'fold_max_abs_diff' in result:
    kept = Markup("""
      {} has the result as a plain ViT of the same size, without an adapter (largest difference of
      a logit: {}).
    """).format(code('folded/'), f'{result["fold_max_abs_diff"]:.1e}')
  numbers = Markup('{} has all numbers of this page.').format(code('result.json'))
  return paragraph(made, searched, kept, numbers)


def tell_protocol(findings: Findings) -> str:
  """Which images were used for what; empty if the page begins with that."""
  result = findings.result
  if result['protocol'] == 'paper':
    return ''
  images, chosen, tested = 'the training images alone', '', ''
  if findings.archive is not None:
    chosen = """
      The validation images chose the searched structure, in a supernet trained on the training
      images alone.
    """
  elif result['structure'] == TRANSFER or str(result['structure']).endswith(GENOME_ENDING):
    chosen = """
      The structure comes from a file that does not say how it was chosen; if that was on these
      validation or test images, their accuracies are too high.
    """
  if result['train_on'] != 'train':
    images = 'training and validation images together; only test images measure it'
  elif findings.keeps_best:
    chosen = f'{chosen} The validation images chose the epochs to keep.'
  if findings.outcome is not None:
    tested = Markup('Everything tested is in {}, written before the test images were read.').format(
      code('test_list.json')
    )
  return paragraph(chosen, f'Every structure was trained on {images}.', tested)
