"""Pages of made-up results, and a parser of them."""

import types

import html_pages
import numpy as np

from glora_jax.method.genomes import count_params
from glora_jax.search.archive import Archive
from glora_jax.vision.reports import comparison_page, run_page, scoreboard
from glora_jax.vision.reports.errors import Outcome
from glora_jax.vision.reports.run_page import Findings

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
  'result': 'search',
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

MEMORY = {'arguments': 2**20, 'outputs': 0, 'temporaries': 3 * 2**30}
PROGRAMS = {
  'supernet': {'training steps': {'seconds': 61.4, 'memory': MEMORY}},
  'training/lora': {'scoring': {'seconds': 0.25, 'memory': {}}},  # the backend does not know
}


def pixels(indices):
  """Black images."""
  return np.zeros((len(indices), 8, 8, 3), np.uint8)


def structure(params, accuracy, paired=None, **fields):
  """A structure of a run; `paired` are the images that only the result, or only it, got right."""
  shares = {'val_accuracy': accuracy, 'test_accuracy': accuracy}
  against = {} if paired is None else {'result_only': paired[0], 'other_only': paired[1]}
  return {'params': params, **shares, **fields, 'against_result': against}


def make_findings(allocation, classes=('cat', SCRIPT, 'dog')):
  """A search that is over, on 40 test images of which 8 are wrong, and a gradient's structure."""
  spec, genome = allocation.spec, allocation.genome
  smaller = genome * np.array([[1], [0]], np.int8)
  genomes = np.stack([smaller, genome, genome, smaller])
  archive = Archive.empty(spec).extended(genomes[:2], [5, 8], [9.0, 4.0], generation=0)
  archive = archive.extended(genomes[2:], [9, 6], [3.0, 8.0], generation=1)
  labels = np.arange(40) % len(classes)
  answers = np.where(np.arange(40) % 5, labels, (labels + 1) % len(classes))
  params = int(count_params(spec, genome))
  result = {
    **RESULT,
    'task': IMAGE,
    'structures': {
      'linear': structure(0, 0.5, (14, 2), label='linear probe'),
      'lora': structure(24, 0.75, (3, 1), label='lora:2', best_epoch=2),
      'gradient': structure(params, 0.775, (3, 2), label='gradient', genome=genome.tolist()),
      'supernet': structure(params, 0.7, (5, 1), label='searched, in the supernet'),
      'search': structure(
        params, 0.8, label='searched, finetuned', genome=genome.tolist(), best_epoch=1
      ),
    },
  }
  return Findings(
    result,
    types.SimpleNamespace(name=IMAGE, classes=list(classes)),
    dict.fromkeys(result['structures'], spec),
    Outcome(labels, answers, np.linspace(0.5, 0.99, 40), pixels, str),
    archive,
    presets={'lora': {'params': 24, 'accuracy': 0.6}},
    allocation=allocation,
    backbone={'image_size': 8},
    made=[MADE],
    programs=PROGRAMS,
  )


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
  run_page.write(str(folder), findings)
  return html_pages.read(folder)


def runs(params, *accuracies, **fields):
  """A method's run of each seed."""
  fields = {'params': params, 'seconds': 1.0, 'val_accuracy': 0.5, **fields}
  return [{**fields, 'test_accuracy': accuracy} for accuracy in accuracies]


def comparison(allocation):
  """A comparison of two seeds, and the layers of its structures."""
  return {
    'task': SCRIPT,
    'weights': 'embedded',
    'epochs': 8,
    'finetune_epochs': 2,
    'allocation_epochs': {'gradient-60': [3, 5]},
    'seeds': [0, 1],
    'train_on': 'train',
    'rates': [1e-3],
    'rate': dict.fromkeys(('linear', 'lora', 'full', 'gradient', 'search'), 1e-3),
    'methods': {
      'full': runs(500, 0.95, 0.95),
      'linear': runs(0, 0.80, 0.82),
      'lora': runs(180, 0.90, 0.88),
      'gradient-60': runs(40, 0.95, 0.95),
      'search-200': runs(150, 0.91, 0.91, inherited_test_accuracy=0.85),
    },
    'structures': {'gradient-60': [allocation.genome.tolist()] * 2},
    'data': {'origin': 'made by hand', 'notes': []},
    'seconds': {'tuning': 3.0, 'training': 9.0},
  }


def write_comparison(folder, allocation):
  """Writes the page of a comparison, and gives its elements."""
  comparison_page.write(str(folder), comparison(allocation), allocation.spec, [MADE])
  return html_pages.read(folder)


def write_suite(folder, board):
  """Writes the page of a suite, and gives its elements."""
  scoreboard.write(board, str(folder), {board.tasks[0]: 'cifar100/report.html'})
  return html_pages.read(folder)
