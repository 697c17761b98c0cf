"""The page of a run, `report.html`: the result, how it was found, and code that uses it."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from markupsafe import Markup
from scipy import stats

from glora_jax.compiling import MEMORY, Compilation
from glora_jax.method.genomes import count_params
from glora_jax.method.space import Spec
from glora_jax.search.allocation import Allocation
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import pareto_front
from glora_jax.vision.data.task import Task
from glora_jax.vision.files import number as to_number
from glora_jax.vision.files import read_lines
from glora_jax.vision.models.weights import EMBEDDED
from glora_jax.vision.reports import charts, errors, page, structure
from glora_jax.vision.reports.charts import Chart, Line, Mark, Rule, axis
from glora_jax.vision.reports.errors import Outcome
from glora_jax.vision.reports.tables import (
  PAPER_LABEL,
  Cell,
  Method,
  Table,
  accuracies,
  accuracy_plot,
  code,
  duration,
  grouped,
  paragraph,
  sentence_case,
  share_cell,
  stage_title,
  structure_of,
  weights_name,
)
from glora_jax.vision.structure_names import GENOME_ENDING, GRADIENT, TRANSFER

EQUATION = paragraph(
  'A scales and B shifts the weights, C is a prompt, D scales and E shifts the bias:',
  code("W' = W + W*A + B, b' = b + b*D + E + C W"),
)
_THE = {  # in a sentence
  'linear': 'the linear probe',
  'search': 'the searched structure',
  GRADIENT: "the gradient's structure",
  TRANSFER: 'the transferred structure',
}
_CHANCE = 0.05  # larger p-values may be chance
_MEMORY = 'The memory is what each device needs while the program runs, as the compiler reports it.'
_RESIZED = {'squash': 'resized to a square', 'crop': 'cropped to a square'}
_FEW = 60  # points of a curve, at most, that have tooltips


@dataclasses.dataclass(frozen=True)
class Findings:
  """The findings of a run, for its page.

  Attributes:
    result: content of `result.json`.
    task: the task.
    specs: the layers that each structure's genome describes, by name.
    outcome: the result's answers on the test images.
    archive: the search's; None without a search.
    fitness: what the search maximized, 'accuracy' or 'loss'.
    presets: parameters and accuracy of each preset with the supernet's weights, by name.
    allocation: the allocation; None without one.
    backbone: arguments of `weights.load` and `weights.refit` that load the base again.
    keeps_best: whether the weights are those of the best epoch on the validation images.
    made: how it was found, process by process.
    programs: what was compiled, by stage and name.
  """

  result: Mapping[str, Any]
  task: Task
  specs: Mapping[str, Spec]
  outcome: Outcome
  archive: Archive | None = None
  fitness: str = 'accuracy'
  presets: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  allocation: Allocation | None = None
  backbone: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  keeps_best: bool = False
  made: Sequence[page.Made] = ()
  programs: Mapping[str, Mapping[str, Compilation]] = dataclasses.field(default_factory=dict)

  @property
  def searched_images(self) -> tuple[str, int]:
    """The split that the search scored structures on, and its number of images."""
    split = 'test' if self.result['protocol'] == 'paper' else 'val'
    return split, self.result['data']['images'][split]


def write(workdir: str, findings: Findings) -> None:
  """Writes `report.html` into the workdir of a run."""
  result, allocation, data = findings.result, findings.allocation, findings.result['data']
  structures, number = result['structures'], data['images']['test']
  chosen, methods = structures[result['result']], methods_of(result)
  devices = dict.fromkeys(made['device'].partition(';')[0] for made in findings.made)
  images = ', '.join(f'{number:,} {split}' for split, number in data['images'].items())
  figures = [
    structure.figure(
      sentence_case(structures[name]['label']), findings.specs[name], structures[name]['genome']
    )
    for name in dict.fromkeys((result['result'], 'search', GRADIENT, TRANSFER))
    if name in structures
  ]
  plot = accuracy_plot(f' with 95% intervals on {number:,} images', methods)
  page.write(
    workdir,
    what='a run',
    heading=findings.task.name,
    verdict=[tell_verdict(result), tell_result(result)],
    warning=PAPER_LABEL if result['protocol'] == 'paper' else '',
    figures=[
      (
        'test accuracy',
        f'{100 * chosen["test_accuracy"]:.1f}%',
        '{:.1f} to {:.1f} (95%)'.format(*interval(chosen['test_accuracy'], number)),
      ),
      ('trained parameters', f'{chosen["params"]:,}', 'without the head'),
      ('time', duration(sum(result['seconds'].values())), ', '.join(devices)),
    ],
    sections=[
      page.Section('accuracy', 'Accuracy', [plot, accuracies(methods, 'structure')]),
      page.Section('structure', 'Structure', [EQUATION, structure.Structures(figures)]),
      *([structure.section(allocation, result)] if allocation else []),
      page.Section('search', 'Search', search_blocks(findings)),
      page.Section('training', 'Training', training_blocks(f'{workdir}/metrics.jsonl', result)),
      errors.section(findings.task.classes, findings.outcome),
      page.Section(
        'cost', 'Cost', [stage_bars(result['seconds']), table_of_programs(findings), _MEMORY]
      ),
      page.Section('run', 'What was run', [tell_run(findings), tell_protocol(findings)]),
      page.reproduce(
        findings.made,
        [
          ('Seed', str(result['seed'])),
          ('Weights', weights_name(result)),
          ('Images', paragraph(f'{data["origin"]}: {images}.', *data['notes'])),
          ('Input', f'{_RESIZED[data["resize"]]}, normalized as {result["normalization"]}'),
        ],
      ),
      page.Section('use', 'Use it', snippets(workdir, findings)),
    ],
  )


def stage_bars(seconds: Mapping[str, float]) -> charts.Bars:
  """A bar for the time of every stage, in order."""
  values = [(stage_title(stage, {}), value, duration(value)) for stage, value in seconds.items()]
  return charts.Bars(values, 'dim')


def table_of_programs(findings: Findings) -> Table:
  """What each stage compiled: the seconds that this took, and the memory of each device."""
  labels = {name: tested['label'] for name, tested in findings.result['structures'].items()}
  rows = [
    (stage_title(stage, labels), name, duration(found['seconds']), *_mebibytes(found['memory']))
    for stage, programs in findings.programs.items()
    for name, found in programs.items()
  ]
  return Table(
    'Compiled programs, and their memory on each device by the compiler',
    ('stage', 'program', 'compiled in', *(f'{kind}, MiB' for kind in MEMORY)),
    rows,
    text_columns=2,
  )


def _mebibytes(memory: Mapping[str, int]) -> list[str]:
  sizes = [memory.get(kind) for kind in MEMORY]
  return ['unknown' if size is None else f'{size / 2**20:,.1f}' for size in sizes]


def interval(share: float, number: int) -> tuple[float, float]:
  """Wilson's 95% interval of a share of images, in percent.

  Args:
    share: between 0 and 1.
    number: of how many images, at least 1.

  Example:
    >>> [round(end, 1) for end in interval(0.95, 800)]
    [93.3, 96.3]
  """
  low, high = stats.binomtest(round(share * number), number).proportion_ci(method='wilson')
  return 100 * float(low), 100 * float(high)


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
  structures, number = result['structures'], result['data']['images']['test']
  chosen = structures[result['result']]
  others = {name: other for name, other in structures.items() if other is not chosen}
  rivals = [name for name in others if name not in ('linear', 'supernet')]
  best = sorted(rivals, key=lambda name: others[name]['test_accuracy'])[-1:]
  against = [_against(chosen, others[name], name) for name in others if name in ('linear', *best)]
  return (
    f'{sentence_case(_THE.get(result["result"], chosen["label"]))} classifies '
    f'{100 * chosen["test_accuracy"]:.1f}% of '
    f'{number:,} test images correctly with {chosen["params"]:,} trained parameters'
    f'{", " * bool(against)}{" and ".join(against)}.'
  )


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
  known = {
    name: structure['val_accuracy']
    for name, structure in structures.items()
    if name != 'supernet' and (budget is None or structure['params'] <= budget)
  }
  if len(structures) == 1:
    return ''
  why = Markup('was chosen by {}').format(code('report.result'))
  if chosen['val_accuracy'] is None and result['result'] in (result['structure'], 'file'):
    why = f'is the {"searched structure" if "search" in structures else "requested structure"}'
  elif result['result'] in known and None not in known.values():
    if chosen['val_accuracy'] == max(known.values()):
      within = '' if budget is None else ' within the budget'
      why = f'is the trained structure with the best validation accuracy{within}'
  return Markup('The result {}: {}.').format(why, code(chosen['label']))


def methods_of(result: Mapping[str, Any]) -> list[Method]:
  """The structures of a run, with their parameters and accuracies in percent.

  Args:
    result: content of `result.json`.
  """
  number, found = result['data']['images']['test'], []
  for name, tested in result['structures'].items():
    share, is_result = tested['test_accuracy'], name == result['result']
    others = tested.get('other_test_accuracies', {})
    cells = {
      'parameters': Cell(tested['params'], digits=',.0f'),
      'validation': share_cell(tested['val_accuracy']),
      'test': Cell(100 * share, ends=interval(share, number)),
      **{split: share_cell(other) for split, other in others.items()},
    }
    color = 'red' if is_result else 'dim' if name in ('linear', 'supernet') else 'purple'
    found.append(Method(tested['label'], [], cells, ('', color, 'dot'), is_result))
  return found


def table(result: Mapping[str, Any]) -> str:
  """The accuracies as a Markdown table, below a warning if the protocol is the paper's.

  Args:
    result: content of `result.json`.
  """
  warning = f'**{PAPER_LABEL}**\n\n' if result['protocol'] == 'paper' else ''
  return f'{warning}{accuracies(methods_of(result), "structure")}'


def tell_run(findings: Findings) -> str:
  """How the run went: what was adapted, searched and folded."""
  result = findings.result
  spec = findings.specs[result['result']]
  searched = ''
  if findings.archive is not None:
    split, number = findings.searched_images
    layers, budget = findings.specs['search'], result['budget']
    largest = count_params(layers, layers.num_codes - 1)
    searched = f"""
      A supernet of all their forms was trained (its largest structure has {largest:,} parameters),
      and the search scored {result['evaluations']:,} structures
      {'' if budget is None else f'of at most {budget:,} parameters'} on {number:,} {split} images
      by {findings.fitness}.
    """
  return paragraph(
    f"""
    A pretrained ViT was frozen, and support tensors were added to {len(spec)} linear layers.
    """,
    searched,
    Markup("""
    The result was folded into the frozen weights: {} is a plain ViT of the same size (largest
    difference of a logit: {}). {} has all numbers of this page.
    """).format(code('folded/'), f'{result["fold_max_abs_diff"]:.1e}', code('result.json')),
  )


def tell_protocol(findings: Findings) -> str:
  """Which images were used for what; empty if the page begins with that."""
  result = findings.result
  if result['protocol'] == 'paper':
    return ''
  images, chosen = 'the training images alone', ''
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
  if 'train+val' in result['data']['images']:
    images = 'training and validation images together; only test images measure it'
  elif findings.keeps_best:
    chosen = f'{chosen} The validation images chose the epochs to keep.'
  return paragraph(
    chosen,
    f'Every structure was trained on {images}.',
    Markup('Everything tested is in {}, written before the test images were read.').format(
      code('test_list.json')
    ),
  )


def search_blocks(findings: Findings) -> list[Any]:
  """Charts of a search, and how its front grew; empty without a search."""
  archive, volumes = findings.archive, findings.result['hypervolume']
  if archive is None:
    return []
  split, number = findings.searched_images
  accuracy, generation = 100 * archive.correct / number, archive.generation
  generations = np.unique(generation)
  best = [(each, accuracy[generation <= each].max()) for each in generations]
  last = max(1, int(generation.max(initial=0)))
  progress = Chart(
    'Accuracy of the structures by generation',
    charts.Axis('generation', [*range(0, last + -(-last // 7), -(-last // 7))]),
    axis(f'accuracy in % on {number:,} {split} images', accuracy, most=100),
    [
      Line('a structure', 'teal', charts.thinned(generation, accuracy), 'dots'),
      Line('mean', 'dim', [(each, accuracy[generation == each].mean()) for each in generations]),
      Line('best so far', 'red', best),
    ],
    [Mark(at, f'generation {at[0]}: best so far {at[1]:.1f}%', 'red') for at in best],
  )
  grown = f"""
    Structures are scored with the supernet's weights. The hypervolume of the front (the share of
    all pairs of error and parameters that some structure matches or beats) grew from
    {volumes[0]:.3f} after the first generation to {volumes[-1]:.3f} after the last.
  """
  return [page.Pair([progress, _cloud_chart(findings, archive.genomes, 100 - accuracy)]), grown]


def _cloud_chart(findings: Findings, genomes: np.ndarray, error: np.ndarray) -> Chart:
  params = count_params(findings.specs['search'], genomes)
  budget, searched = findings.result['budget'], findings.result['structures']['search']['genome']
  marks = [('', params[at], error[at], 'teal', 'dot') for at in pareto_front(params, error)]
  front = charts.steps([(x, y) for _, x, y, _, _ in marks])
  marks += [
    (f'{name}: ', found['params'], 100 * (1 - found['accuracy']), 'purple', 'diamond')
    for name, found in findings.presets.items()
  ]
  marks += [
    ('chosen: ', params[at], error[at], 'red', 'star')
    for at in np.flatnonzero((genomes == np.array(searched)).all(axis=(1, 2)))
  ]
  limit = [] if budget is None else [budget]
  legend = [('presets', 'purple', 'diamond')] if findings.presets else []
  return Chart(
    "Error against parameters, with the supernet's weights",
    axis('trained parameters', [0, *params, *limit, *(x for _, x, *_ in marks)]),
    axis('error in %', [*error, *(y for _, _, y, *_ in marks)], most=100),
    [
      Line('scored', 'grey', charts.thinned(params, error), 'dots'),
      Line('Pareto front', 'teal', front),
    ],
    [
      Mark((x, y), f'{name}{x:,} parameters, {y:.1f}% wrong', *style)
      for name, x, y, *style in marks
    ],
    [Rule(value, f'budget, {value:,}', 'dim') for value in limit],
    [*legend, ('chosen', 'red', 'star')],
  )


class _Measurement(TypedDict):
  stage: str
  epoch: float


def training_blocks(metrics: str, result: Mapping[str, Any]) -> list[Any]:
  """Accuracy and loss of every training stage by epoch, as far as they are finite.

  Args:
    metrics: path of `metrics.jsonl`.
    result: content of `result.json`.
  """
  lines = read_lines(metrics, 'metrics', _Measurement)
  stages = grouped(lines, lambda line: line['stage'])
  drawn = [_training_chart(stages, result, metric) for metric in ('accuracy', 'loss')]
  if not any(drawn):
    return []
  random = '; the supernet takes random structures at each step' if 'supernet' in stages else ''
  return [
    page.Pair([*filter(None, drawn)]),
    f'Solid lines are on augmented training images{random}.',
  ]


def _training_chart(
  stages: Mapping[str, Sequence[Mapping[str, Any]]], result: Mapping[str, Any], metric: str
) -> Chart | None:
  """A metric by epoch, dashed on validation images; None if no value can be drawn."""
  is_loss, structures = metric == 'loss', result['structures']
  labels = {name: tested['label'] for name, tested in structures.items()}
  lines, marks, legend = [], [], {}
  for number, (stage, measured) in enumerate(stages.items()):
    color, name = f'series-{number % len(page.SERIES)}', stage_title(stage, labels)
    for field, kind in ((metric, 'line'), (f'val_{metric}', 'dashed')):
      values = [
        (line['epoch'], to_number(line.get(field)) * (1 if is_loss else 100)) for line in measured
      ]
      curve = [(x, y) for x, y in values if np.isfinite(y) and (y > 0 or not is_loss)]
      if not curve:
        continue
      lines.append(Line(name, color, curve, kind))
      split = ', validation' if kind == 'dashed' else ''
      marks += [  # a single point has no line
        Mark(
          at,
          f'{name}{split}, epoch {at[0]:g}: {at[1]:.4g}',
          color,
          'hidden' if curve[1:] else 'dot',
        )
        for at in curve
        if len(curve) <= _FEW
      ]
      if split:
        legend['validation images'] = kind
        trained = structures.get(structure_of(stage), {})
        # A compiled call may end some steps after the epoch.
        best = [at for at in curve if round(at[0]) == trained.get('best_epoch') and not is_loss]
        marks += [
          Mark(at, f'{name}, best epoch {at[0]:g}: {at[1]:.1f}%', color, 'star') for at in best
        ]
        legend |= dict.fromkeys(['best epoch'] * len(best), 'star')
  if not lines:
    return None
  xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
  return Chart(
    f'{metric.capitalize()} by epoch',
    axis('epoch', [0, *xs], whole=True),
    axis(
      'loss' if is_loss else 'accuracy in %', ys, is_log=is_loss, most=np.inf if is_loss else 100
    ),
    lines,
    marks,
    legend=[(name, 'dim', kind) for name, kind in legend.items()],
  )


def snippets(workdir: str, findings: Findings) -> list[Any]:
  """Commands and code that predict, load the model in timm, and apply the adapter."""
  folded, converted = os.path.join(workdir, 'folded'), os.path.join(workdir, 'timm')
  predict = ['python', '-m', 'glora_jax.predict', '--model', folded, 'photo.jpg']
  convert = ['python', '-m', 'glora_jax.convert', folded, converted, '--format', 'timm']
  predict_code = f"""\
