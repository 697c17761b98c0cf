"""What a run says of itself: the sentences and the table of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glora_jax.method import genomes
from glora_jax.method.preset_names import GRADIENT
from glora_jax.models.weights import EMBEDDED
from glora_jax.reports import markdown
from glora_jax.reports.findings import Findings
from glora_jax.reports.markdown import PAPER_LABEL, Table, paragraph, percent, plain
from glora_jax.reports.verdict import is_of_a_file, subnets, titles


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
  titles_of_rows = titles(result)
  further_tests = list(result['winner'].get('other_test_accuracies', ()))
  columns = ('subnet', 'trained params (head apart)', 'val accuracy', 'test accuracy')
  rows = []
  for name, subnet in subnets(result).items():
    shares = [subnet['val_accuracy'], subnet['test_accuracy']]
    shares += [subnet['other_test_accuracies'][test] for test in further_tests]
    rows.append((titles_of_rows[name], f'{subnet["params"]:,}', *map(percent, shares)))
  return Table((*columns, *(f'on {test}' for test in further_tests)), rows)


def tell_rows(result: Mapping[str, Any]) -> str:
  """What the rows of the table are."""
  presets = """
    What stands between it and the winner are presets, or the structure that one gradient asks for,
    each trained alone as well.
  """
  finetuned = """
    The winner is the subnet that the search chose: first with the weights that it shares with all
    others in the supernet, then finetuned by itself.
  """
  not_finetuned = """
    The winner is the subnet that the search chose: first with the weights that it shares with all
    others in the supernet, and once more, since this run finetunes nothing.
  """
  trained_alone = """
    The winner was trained alone, from the pretrained model.
  """
  if 'structure' in result:
    searched = trained_alone
  else:
    searched = finetuned if result['finetuned'] else not_finetuned
  trained_on = """
    Where the val accuracy is 'trained on', the validation images were trained on, too.
  """
  return paragraph(
    'The linear probe trains the head alone.',
    presets if result['presets'] else '',
    searched,
    trained_on if result['winner']['val_accuracy'] is None else '',
  )


def tell_run(findings: Findings) -> str:
  """What was frozen, searched or chosen, and folded."""
  result, spec = findings.result, findings.spec
  is_embedded = result['weights'] == EMBEDDED
  base = 'the small one that comes with glora_jax' if is_embedded else markdown.weights_name(result)
  frozen = f"""
    A pretrained ViT ({base}) was frozen, and each of its {len(spec)} linear layers got five support
    tensors.
  """
  folded = f"""
    The winner was then folded into the frozen weights: `folded/` is a plain ViT of the same size,
    without a trace of GLoRA (largest difference of a logit: {result['fold_max_abs_diff']:.1e}).
  """
  if findings.archive is None:
    chosen = _chosen(result)
    return paragraph(frozen, chosen, folded)
  limit = 'without a limit on' if result['budget'] is None else f'of at most {result["budget"]:,}'
  largest = genomes.count_params(spec, spec.num_codes - 1)
  searched = f"""
    A supernet of all their forms was trained (its largest subnet has {largest:,} parameters), and
    the search scored {result['evaluations']:,} subnets {limit} parameters on the
    {findings.search_images:,} {findings.search_split} images, by {findings.fitness}.
  """
  return paragraph(frozen, searched, folded)


def _chosen(result: Mapping[str, Any]) -> str:
  """Where the structure comes from that was trained alone."""
  if result['structure'] == GRADIENT:
    return 'Which of them are trained, and in which form, was read off one gradient.'
  return f'Which of them are trained, and in which form, was given: `{result["structure"]}`.'


def tell_protocol(findings: Findings) -> str:
  """Which images had a part in what."""
  if findings.is_paper:
    return PAPER_LABEL
  if is_of_a_file(findings.result):
    return paragraph("""
      The weights come from the training images alone. The structure was given by a file, which does
      not say what it was chosen by: where that were these validation or test images, the
      accuracies on them are too good. The list of subnets was frozen in `test_list.json` before the
      test images were read, and nothing but this report reads their outcome.
    """)
  if findings.archive is None:
    is_read_off = findings.result['structure'] == GRADIENT
    learned = 'Structure and weights come' if is_read_off else 'The weights come'
    return paragraph(f"""
      {learned} from the training images alone; no validation image had a part in structure or
      weights, so that the accuracies on val are unseen ones, too. The list of subnets was frozen in
      `test_list.json` before the test images were read, and nothing but this report reads their
      outcome.
    """)
  return paragraph("""
    The supernet was trained on the training images; the search saw the validation images only. The
    list of subnets was frozen in `test_list.json` before the test images were read, and nothing but
    this report reads their outcome.
  """)


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


EQUATION = paragraph(r"""
  A scales and B shifts the weights, C is a prompt, D scales and E shifts the bias:
  W' = W + W\*A + B, b' = b + b\*D + E + C W.
""")


def tell_search(result: Mapping[str, Any]) -> str:
  """What the charts of a search are of, and how its front grew; nothing where none was."""
  if not (volumes := result['hypervolume']):
    return ''
  return paragraph(f"""
    All subnets have the supernet's weights here. The hypervolume of the front grew from
    {volumes[0]:.3f} after the first generation to {volumes[-1]:.3f} after the last: the share of
    all pairs of error and parameters, up to 100% and the largest subnet, that some scored subnet is
    at least as good as in both. 1 would be free and perfect.
  """)


def tell_training(findings: Findings) -> str:
  """What the curves of training are of."""
  return paragraph(
    'Loss and accuracy are of the training images as training sees them, augmented.',
    "The supernet's are of the random subnets of each step."
    if findings.archive is not None
    else '',
    "The head's alone, before the gradient was read, are of features of the images without "
    'augmentation, where the model gives such features.'
    if findings.allocation is not None
    else '',
  )
