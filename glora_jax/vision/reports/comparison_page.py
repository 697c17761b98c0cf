"""The page of a comparison, `report.html`, and its table with a row for each method and budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from glora_jax.method.space import Spec
from glora_jax.vision.reports import page, structure
from glora_jax.vision.reports.charts import Bars
from glora_jax.vision.reports.run_page import stage_bars
from glora_jax.vision.reports.tables import (
  Method,
  accuracies,
  accuracy_plot,
  code,
  duration,
  grouped,
  mean,
  paragraph,
  sentence_case,
  share_cell,
  weights_name,
)

CHOSEN = {  # methods that choose a structure within a budget, and how they are drawn
  'search': ('searched', 'red', 'star'),
  'gradient': ('gradient', 'teal', 'star'),
  'transfer': ('transferred', 'dim', 'star'),
}
# Troubles of a seed, by the field of `result.json` that has the sentences.
TROUBLES = {'diverged': 'diverged', 'learned_nothing': 'learned nothing'}
TITLES = {
  'linear': 'linear probe',
  'bitfit': 'BitFit',
  'lora': 'LoRA',
  'dora': 'DoRA-like',
  'ssf': 'SSF-like',
  'prompt': 'prompts',
  'full': 'all of GLoRA',
  'hira': 'HiRA',
  'scale_shift': 'scale and shift',
  'finetuning': 'full fine-tuning',
}
COLUMNS = {  # of the table, by field: the heading, and how a number is written
  'params': ('parameters', ',.0f'),
  'val_accuracy': ('validation', ''),
  'test_accuracy': ('test', ''),
  'inherited_test_accuracy': ('test before finetuning', ''),
  'rate': ('learning rate', 'g'),
  'seconds': ('seconds', '.0f'),
}
_REMEDY = """
Try a lower rate (compare.rate, compare.rates), bounded gradients (training.max_grad_norm=1) or more
epochs (training.epochs) in a new workdir.
"""


def write(workdir: str, result: Mapping[str, Any], spec: Spec, made: Sequence[page.Made]) -> None:
  """Writes `report.html` and `table.csv` into the workdir of a comparison.

  Args:
    workdir: its folder.
    result: content of its `result.json`.
    spec: the layers that the gradient's structures describe.
    made: how it was made, process by process.
  """
  structures, data = result.get('structures', {}), result['data']
  page.write_table(workdir, lines_of(result))
  methods, number = methods_of(result), len(result['seeds'])
  over = f', mean and standard deviation over {number} seeds' if number > 1 else ''
  figures = [  # of the first seed
    structure.figure(f'{sentence_case(name_of(name))}, seed {result["seeds"][0]}', spec, genomes[0])
    for name, genomes in structures.items()
  ]
  chosen = [(name_of(name), genome) for name, genomes in structures.items() for genome in genomes]
  seconds = {method.name: method.cells['seconds'].value for method in methods}
  costs = [(name, value, duration(value)) for name, value in seconds.items()]
  cost = [page.Heading('Training of one seed'), Bars(costs, 'purple')]
  if result['seconds']:
    cost += [page.Heading('The whole comparison'), stage_bars(result['seconds'])]
  page.write(
    workdir,
    what='a comparison',
    heading=result['task'],
    verdict=[tell_best(result)],
    warning=tell_troubles(result),
    sections=[
      page.Section(
        'accuracy',
        'Accuracy',
        [accuracy_plot(over, methods), *verdicts(result), accuracies(methods, 'method')],
      ),
      page.Section(
        'structure',
        'Structures',
        [figures and structure.Structures(figures), *structure.agreements(chosen)],
      ),
      page.Section('cost', 'Cost', cost),
      page.Section('run', 'What was run', [tell_making(result)]),
      page.reproduce(
        made,
        [
          ('Seeds', ', '.join(map(str, result['seeds']))),
          ('Weights', weights_name(result)),
          ('Images', paragraph(f'{data["origin"]}.', *data['notes'])),
        ],
      ),
    ],
  )


def summary(result: Mapping[str, Any], workdir: str) -> str:
  """The text that the command line prints at the end."""
  last = f'Page: {workdir}/report.html'
  return '\n\n'.join((str(accuracies(methods_of(result), 'method')), *verdicts(result), last))


def budget_of(name: str) -> int | None:
  """The budget of a structure that was chosen for the task; None for other methods.

  Example:
    >>> budget_of('search-40000'), budget_of('gradient-40000'), budget_of('lora')
    (40000, 40000, None)
  """
  method, _, budget = name.partition('-')
  return int(budget) if method in CHOSEN else None


def name_of(name: str, labels: Mapping[str, str] | None = None) -> str:
  """The name of a method in tables, with its budget.

  Args:
    name: its name in `result.json`.
    labels: those of presets, by name.

  Example:
    >>> name_of('search-40000'), name_of('lora', {'lora': 'lora:4'})
    ('searched, at most 40,000', 'lora:4')
  """
  budget = budget_of(name)
  if budget is None:
    label = (labels or {}).get(name, name)
    return TITLES.get(name, name) if label == name else label
  return f'{CHOSEN[name.partition("-")[0]][0]}, at most {budget:,}'


def lines_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The lines of `table.csv`: all measurements, by method, budget and seed.

  Args:
    result: content of the comparison's `result.json`.

  Returns:
    'method', 'seed', 'rate', the run's fields, and sentences as 'diverged' and 'learned_nothing'.
  """
  return [
    {
      'method': name,
      'seed': seed,
      # The name of a row with a budget is method and budget.
      'rate': result['rate'][name if name in result['rate'] else name.rpartition('-')[0]],
      **run,
      **{each: result.get(each, {}).get(name, {}).get(str(seed), '') for each in TROUBLES},
    }
    for name, runs in result['methods'].items()
    for seed, run in zip(result['seeds'], runs, strict=True)
  ]


