"""Accuracies on a page: plots, tables, and sentences that compare the best structures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup
from scipy import stats

from glora_jax.vision.reports.charts import Axis, DotPlot, Dots, Mark, axis
from glora_jax.vision.reports.means import Number
from glora_jax.vision.reports.page import Blocks, Result, Table, sentence_case
from glora_jax.vision.reports.table import Method, Pivot, is_mean, tell_other_images
from glora_jax.vision.structure_names import GRADIENT, SEARCH, SUPERNET, TRANSFER

BACKBONE = 'ViT-B/16 pretrained on ImageNet-21k'  # of the published results
_SHAPES = ('dot', 'star', 'diamond', 'ring')  # the first ones are drawn above the others
_THE = {  # in a sentence
  'linear': 'the linear probe',
  SEARCH: 'the searched structure',
  GRADIENT: "the gradient's structure",
  TRANSFER: 'the transferred structure',
}
_CHANCE = 0.05  # larger p-values may be chance


def blocks_of(pivot: Pivot) -> Blocks:
  """The accuracies on a page: one task by structure, several by task; empty if there are none."""
  if not pivot.methods:
    return []
  table, gains = table_of(pivot), tell_gains(pivot)
  if not pivot.board.by_task:
    return [plot_of_structures(pivot), *gains, table]
  columns = 'Test accuracy in percent; in brackets, millions of trained parameters without heads.'
  if pivot.methods[-1].is_published:
    columns += f' All except ours are published, for a {BACKBONE}.'
  return [plot_of_tasks(pivot), *gains, tell_other_images(pivot.board), columns, table]


def tell_verdict(result: Result) -> str:
  """The result's accuracy, against the linear probe and the best other structure on validation.

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
  split, title = ('test', 'test') if 'test_accuracy' in chosen else ('val', 'validation')
  others = {name: other for name, other in structures.items() if 'against_result' in other}
  rivals = [name for name in others if name not in ('linear', SUPERNET)]
  if len(rivals) > 1:
    rivals = _best_on_val({name: others[name] for name in rivals})
  against = [_against(chosen, others[name], name) for name in others if name in ('linear', *rivals)]
  told = (
    f'{sentence_case(_THE.get(result["result"], chosen["label"]))} classifies '
    f'{100 * chosen[f"{split}_accuracy"]:.1f}% of {result["data"]["images"][split]:,} {title} '
    f'images correctly with {chosen["params"]:,} trained parameters'
  )
  return f'{", ".join(filter(None, [told, " and ".join(against)]))}.'


