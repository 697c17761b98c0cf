"""Pages of made-up results, and a parser of them."""

import types

import html_pages
import numpy as np

from glora_jax.files import with_nulls
from glora_jax.method.genomes import count_params
from glora_jax.search.archive import Archive
from glora_jax.vision import metrics
from glora_jax.vision.reports import report
from glora_jax.vision.reports.errors import Outcome
from glora_jax.vision.reports.structure import describe
from glora_jax.vision.reports.table import Board, Cell

LONG = 'a_name_that_is_long_and_has_no_space_at_all'
SCRIPT = f'{LONG}<script>alert(1)</script>'
IMAGE = f'{LONG}"><img src=x onerror=alert(1)>'
MADE = {
  'command': 'python -m glora_jax.main --config configs/own.py',
  'versions': {'jax': '0.10'},
  'device': '1 x cpu',
}


RESULT = {  # of a run, but for its structures
  'task': 'pets',
  'protocol': 'honest',
  'seed': 7,
  'budget': 60,
  'structure': 'search',
  'train_on': 'train',
  'result': 'search',
  'chosen_from': [],
  'finetuned': True,
  'evaluations': 4,
  'hypervolume': [0.5, 0.6],
  'fold_max_abs_diff': 0.0,
  'data': {
    'origin': f'made up, {SCRIPT}',
    'notes': [],
    'resize': 'squash',
    'images': {'train': 20, 'val': 10, 'test': 40},
  },
  'normalization': 'unit',
  'weights': 'embedded',
  'seconds': {'head': 1.5, 'structure': 2.0, 'supernet': 30.0, 'search': 65.0},
  'allocation': {'head_epochs': 6, 'epochs': 4},
}


def make_outcome(classes, labels, answers, shares):
  """Answers to black images with their probabilities; all other classes share the rest."""
  rest = (1 - shares) / (len(classes) - 1)
  probabilities = np.repeat(rest[:, None], len(classes), axis=1)
  probabilities[np.arange(len(labels)), answers] = shares
  files = [f'{classes[label]}/{number}.jpg' for number, label in enumerate(labels)]
  black = np.zeros((len(labels), 8, 8, 3), np.uint8)
  return Outcome(classes, labels, answers, probabilities, black.__getitem__, files)


def structure(params, accuracy, paired=None, **fields):
  """A structure of a run; `paired` are the images that only the result, or only it, got right."""
  measured = {'val_accuracy': accuracy, 'val_loss': 1.0, 'test_accuracy': accuracy}
  trained = {'params': params, 'rate': 1e-3, 'seconds': 30.0, 'genome': [[0, 3, 0, 0, 2]]}
  if paired is not None:
    fields['against_result'] = {'result_only': paired[0], 'other_only': paired[1]}
  return {**trained, **measured, **fields}


def make_findings(allocation, classes=('cat', SCRIPT, 'dog')):
  """What `report.write_run` is given: a search that is over, and a gradient's structure.

  Of 40 test images 8 are wrong.
  """
  spec, genome = allocation.spec, allocation.genome
  smaller = genome * np.array([[1], [0]], np.int8)
  archive = Archive.empty(spec).extended(np.stack([smaller, genome]), [5, 8], [9.0, 4.0], 0)
  archive = archive.extended(np.stack([genome, smaller]), [9, 6], [3.0, 8.0], 1)
  labels = np.arange(40) % len(classes)
  answers = np.where(np.arange(40) % 5, labels, (labels + 1) % len(classes))
  columns = metrics.by_class(metrics.confusion_matrix(labels, answers, len(classes)))
  params = int(count_params(spec, genome))
  described = {'genome': genome.tolist(), 'layers': describe(spec, genome)}
  memory = {'arguments': 2**20, 'outputs': 0, 'temporaries': 3 * 2**30}
  result = {
    **RESULT,
    'task': IMAGE,
    'provenance': [MADE],
    'programs': {
      'supernet': {'training steps': {'seconds': 61.4, 'memory': memory}},
      'training/lora': {'scoring': {'seconds': 0.25, 'memory': {}}},  # the backend does not know
    },
    'presets': {'lora': {'params': 24, 'accuracy': 0.6}},
    'fitness': 'accuracy',
    'keeps_best': False,
    'base': {'image_size': 8, 'num_classes': len(classes)},
    'calibration_error': 0.125,
    'by_class': {
      field: with_nulls(dict(zip(classes, column.tolist(), strict=True)))
      for field, column in columns.items()
    },
    'structures': {
      'linear': structure(0, 0.5, (14, 2), label='linear probe'),
      'lora': structure(24, 0.75, (3, 1), label='lora:2', best_epoch=2),
      'gradient': structure(params, 0.775, (3, 2), label='gradient', **described),
      'supernet': structure(params, 0.7, (5, 1), label='searched, in the supernet'),
      'search': structure(params, 0.8, label='searched, finetuned', best_epoch=1, **described),
    },
  }
  outcome = make_outcome(classes, labels, answers, np.linspace(0.5, 0.99, 40))
  found = {'result': result, 'spec': spec, 'archive': archive, 'allocation': allocation}
  return types.SimpleNamespace(**found, outcome=outcome)


