"""The last stages: the list of the tested structures, the test, and the report.

The list is frozen to disk before anything is evaluated on the test images. The report folds the
result and writes a run's output.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from glora_jax import mesh as meshes
from glora_jax import tree
from glora_jax.files import with_nulls, write_json
from glora_jax.method import presets
from glora_jax.method.adapter_file import save_adapter
from glora_jax.method.genomes import count_params, genome_to_json, largest_genome
from glora_jax.method.space import Spec
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import pareto_front
from glora_jax.vision import metrics
from glora_jax.vision.data import pipeline
from glora_jax.vision.files import write_predictions
from glora_jax.vision.models import weights
from glora_jax.vision.models.metadata import REMEMBERED
from glora_jax.vision.reports import report
from glora_jax.vision.reports.errors import Outcome
from glora_jax.vision.reports.page import group_by
from glora_jax.vision.reports.structure import describe
from glora_jax.vision.runs.backbone import Model
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.evaluation import Predictions, fold, measure, predict
from glora_jax.vision.runs.origins import read_processes, read_weights
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.stage import Stage
from glora_jax.vision.runs.stages.structures import FILE
from glora_jax.vision.runs.stages.training import (
  ENOUGH_STEPS,
  FullFineTuning,
  tell_guessing,
)
from glora_jax.vision.runs.workdir import freeze_test_list, read_test_list
from glora_jax.vision.structure_names import (
  FOUND,
  SEARCH,
  TITLES,
  preset_label,
)


class Listed(NamedTuple):
  """The structures to test, and later the outcome of the test.

  Attributes:
    found: results of the stages before, by name.
    candidates: the structures, by name.
    result: name of the structure that is the result.
    rows: facts of every structure, by name, as in `result.json`, and `weights`.
    answers: the result's answers for the test images; None before the test.
  """

  found: dict[str, Any]
  candidates: dict[str, Model]
  result: str
  rows: dict[str, dict[str, Any]]
  answers: Predictions | None = None

  def content(self) -> dict[str, Any]:
    """The content of `test_list.json`."""
    return {
      'version': glora_jax.__version__,
      'result': self.result,
      'structures': self.rows,
    }


def list_structures(
  tested: Mapping[str, str], names: Sequence[str], context: Context, *results: Any
) -> Listed:
  """Measures structures on the validation images if these are held out, and chooses the result.

  If the list is already frozen, its accuracies are used, and nothing is measured again.

  Args:
    tested: the stage that made each structure to test, by the structure's name.
    names: the stages before.
    context: the context.
    *results: the results of these stages.
  """
  found = dict(zip(names, results, strict=True))
  frozen = read_test_list(context.workdir)
  # All processes measure or none does, even if some of them do not see the file yet.
  is_missing = meshes.on_any(frozen is None)
  earlier = {} if is_missing or frozen is None else frozen['structures']
  fields = dict.fromkeys(('val_accuracy', context.settings.report.chooses_by, 'val_loss'))
  candidates, rows = {}, {}
  for name, stage in tested.items():
    candidate = found[stage]
    if stage == 'search':  # a searched structure in its supernet
      genome = candidate.best(context.settings.search.fitness)
      candidate = Model(context.adapted.fix(genome), found['supernet'])
    candidates[name] = candidate
    measured: Mapping[str, Any] = fields  # None: they are trained on
    if context.settings.final_split == 'train':
      measured = earlier.get(name) or measure(context, candidate, 'val')
    rows[name] = {
      'params': candidate.adapted.count_params(),
      **{field: measured[field] for field in fields},
      'best_epoch': candidate.best_epoch,
      'genome': candidate.genome.tolist(),
      'weights': tree.fingerprint(candidate.adapted.split(candidate.variables)[0]),
    }
  return Listed(found, candidates, choose_result(context.settings, rows), rows)


def freeze_and_test(context: Context, listed: Listed) -> Listed:
  """Freezes the list of structures and the result's name to disk, and only then tests them.

  Args:
    context: the context.
    listed: the structures to test.

  Raises:
    ValueError: another list was frozen before.
  """
  candidates, rows = listed.candidates, {name: dict(row) for name, row in listed.rows.items()}
  result = freeze_test_list(context.workdir, listed.content())['result']
  labels = np.asarray(context.images.split('test').labels)
  is_right, answers = {}, None
  for name, row in rows.items():
    found = predict(context, candidates[name], 'test')
    answers = found if name == result else answers  # kept for one structure: they may be large
    is_right[name] = found.classes == labels
    matrix = metrics.confusion_matrix(labels, found.classes, context.task.num_classes)
    row['test_accuracy'] = int(is_right[name].sum()) / len(labels)
    row['test_balanced_accuracy'] = metrics.balanced_accuracy(matrix)
    if others := context.task.tests[1:]:
      row['other_test_accuracies'] = {
        split: measure(context, candidates[name], split)[f'{split}_accuracy'] for split in others
      }
  for name in rows.keys() - {result}:
    rows[name]['against_result'] = {
      'result_only': int((is_right[result] & ~is_right[name]).sum()),
      'other_only': int((is_right[name] & ~is_right[result]).sum()),
    }
  return listed._replace(result=result, rows=rows, answers=answers)


def choose_result(settings: RunSettings, rows: Mapping[str, Mapping[str, Any]]) -> str:
  """The name of the structure that is the result: the one in the config.

  If the config lists several to choose from, it is the best on the validation images, and the
  smallest of equally good ones.

  Args:
    settings: the config.
    rows: facts of all structures, by name.
  """
  by, asked = settings.report.chooses_by, settings.structure
  names = settings.report.result or (asked if asked in rows else FILE,)
  return max(names, key=lambda name: (rows[name][by], -rows[name]['params']))


COMPARED_IMAGES = 256  # for comparing the folded model's logits with the adapted one's


class _Trained(TypedDict):
  label: str
  params: int
  val_accuracy: float | None
  val_loss: float | None
  best_epoch: int | None
  genome: list[list[int]]
  rate: float
  seconds: float


class _Structure(_Trained, total=False):
  test_accuracy: float  # with test=True
  test_balanced_accuracy: float


class _Data(TypedDict):
  origin: str
  notes: list[str]
  images: dict[str, int]


class ResultFile(TypedDict):
  """The content of `result.json`; fields of a search are null if there was none."""

  task: str
  protocol: str
  seed: int
  budget: int | None
  structure: str
  train_on: str
  result: str
  chosen_from: list[str]  # see `report.result`
  structures: dict[str, _Structure]
  finetuned: bool | None
  evaluations: int | None
  hypervolume: list[float] | None
  data: _Data
  weights: str
  seconds: dict[str, float]
  stages: dict[str, str]  # their keys, except those of shared stages


def write_results(
  needs: Mapping[str, Sequence[Stage]], context: Context, listed: Listed
) -> dict[str, Any]:
  """Folds the result, and writes adapter, plain checkpoint and page; without a test only the page.

  Args:
    needs: the stages that a structure needs, by its name.
    context: the context.
    listed: the listed structures, tested if test=True.

  Returns:
    The content of `result.json`.
  """
  settings, task = context.settings, context.task
  archive = listed.found.get('search')
  allocation = listed.found['structure'].allocation if 'structure' in listed.found else None
  splits = (context.train_split, context.search_split, settings.final_split)
  images = {split: len(task.open(split).labels) for split in splits}
  tested: dict[str, Any] = {}
  outcome = None
  if listed.answers is not None:
    test, pixels = task.open('test'), functools.partial(context.images.pixels, 'test')
    images['test'] = len(test.labels)
    files = [test[index].key for index in range(len(test.labels))]
    outcome = Outcome(task.classes, test.labels, *listed.answers, pixels, files)
    distance = _save_models(context, listed.candidates[listed.result])
    tested = {'fold_max_abs_diff': distance, **_measure(outcome)}
  searched: dict[str, Any] = dict.fromkeys(('finetuned', 'evaluations', 'hypervolume'))
  inherited = {}
  if archive is not None:
    volumes = hypervolumes(archive, context.adapted.spec, images[context.search_split])
    inherited = _measure_presets(context, listed.found['supernet'])
    searched = {
      'finetuned': settings.finetunes,
      'evaluations': len(archive),
      'hypervolume': [round(volume, 5) for volume in volumes],
    }
  by_title = group_by(context.before, lambda name: name.partition('/')[0])
  result = {
    'task': task.name,
    'protocol': settings.protocol,
    'seed': settings.seed,
    'budget': settings.budget,
    'structure': settings.structure,
    'train_on': settings.final_split,
    'result': listed.result,
    'chosen_from': list(settings.report.result),
    'structures': {name: _describe(context, listed, name, needs[name]) for name in listed.rows},
    **searched,
    **tested,
    'data': {
      'origin': task.origin,
      'notes': list(task.notes),
      'resize': context.metadata['resize'],
      'images': images,
    },
    'normalization': context.metadata['normalization'],
    'weights': settings.model.weights,
    **read_weights(context.workdir),
    'stages': {x: mark['key'] for x, mark in context.before.items() if x not in context.folders},
    'seconds': {
      title: round(sum(context.before[name]['seconds'] for name in names), 2)
      for title, names in by_title.items()
    },
  }
  if allocation is not None:
    cost, is_borrowed = settings.allocation, allocation.borrowed > 0
    result['allocation'] = {
      'params': allocation.count_params(),
      'budget': allocation.budget,
      'proposed': allocation.proposed,
      'head_epochs': cost.head_epochs,
      'epochs': cost.spared(settings.training, is_borrowed) if settings.has_gradient else 0,
      'borrowed': allocation.borrowed,
    }
  if meshes.primary():
    if outcome is not None:
      write_predictions(context.path('predictions.csv'), task.classes, outcome.rows())
    known = {
      **result,
      'provenance': read_processes(context.workdir),
      'programs': {name: mark['programs'] for name, mark in context.before.items()},
      'presets': inherited,
      'fitness': settings.search.fitness,
      'keeps_best': settings.training.keep == 'best',
      'base': {
        **vars(settings.model),
        'image_size': context.metadata['image_size'],
        'num_classes': task.num_classes,
        'library': getattr(context.adapted.model, 'library', None),
      },
    }
    report.write_run(context.workdir, known, context.adapted.spec, archive, allocation, outcome)
  return result


def _describe(
  context: Context, listed: Listed, name: str, needed: Sequence[Stage]
) -> dict[str, Any]:
  """A structure in `result.json`: its label, its measurements, and its layers if pages draw it."""
  settings, row, candidate = context.settings, listed.rows[name], listed.candidates[name]
  spec, task = candidate.adapted.spec, context.task
  is_finetuned = name == SEARCH and settings.finetunes
  titles = {**TITLES, FILE: os.path.basename(settings.structure)}
  label = 'searched, finetuned' if is_finetuned else titles.get(name) or preset_label(spec, name)
  recipe = settings.finetuning if is_finetuned else settings.training
  found = {
    'label': label,
    **{field: value for field, value in row.items() if field != 'weights'},
    'rate': recipe.learning_rate,
    'seconds': round(sum(context.before[stage.name]['seconds'] for stage in needed), 2),
  }
  if name in (listed.result, *FOUND):
    found['layers'] = describe(spec, candidate.genome)
  split, title = ('test', 'test') if row['val_accuracy'] is None else ('val', 'validation')
  accuracy, images = row.get(f'{split}_accuracy'), len(task.open(settings.final_split).labels)
  steps = settings.training.epochs * settings.training.steps_per_epoch(images)
  if accuracy is not None and steps >= ENOUGH_STEPS:
    if told := tell_guessing(settings, accuracy, task.open(split).labels, title):
      found['learned_nothing'] = told
  return found


def _measure(outcome: Outcome) -> dict[str, Any]:
  """The calibration error, and the metrics of each class by its name."""
  names, labels, answers, probabilities, *_ = outcome
  columns = metrics.by_class(metrics.confusion_matrix(labels, answers, len(names)))
  return {
    'calibration_error': metrics.calibration_error(probabilities.max(-1), answers == labels),
    'by_class': {
      field: with_nulls(dict(zip(names, column.tolist(), strict=True)))
      for field, column in columns.items()
    },
  }


def _measure_presets(context: Context, supernet: Any) -> dict[str, dict[str, float]]:
  """Parameters and accuracy of each preset with the supernet's weights."""
  adapted, split, found = context.adapted, context.search_split, {}
  for name, preset in presets.presets(adapted.spec).items():
    fixed = adapted.fix(preset)
    measured = measure(context, Model(fixed, supernet), split)
    found[name] = {
      'params': fixed.count_params(),
      'accuracy': measured[f'{split}_accuracy'],
    }
  return found


