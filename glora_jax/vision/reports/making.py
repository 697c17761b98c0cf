"""How results were made: use of the images, times, programs, and commands that use the results."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

from markupsafe import Markup

from glora_jax.compiling import MEMORY
from glora_jax.method.genomes import count_params
from glora_jax.method.space import Spec
from glora_jax.vision.data import record
from glora_jax.vision.models.weights import EMBEDDED
from glora_jax.vision.reports.charts import Bars
from glora_jax.vision.reports.curves import searched_images
from glora_jax.vision.reports.page import (
  LONG,
  TEST_LIST,
  Blocks,
  Code,
  Facts,
  Heading,
  Result,
  Table,
  duration,
  group_by,
  paragraph,
)
from glora_jax.vision.reports.table import Board, Pivot
from glora_jax.vision.structure_names import FINETUNING, GENOME_ENDING, TRANSFER, stage_title

_RESIZED = {'squash': 'resized to a square', 'crop': 'cropped to a square'}


def left_out(workdir: str) -> Blocks:
  """The images that cannot be decoded, with the reason; empty if there are none."""
  rows = [(row.image, row.split, row.fault) for row in record.read(workdir) if row.fault]
  title = 'Images left out because they cannot be decoded'
  table = Table(title, ('image', 'split', 'reason'), rows, 3, is_folded=len(rows) > LONG)
  return [Heading(title), table] if rows else []


def tell_run(result: Result, spec: Spec) -> str:
  """How a run went: adaptation, search and fold; see `report.write_run`."""
  genome = result['structures'][result['result']]['genome']
  # A supernet has adapters in all layers, whatever forms the search has chosen.
  layers = len(genome) if result['evaluations'] else sum(map(any, genome))
  made = f'A pretrained model was frozen, and adapters were added to {layers} linear layers.'
  if result['result'] == FINETUNING:
    made = 'All weights of a pretrained model were trained, without an adapter.'
  elif not layers:
    made = 'Only the head of a pretrained model was trained, without an adapter.'
  searched, kept = '', 'No model was evaluated on the test images, and none was kept.'
  if result['evaluations'] is not None:
    split, number = searched_images(result)
    budget, largest = result['budget'], count_params(spec, spec.num_codes - 1)
    searched = f"""
      A supernet of all their forms was trained (its largest structure has {largest:,} parameters),
      and the search scored {result['evaluations']:,} structures
      {'' if budget is None else f'of at most {budget:,} parameters'} on {number:,} {split} images
      and ranked them by {result['fitness']}.
    """
  if 'fold_max_abs_diff' in result:
    kept = Markup("""
      <code>folded/</code> has the result as a plain model of the same size, without an adapter
      (largest difference of a logit: {:.1e}).
    """).format(result['fold_max_abs_diff'])
  numbers = Markup('<code>result.json</code> has all numbers of this page.')
  return paragraph(made, searched, kept, numbers)


def tell_protocol(result: Result) -> str:
  """How each split was used; empty if the page begins with that."""
  if result['protocol'] == 'paper':
    return ''
  images, chosen = 'the training images only', ''
  if result['evaluations'] is not None:
    chosen = """
      The searched structure was chosen on the validation images, with a supernet trained on the
      training images only.
    """
  elif result['structure'] == TRANSFER or result['structure'].endswith(GENOME_ENDING):
    chosen = """
      The structure comes from a file, which does not record how it was chosen. If it was chosen on
      these validation or test images, their accuracies are too high.
    """
  if result['train_on'] != 'train':
    images = 'training and validation images together, so only test images measure it'
  elif result['keeps_best']:
    chosen = f'{chosen} The epochs to keep were chosen on the validation images.'
  tested = 'fold_max_abs_diff' in result and TEST_LIST
  return paragraph(chosen, f'Every structure was trained on {images}.', tested)


def cost(pivot: Pivot) -> Blocks:
  """The time of all runs by stage or by task, and of one run of each structure of a grid."""
  board = pivot.board
  if not board.results:
    return []
  every = _bars(
    (board.cells[name].task if board.by_task else stage_title(stage, {}), seconds)
    for name, result in board.finished.items()
    for stage, seconds in result['seconds'].items()
  )
  if not (board.is_grid and pivot.methods):
    return [every]
  return [
    Heading('One run of each structure'),
    _bars(((method.label, method.mean('seconds', '.0f').value) for method in pivot.ours), 'purple'),
    Heading('All runs'),
    every,
    'The time of a stage that several runs share counts in each of them.',
  ]


def _bars(seconds: Iterable[tuple[str, float]], color: str = 'dim') -> Bars:
  """A bar for the time of everything, in order; times of one name are added up."""
  sums: dict[str, float] = {}
  for name, value in seconds:
    sums[name] = sums.get(name, 0.0) + value
  return Bars([(name, value, duration(value)) for name, value in sums.items()], color)


def table_of_programs(result: Result) -> Table:
  """The programs that each stage compiled: seconds of compiling, and memory of each device."""
  rows = []
  for stage, programs in result['programs'].items():
    for name, found in programs.items():
      sizes = [found['memory'].get(kind) for kind in MEMORY]
      shown = ['unknown' if size is None else f'{size / 2**20:,.1f}' for size in sizes]
      rows.append(
        (stage_title(stage, result['structures']), name, duration(found['seconds']), *shown)
      )
  return Table(
    'Compiled programs, and the memory that each needs on a device',
    ('stage', 'program', 'compiled in', *(f'{kind}, MiB' for kind in MEMORY)),
    rows,
    text_columns=2,
  )


def reproduce(board: Board) -> Blocks:
  """Data, weights, versions and commands that the results were made with."""
  facts, processes = [], []
  for name, result in board.finished.items():
    processes += [each for each in result.get('provenance', ()) if each not in processes]
    if name not in board.tested:
      continue
    data, revision = result['data'], result.get('weights_revision')
    commit = f' (commit {revision[:12]})' if revision else ''
    counts = ', '.join(f'{number:,} {split}' for split, number in data['images'].items())
    facts += [
      ('Seed', str(result['seed'])),
      *(('Learning rate', f'{found["rate"]:g}') for found in result['structures'].values()),
      ('Weights', Markup('<code>{}</code>{}').format(result['weights'], commit)),
      ('Input', f'{_RESIZED[data["resize"]]}, normalized as {result["normalization"]}'),
      (
        result['task'] if board.by_task else 'Images',
        paragraph(f'{data["origin"]}: {counts}.', *data['notes']),
      ),
    ]
  terms = [  # with each value once
    (term, Markup(', ').join(value for _, value in same))
    for term, same in group_by(dict.fromkeys(facts), lambda fact: fact[0]).items()
  ]
  blocks: Blocks = [Facts(terms)]
  for made in processes:
    versions = ', '.join(f'{name} {version}' for name, version in made['versions'].items())
    blocks += [
      made['command'] and Code(made['command']),
      Facts([('Device', made['device']), ('Versions', versions)]),
    ]
  return blocks


def snippets(workdir: str, result: Result) -> Blocks:
  """Commands and code that predict, load the model in timm, and apply an adapter, after a test."""
  if 'fold_max_abs_diff' not in result:
    return []
  folded, converted = os.path.join(workdir, 'folded'), os.path.join(workdir, 'timm')
  library = result['base'].get('library')
  in_timm = Code(f"""\