METRICS = """\
{"stage": "supernet", "epoch": 1, "loss": 2.0, "accuracy": 0.25}
{"stage": "supernet", "epoch": 2, "loss": 0.5, "accuracy": 0.75}
{"stage": "training/lora", "epoch": 1, "loss": 1.5, "accuracy": 0.5, "val_accuracy": 0.45}
{"stage": "training/lora", "epoch": 2, "loss": 0.75, "accuracy": 0.6, "val_accuracy": 0.55}
{"stage": "finetune", "epoch": 1, "loss": 0.25, "accuracy": 0.8, "val_loss": 1, "val_accuracy": 0.5}
"""


def write_run(folder, findings):
  """Writes the page of a run, and gives its elements."""
  (folder / 'metrics.jsonl').write_text(METRICS)
  report.write_run(str(folder), **vars(findings))
  return html_pages.read(folder)


GRID = {  # accuracies of every seed, by structure and budget; the gradient has 40 parameters
  ('full', None): (500, (0.95, 0.95)),
  ('linear', None): (0, (0.80, 0.82)),
  ('lora', None): (180, (0.90, 0.88)),
  ('gradient', 60): (40, (0.95, 0.95)),
  ('search', 200): (150, (0.91, 0.91)),
}


def make_grid(allocation, task=SCRIPT):
  """A grid of five structures with two seeds, of which LoRA has tried two rates."""
  genome, spec = allocation.genome, allocation.spec
  described = {'genome': genome.tolist(), 'layers': describe(spec, genome)}
  cells, results = {}, {}
  for rate, accuracy in ((1e-3, 0.5), (4e-3, 0.75)):
    cells[f'lora/rate-{rate}'] = Cell(task, 'lora', None, 1000, rate)
    tried = grid_result(task, 'lora', None, 1000, 180, accuracy, described)
    del tried['structures']['lora']['test_accuracy']
    tried['data'] = {**RESULT['data'], 'images': {'train': 20, 'val': 10}}
    results[f'lora/rate-{rate}'] = tried
  for (name, budget), (params, accuracies) in GRID.items():
    for seed, accuracy in enumerate(accuracies):
      folder = f'{name}-{budget}/{seed}' if budget else f'{name}/{seed}'
      cells[folder] = Cell(task, name, budget, seed)
      results[folder] = grid_result(task, name, budget, seed, params, accuracy, described)
  return Board(task, cells, results)


def grid_result(task, name, budget, seed, params, accuracy, described):
  """The result of a run of a grid."""
  label = {'full': 'all of GLoRA', 'linear': 'linear probe', 'search': 'searched'}.get(name, name)
  found = structure(params, accuracy, label=label, **(described if budget else {}))
  found['val_accuracy'] = 0.5 if seed < 1000 else accuracy
  fields = {'task': task, 'seed': seed, 'structure': name, 'result': name, 'budget': budget}
  return {**RESULT, **fields, 'structures': {name: found}, 'provenance': [MADE]}


def board_of(shares, suite='pets'):
  """A grid of (validation, test accuracy) by (task, structure, seed)."""
  cells = {'/'.join(map(str, key)): Cell(key[0], key[1], None, key[2]) for key in shares}
  results = {}
  for folder, ((task, name, seed), (val, test)) in zip(cells, shares.items(), strict=True):
    results[folder] = grid_result(task, name, None, seed, 9, test, {})
    results[folder]['structures'][name]['val_accuracy'] = val
  return Board(suite, cells, results)


def write_board(folder, board):
  """Writes the page of a suite whose first run has one, and gives its elements."""
  first = folder / next(iter(board.cells))
  first.mkdir(parents=True, exist_ok=True)
  (first / 'report.html').touch()
  report.write_board(board, str(folder))
  return html_pages.read(folder)