def _best_on_val(structures: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """The best structure on the validation images, the smallest of equal ones; none without these."""
  shares = {
    name: found.get('val_balanced_accuracy', found['val_accuracy'])
    for name, found in structures.items()
  }
  if None in shares.values():
    return []
  return [max(shares, key=lambda name: (shares[name], -structures[name]['params']))]


def _against(chosen: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
  """The result against another structure, and whether the difference may be chance."""
  points = round(100 * (chosen['test_accuracy'] - other['test_accuracy']), 1)
  called = _THE.get(name, other['label'])
  if not points:
    return f'the same accuracy as {called}'
  more = f'{abs(points):.1f} points {"less" if points < 0 else "more"} than {called}'
  paired = other['against_result']
  chance = stats.binomtest(paired['result_only'], sum(paired.values())).pvalue
  doubt = f" (may be chance: McNemar's exact test, p = {chance:.2g})"
  return more if chance < _CHANCE else more + doubt


def tell_result(result: Result) -> str:
  """Why this structure is the result; empty if it is the only one."""
  structures = result['structures']
  chosen = structures[result['result']]
  if len(structures) == 1:
    return ''
  why = Markup('was chosen by <code>report.result</code>')
  if len(among := result['chosen_from']) > 1:
    why = f'is the best of {", ".join(among)} on the validation images'
  elif result['result'] in (result['structure'], 'file'):
    why = f'is the {"searched" if SEARCH in structures else "requested"} structure'
  return Markup('The result {}: <code>{}</code>.').format(why, chosen['label'])


def tell_rates(pivot: Pivot) -> str:
  """That baselines have the result's rate, and no epochs of a finetuning; empty without any."""
  board, rows = pivot.board, [row for row in pivot.rows if row.run in pivot.board.tested]
  results = {row.run: row.rate for row in rows if row.role == 'result'}
  is_same = [
    row.rate == results[row.run]
    for row in rows
    if row.run in results and row.role == '' and row.structure not in (SEARCH, SUPERNET)
  ]
  if not is_same:
    return ''
  whose = 'result' if all(is_same) else 'supernet'
  searched = {row.run for row in rows if row.role == 'result' and row.structure == SEARCH}
  fewer = any(board.results[run]['finetuned'] for run in searched)
  more = ' and without the epochs of its finetuning' if fewer else ''
  favors = 'favors' if len(board.tested) < len(board.cells) else 'may favor'  # it was tuned
  return (
    f"The baselines were trained at the {whose}'s learning rate{more}, so the comparison {favors} "
    'the result. Give suite.structures and suite.rates to tune every structure, all with the same '
    'epochs.'
  )


def tell_best(pivot: Pivot) -> str:
  """The accuracy of the result, or of the best structure of a grid, with the published GLoRA's.

  The validation images say which one is the best.
  """
  board, methods = pivot.board, pivot.methods
  title = methods and pivot.headline
  if not title:
    return f'{len(board.results)} of {len(board.cells)} runs are done, too few for a mean.'
  best, candidates = pivot.best, pivot.candidates
  if best is None:
    return (
      f'{len(board.results)} of {len(board.cells)} runs are done. None of {len(candidates)} '
      'structures is called the best: there is no validation accuracy at the same tasks and seeds '
      'to choose by, and test accuracy must not choose.'
    )
  name, number = best.label, best.cells[title]
  accuracy = f'{number._replace(total=0)}%'
  if board.is_grid and len(candidates) > 1:
    tied = sum(pivot.validation(each) == pivot.validation(best) for each in candidates) - 1
    others = f' (tied with {tied} {"others" if tied > 1 else "other"})' if tied else ''
    name = f'the best of {len(candidates)} structures on the validation images is {name}{others}'
  name = sentence_case(name)
  if is_mean(title):
    theirs = [each.cells[title] for each in methods if each.label == 'GLoRA']
    published = f'; published for GLoRA: {theirs[0]}' if theirs else ''
    return f'{name}: {accuracy} test accuracy, {title}{published}.'
  runs = '' if number.complete else f' ({number.done} of {number.total} runs)'
  return f'{name}: {accuracy} {title} accuracy{runs} with {best.parameters} trained parameters.'


def tell_gains(pivot: Pivot) -> list[str]:
  """A sentence for every structure that a grid chose, against the best fixed one in its budget.

  Validation accuracy says which fixed structure is the best. Without it there is no sentence,
  unless only one fits. Differences are between runs of the same seed.
  """
  title = pivot.headline
  if not title or not pivot.board.is_grid:
    return []
  sentences = []
  for method in pivot.ours:
    budget = method.rows[0].budget
    if budget is None:  # it was not chosen within one
      continue
    rivals = [each for each in pivot.ours if each.is_fixed and each.parameters.value <= budget]
    if (best := pivot.best_of(rivals)) is None:
      continue
    theirs, own = best.cells[title].repeats, method.cells[title].repeats
    gain = Number({run: own[run] - theirs[run] for run in own if run in theirs})
    paired = '' if gain.deviation is None else '; differences at the same seed'
    sentences.append(
      f'{sentence_case(method.label)}: {"" if gain.value < 0 else "+"}{gain} points against '
      f'{best.label}, the best fixed structure within that budget ({method.parameters} and '
      f'{best.parameters} parameters{paired}).'
    )
  return sentences


def ends_of(pivot: Pivot, method: Method) -> tuple[float, float]:
  """Wilson's 95% interval of a single run's accuracy, or the standard deviation around a mean."""
  number = method.cells[pivot.headline]
  if number.total == 1:
    right = round(number.value / 100 * pivot.images)
    low, high = stats.binomtest(right, pivot.images).proportion_ci(method='wilson')
    return 100 * low, 100 * high
  around = number.deviation or 0.0
  return max(0.0, number.value - around), min(100.0, number.value + around)


def plot_of_structures(pivot: Pivot) -> DotPlot:
  """A row for each structure, with its spread over seeds or the interval of a single run."""
  drawn = []
  for method in pivot.methods:
    number, params = method.cells[pivot.headline], str(method.parameters)
    ends = ends_of(pivot, method)
    exactly = f'{number.value:.2f}%, {ends[0]:.1f} to {ends[1]:.1f}; {params} trained parameters'
    mark = Mark((number.value,), exactly, *method.style[1:])
    drawn.append(Dots(method.label, str(number), [mark], params, ends, method.is_strong))
  seeds = {cell.seed for cell in pivot.board.tested.values()}
  over = f', mean and standard deviation over {len(seeds)} seeds'
  if len(seeds) == 1:
    over = f' with 95% intervals on {pivot.images:,} images'
  legend = list(dict.fromkeys(method.style for method in pivot.methods))
  return DotPlot(
    f'{pivot.headline.capitalize()} accuracy in %{over}, and parameters',
    axis('', [end for dots in drawn for end in dots.ends], most=100),
    drawn,
    legend if len(legend) > 1 else [],
  )


def plot_of_tasks(pivot: Pivot) -> DotPlot:
  """A row for each line of the table, with a mark for each method; ours are above the others."""
  best = pivot.best
  ordered = sorted(pivot.methods, key=lambda method: _SHAPES.index(method.style[2]))
  rows = []
  for title in pivot.methods[0].cells:
    marks = [
      Mark((cell.value,), f'{method.label}: {cell}', *method.style[1:])
      for method in reversed(ordered)
      if (cell := method.cells[title]).done
    ]
    number = '' if best is None else str(best.cells[title])
    rows.append(Dots(title, number, marks, is_strong=is_mean(title)))
  return DotPlot(
    'Test accuracy in %' + ('' if best is None else f'; numbers are for {best.label}'),
    Axis('', [0, 20, 40, 60, 80, 100]),
    rows,
    list(dict.fromkeys(method.style for method in ordered)),
  )


def table_of(pivot: Pivot) -> Table:
  """The accuracies: one task has a row for each structure, several a column for each method."""
  board, methods = pivot.board, pivot.methods
  caption, titles = 'Accuracy in percent', methods[0].cells
  if board.by_task:
    headings = []
    for method in methods:
      size = method.parameters
      headings.append(method.label + (f' ({size.value / 1e6:.2g})' if size.done else ''))
    rows = [(title, *(method.cells[title] for method in methods)) for title in titles]
    strong = [at for at, title in enumerate(titles) if is_mean(title)]
    return Table(caption, ('', *headings), rows, strong=strong)
  more = {'learning rate': ('rate', 'g'), 'seconds': ('seconds', '.0f')}
  if len(board.cells) == 1:
    more = {}
  rows = [
    (
      method.label,
      method.parameters,
      *method.cells.values(),
      *(method.mean(*what) for what in more.values()),
    )
    for method in methods
  ]
  strong = [at for at, method in enumerate(methods) if method.is_strong]
  return Table(caption, ('structure', 'parameters', *titles, *more), rows, strong=strong)