def methods_of(result: Mapping[str, Any]) -> list[Method]:
  """The methods and budgets, ordered by parameters.

  Names include how many seeds diverged or learned nothing; cells have parameters, rate, seconds,
  and accuracies in percent.

  Args:
    result: content of the comparison's `result.json`.
  """
  found, labels = [], result.get('labels', {})
  for name, lines in grouped(lines_of(result), lambda line: line['method']).items():
    troubles = []
    for trouble, word in TROUBLES.items():
      if number := sum(line[trouble] != '' for line in lines):
        troubles.append(word if len(lines) == 1 else f'{number} of {len(lines)} seeds {word}')
    called = name_of(name, labels) + (f' ({", ".join(troubles)})' if troubles else '')
    by_field = {field: [line[field] for line in lines if field in line] for field in COLUMNS}
    cells = {
      column: mean(by_field[field])._replace(digits=digits, deviation=None)
      if digits
      else share_cell(None)
      if None in by_field[field]  # the validation images were trained on
      else mean([100 * share for share in by_field[field]])
      for field, (column, digits) in COLUMNS.items()
    }
    kind, _, _ = name.partition('-')
    found.append(Method(called, lines, cells, CHOSEN.get(kind, ('fixed', 'purple', 'dot'))))
  return sorted(found, key=lambda method: method.cells['parameters'].value)


def tell_troubles(result: Mapping[str, Any]) -> str:
  """What diverged or learned nothing, and what may help; empty if nothing did."""
  found = []
  for method in methods_of(result):
    sentences = [(line[each], str(line['seed'])) for each in TROUBLES for line in method.lines]
    reasons = grouped([each for each in sentences if each[0]], lambda each: each[0])
    if reasons:
      found.append(f'{sentence_case(method.name)}, counted in the mean.')
    for sentence, alike in reasons.items():
      seeds = ', '.join(seed for _, seed in alike)
      found.append(f'Seed{"s" * (len(alike) > 1)} {seeds}: {sentence}')
  return ' '.join([*found, _REMEDY] if found else [])


def verdicts(result: Mapping[str, Any]) -> list[str]:
  """A sentence for every chosen structure, against the best method within its budget.

  The best is by test accuracy; differences are between runs of the same seed.
  """
  methods, sentences = methods_of(result), []
  fixed = [method for method in methods if budget_of(method.lines[0]['method']) is None]
  for method in methods:
    budget = budget_of(method.lines[0]['method'])
    rivals = [
      each for each in fixed if budget is not None and each.cells['parameters'].value <= budget
    ]
    if not rivals:
      continue
    best = max(rivals, key=_accuracy)
    pairs = zip(method.lines, best.lines, strict=True)
    gain = mean([100 * (one['test_accuracy'] - two['test_accuracy']) for one, two in pairs])
    sentences.append(
      f'{sentence_case(method.name)}: {"+" * (round(gain.value, 1) >= 0)}{gain} points against '
      f'{best.name}, the best fixed method within that budget ({method.cells["parameters"]} and '
      f'{best.cells["parameters"]} parameters'
      f'{"" if gain.deviation is None else "; differences at the same seed"}).'
    )
  return sentences


def _accuracy(method: Method) -> float:
  return method.cells['test'].value


def tell_best(result: Mapping[str, Any]) -> str:
  """A sentence on the method with the highest test accuracy; of equal ones, the smallest."""
  methods = methods_of(result)
  best = max(methods, key=_accuracy)
  as_good = sum(_accuracy(method) == _accuracy(best) for method in methods) - 1
  others = f' (tied with {as_good} other{"s" * (as_good > 1)})' if as_good else ''
  return (
    f'{sentence_case(best.name)} is the most accurate of {len(methods)} methods{others}: '
    f'{best.cells["test"]}% test accuracy with {best.cells["parameters"]} trained parameters.'
  )


def tell_making(result: Mapping[str, Any]) -> str:
  """How the methods were trained, their learning rates chosen, and what was tested."""
  is_search = any(name.startswith('search-') for name in result['methods'])
  spared = sorted(
    {each for seeds in result.get('allocation_epochs', {}).values() for each in seeds}
  )
  rates = ', '.join(f'{rate:g}' for rate in result['rates'])
  return paragraph(
    f'Every method was trained for {result["epochs"]} epochs.',
    result['train_on'] == 'train+val'
    and """
    Once its structure and learning rate were settled, it was trained on training and validation
    images together.
    """,
    is_search
    and f'The search spends {result["finetune_epochs"]} of them on finetuning its structure.',
    spared
    and f"""
    The gradient's structure is allocated from the training images; head and gradient count as
    {' or '.join(map(str, spared))} of its epochs.
    """,
    'tuning' in result['seconds']
    and Markup("""
    Learning rates that the config does not give are the best of {} on the validation images, with a
    seed that is not in the table ({}).
    """).format(rates, code('rates.json')),
    Markup("""
    Everything tested is in {}, written before the test images were read. Seconds are those of one
    seed, including the choice of a structure.
    """).format(code('test_list.json')),
  )