import timm

model = timm.create_model({f'local-dir:{folded if library else converted}'!r}, pretrained=True)""")
  if library == 'timm':
    loading = [in_timm]
  elif library:
    loading = [
      Code(f"""\
import transformers

model = transformers.AutoModelForImageClassification.from_pretrained({folded!r})""")
    ]
  else:
    convert = f'{shlex.quote(folded)} {shlex.quote(converted)} --format timm'
    loading = [Code(f'python -m glora_jax.convert {convert}'), in_timm]
  blocks = [
    Heading('Predict'),
    Code(f'python -m glora_jax.predict --model {shlex.quote(folded)} photo.jpg'),
    Code(f"""\
from glora_jax.vision.models.classifier import Classifier

classifier = Classifier({folded!r})
for path, outcome in classifier(['photo.jpg']):
  if isinstance(outcome, str):  # the file cannot be read, and why
    print(path, outcome)
  else:  # probabilities
    print(path, classifier.classes[outcome.argmax()], outcome.max())"""),
    Heading(f'Load in {library or "timm"}'),
    *loading,
  ]
  if result['result'] != FINETUNING:
    blocks += [Heading('Apply the adapter'), Code(adapter_code(workdir, result))]
  return blocks


def adapter_code(workdir: str, result: Result) -> str:
  """Code that applies the adapter to the base that it was trained on."""
  name, revision = result['weights'], result.get('weights_revision')
  base = repr(f'{name.partition("@")[0]}@{revision}' if revision else name)
  if name == EMBEDDED:
    base = 'weights.EMBEDDED_FILE'
  given = result['base']

  def arguments(*names: str) -> str:
    return ''.join(f', {name}={given[name]!r}' for name in names if given.get(name))

  adapt = 'model.adapt(' if given.get('library') else 'glora_jax.adapt(model, '
  fitted, size = arguments('num_classes', 'patch_size', 'image_size'), given['image_size']
  return f"""\
import jax.numpy as jnp

import glora_jax
from glora_jax.vision.models import fetch, weights

base = fetch.fetch({base}{arguments('sha256')})
loaded = weights.load(base{arguments('num_heads', 'activation')})
model, params, metadata = weights.refit(*loaded{fitted})
images = jnp.zeros((1, {size}, {size}, 3))  # normalized as '{result['normalization']}'
path = {os.path.join(workdir, 'adapter.safetensors')!r}
adapted = {adapt}images, structure=path)
adapted, variables = glora_jax.load_adapter(path, adapted, params)
logits = adapted.apply(variables, images)"""