from glora_jax.vision.models.classifier import Classifier

classifier = Classifier({folded!r})
for path, probabilities in classifier(['photo.jpg']):
  print(path, classifier.classes[probabilities.argmax()], probabilities.max())"""
  convert_code = f"""\
import timm

model = timm.create_model({f'local-dir:{converted}'!r}, pretrained=True)"""
  return [
    page.Heading('Predict'),
    page.Code(shlex.join(predict)),
    page.Code(predict_code),
    page.Heading('Load in timm'),
    page.Code(shlex.join(convert)),
    page.Code(convert_code),
    page.Heading('Apply the adapter'),
    page.Code(adapter_code(workdir, findings)),
  ]


def adapter_code(workdir: str, findings: Findings) -> str:
  """Code that applies the adapter to the base that it was trained on."""
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
from glora_jax.vision.models import fetch, weights

base = fetch.fetch({base}{checksum})
loaded = weights.load(base{hints})
model, params, metadata = weights.refit(*loaded{fitted})
images = jnp.zeros((1, {size}, {size}, 3))  # normalized as '{findings.result['normalization']}'
path = {os.path.join(workdir, 'adapter.safetensors')!r}
adapted = glora_jax.adapt(model, images, structure=path)
adapted, variables = glora_jax.load_adapter(path, adapted, params)
logits = adapted.apply(variables, images)"""