def _save_models(context: Context, candidate: Model) -> float:
  """Writes a structure as a plain model, and as adapter and genome if the base is frozen.

  Returns:
    The largest difference of a logit between the adapted model and the folded file.
  """
  adapted, arrays = candidate.adapted, (candidate.variables, fold(context, candidate))
  variables, folded = jax.tree.map(tree.on_host, arrays)
  with meshes.primary_first('folded'):
    if meshes.primary():
      if not isinstance(adapted, FullFineTuning):
        path = context.path('adapter.safetensors')
        save_adapter(path, adapted, variables, task=context.task.name)
        described = genome_to_json(adapted.spec, candidate.genome)
        write_json(context.path('genome.json'), described, 'genome')
      known = {name: context.metadata.get(name) for name in REMEMBERED}
      metadata = {**known, 'classes': context.task.classes}
      source = context.metadata.get('source')
      weights.save(context.path('folded'), adapted.model, folded, metadata, source)
  plain, params, _ = weights.load(context.path('folded'))
  block = next(pipeline.blocks(context.images.split('train'), COMPARED_IMAGES))
  inputs = context.preprocess(block.images[:COMPARED_IMAGES])
  loose, genome = adapted.fix(None), candidate.genome
  adapted_logits = jax.jit(lambda v, x: loose.apply(v, x, genome=genome))(
    candidate.variables, inputs
  )
  plain_logits = jax.jit(lambda p, x: plain.apply({'params': p}, x))(params, inputs)
  return float(jnp.max(jnp.abs(adapted_logits - plain_logits)))


def hypervolumes(archive: Archive, spec: Spec, num_images: int) -> list[float]:
  """The hypervolume of all structures that were scored up to each generation.

  It is the share of all pairs of error and parameters, up to those of the largest structure, that
  some structure matches or beats. A structure without parameters and without errors would give 1.

  Args:
    archive: the search's archive.
    spec: the genomes' spec.
    num_images: number of images that the structures were scored on.
  """
  params, error = count_params(spec, archive.genomes), 1 - archive.correct / num_images
  edge = max(count_params(spec, largest_genome(spec)), 1)
  volumes = []
  for generation in np.unique(archive.generation):
    seen = np.flatnonzero(archive.generation <= generation)
    front = seen[pareto_front(params[seen], error[seen])]
    widths = np.diff(np.append(params[front], edge))
    volumes.append(float((widths * (1 - error[front])).sum() / edge))
  return volumes
