"""The last two stages: the test, on a list that is frozen to disk first, and the report.

The report folds the result and writes a run's output.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax import tree
from glora_jax.errors import UserError
from glora_jax.files import read_json
from glora_jax.method import presets
from glora_jax.method.adapter_file import save_adapter
from glora_jax.method.genomes import count_params, genome_to_json, largest_genome
from glora_jax.method.space import Spec
from glora_jax.search.allocation import Allocation
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import pareto_front
from glora_jax.vision.data import pipeline
from glora_jax.vision.data.examples import Examples
from glora_jax.vision.files import write_json
from glora_jax.vision.models import weights
from glora_jax.vision.reports import run_page
from glora_jax.vision.reports.errors import Outcome
from glora_jax.vision.reports.run_page import Findings
from glora_jax.vision.runs.backbone import Model
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.origins import recorded_processes, recorded_weights
from glora_jax.vision.runs.predictions import Predictions
from glora_jax.vision.runs.sections import GRADIENT, SEARCH, TRANSFER
from glora_jax.vision.runs.stages.structures import FILE
from glora_jax.vision.runs.workdir import TEST_LIST
from glora_jax.vision.structure_names import preset_label

SUPERNET = 'supernet'  # the searched structure with the supernet's weights


class Tested(NamedTuple):
  """The outcome of the test.

  Attributes:
    candidates: the tested structures, by name.
    result: name of the structure that is the result.
    rows: facts of every structure, by name, as in `result.json`, and `weights`.
    answers: the result's answers for the test images.
  """

  candidates: dict[str, Model]
  result: str
  rows: dict[str, dict[str, Any]]
  answers: Predictions


def freeze_and_evaluate(context: Context, candidates: dict[str, Model]) -> Tested:
  """Freezes the list of candidates and the result's name to disk, and only then tests them.

  Args:
    context: the context.
    candidates: what to test, by name.

  Raises:
    ValueError: another list was frozen before.
  """
  rows: dict[str, dict[str, Any]] = {
    name: {
      'params': candidate.adapted.count_params(),
      'val_accuracy': None
      if context.settings.final_split != 'train'
      else context.measure(candidate, 'val')['val_accuracy'],
      'best_epoch': candidate.best_epoch,
      'genome': candidate.genome.tolist(),
      'weights': tree.fingerprint(context.adapted.split(candidate.variables)[0]),
    }
    for name, candidate in candidates.items()
  }
  result = freeze(context, {'result': _choose(context, rows), 'structures': rows})['result']
  labels = np.asarray(context.data('test').labels)
  answers, is_right = {}, {}
  for name, row in rows.items():
    answers[name] = context.predict(candidates[name], 'test')
    is_right[name] = answers[name].are(labels)
    row['test_accuracy'] = int(is_right[name].sum()) / len(labels)
    if others := context.task.tests[1:]:
      row['other_test_accuracies'] = {
        split: context.measure(candidates[name], split)[f'{split}_accuracy'] for split in others
      }
  for name in rows.keys() - {result}:
    rows[name]['against_result'] = {
      'result_only': int((is_right[result] & ~is_right[name]).sum()),
      'other_only': int((is_right[name] & ~is_right[result]).sum()),
    }
  return Tested(candidates, result, rows, answers[result])


def _choose(context: Context, rows: dict[str, dict[str, Any]]) -> str:
  """The name of the result: the best on the validation images within the budget, ties by size.

  If these were trained on, it is the structure that the config names.
  """
  settings = context.settings
  if settings.report.result is not None:
    return settings.report.result
  if settings.final_split != 'train':
    return settings.structure if settings.structure in rows else FILE
  budget = math.inf if settings.budget is None else settings.budget
  trained = {name: row for name, row in rows.items() if name != SUPERNET}
  fitting = [name for name, row in trained.items() if row['params'] <= budget]
  return max(fitting, key=lambda name: (rows[name]['val_accuracy'], -rows[name]['params']))


def freeze(context: Context, tested: dict[str, Any]) -> dict[str, Any]:
  """Writes the structures to test, with fingerprints of their weights, to `test_list.json`.

  Returns:
    The frozen list, of this start or an earlier one.

  Raises:
    ValueError: another list was frozen before.
  """
  path = context.path(TEST_LIST)
  if os.path.exists(path):
    remedy = 'use a new workdir, because what this one tests is no longer known'
    frozen = read_json(path, 'test list', dict[str, Any], remedy)
    if _without_accuracies(frozen) != _without_accuracies(tested):
      raise UserError(
        f'{path} was frozen with other structures than this run has now; use a new workdir.'
      )
    return frozen
  if meshes.primary():
    write_json(path, tested, 'test list')
  return tested


_VARYING = ('val_accuracy', 'result')  # differ between devices, by an image or two


def _without_accuracies(content: Any) -> Any:
  """A list without what may differ between devices."""
  if isinstance(content, Mapping):
    return {x: x in _VARYING or _without_accuracies(value) for x, value in content.items()}
  return [_without_accuracies(row) for row in content] if isinstance(content, list) else content


COMPARED_IMAGES = 256  # for comparing the folded model's logits with the adapted one's


class _Structure(TypedDict):
  label: str
  params: int
  val_accuracy: float | None
  test_accuracy: float
  best_epoch: int | None
  genome: list[list[int]]


class _Data(TypedDict):
  origin: str
  notes: list[str]
  images: dict[str, int]


class Result(TypedDict):
  """The content of `result.json`; fields of a search are null if there was none."""

  task: str
  protocol: str
  seed: int
  budget: int | None
  structure: str
  result: str
  structures: dict[str, _Structure]
  finetuned: bool | None
  evaluations: int | None
  hypervolume: list[float] | None
  data: _Data
  weights: str
  seconds: dict[str, float]
  sha256: dict[str, str]


def write_results(
  context: Context,
  tested: Tested,
  archive: Archive | None = None,
  supernet: Any = None,
  allocation: Allocation | None = None,
) -> dict[str, Any]:
  """Folds the result, and writes adapter, plain checkpoint and page.

  Args:
    context: the context.
    tested: what `freeze_and_evaluate` returned.
    archive: the search's; None without a search.
    supernet: variables of the supernet that was searched.
    allocation: the allocation; None without one.

  Returns:
    The content of `result.json` without the seconds of the last stage.
  """
  config, candidates = context.settings, tested.candidates
  candidate = candidates[tested.result]
  _save_models(context, candidate)
  difference = _difference_to_folded(context, candidate)
  splits = (context.train_split, context.search_split, config.final_split, 'test')
  images = {split: len(context.data(split).labels) for split in dict.fromkeys(splits)}
  result = {
    'task': context.task.name,
    'protocol': config.protocol,
    'seed': config.seed,
    'budget': config.budget,
    'structure': config.structure,
    'result': tested.result,
    'structures': {
      name: {
        'label': _label(context, candidates[name], name),
        **{field: value for field, value in row.items() if field != 'weights'},
      }
      for name, row in tested.rows.items()
    },
    **_of_search(context, archive, images[context.search_split]),
    'fold_max_abs_diff': difference,
    'data': {
      'origin': context.task.origin,
      'notes': list(context.task.notes),
      'resize': config.data.resize,
      'images': images,
    },
    'normalization': context.metadata['normalization'],
    'weights': config.model.weights,
    **recorded_weights(context.workdir),
    'seconds': dict(context.seconds),
  }
  if allocation is not None:
    cost = config.allocation
    result['allocation'] = {
      'params': allocation.count_params(),
      'budget': allocation.budget,
      'proposed': allocation.proposed,
      'head_epochs': cost.head_epochs,
      'epochs': cost.spared(config.training, allocation.borrowed > 0) if config.has_gradient else 0,
      'borrowed': allocation.borrowed,
    }
  inherited = _inherited(context, supernet)
  if meshes.primary():
    outcome = Outcome(
      np.asarray(context.data('test').labels),
      *tested.answers,
      functools.partial(context.pixels, 'test'),
      functools.partial(_file, context.task.open('test')),
    )
    findings = Findings(
      result,
      context.task,
      {name: x.adapted.spec for name, x in candidates.items()},
      outcome,
      archive=archive,
      fitness=config.search.fitness,
      presets=inherited,
      allocation=allocation,
      backbone=_backbone(context),
      keeps_best=config.training.keep == 'best',
      made=recorded_processes(context.workdir),
      programs=context.programs,
    )
    run_page.write(context.workdir, findings)
  return result


def _file(examples: Examples, index: int) -> str:
  """The file of an example, with its folder; empty where it has none of its own."""
  name = examples.name(index)
  return '/'.join(pathlib.Path(name).parts[-2:]) if os.path.isfile(name) else ''


def _label(context: Context, candidate: Model, name: str) -> str:
  """The name of a structure in tables and pages."""
  labels = {
    'linear': 'linear probe',
    GRADIENT: 'gradient',
    TRANSFER: 'transferred',
    SUPERNET: "searched, with the supernet's weights",
    SEARCH: 'searched, finetuned' if context.settings.finetunes else 'searched',
    FILE: os.path.basename(context.settings.structure),
  }
  return labels.get(name) or preset_label(candidate.adapted.spec, name)


def _backbone(context: Context) -> dict[str, Any]:
  """Arguments to load the run's base again: what the config gave, and the image size."""
  model = context.settings.model
  names = ('sha256', 'num_heads', 'activation', 'patch_size')
  given = {name: getattr(model, name) for name in names}
  chosen = {name: value for name, value in given.items() if value is not None}
  return {**chosen, 'image_size': context.metadata['image_size']}


def _of_search(context: Context, archive: Archive | None, num_images: int) -> dict[str, Any]:
  """The fields of a search in the result; null if there was none."""
  if archive is None:
    return dict.fromkeys(('finetuned', 'evaluations', 'hypervolume'))
  volumes = hypervolume_by_generation(archive, context.adapted.spec, num_images)
  return {
    'finetuned': context.settings.finetunes,
    'evaluations': len(archive),
    'hypervolume': [round(volume, 5) for volume in volumes],
  }


def _inherited(context: Context, supernet: Any) -> dict[str, dict[str, float]]:
  """Parameters and accuracy of each preset with the supernet's weights, if there is one."""
  if supernet is None:
    return {}
  split = context.search_split
  return {
    name: {
      'params': context.adapted.count_params(preset),
      'accuracy': context.measure(Model(context.adapted.fix(preset), supernet), split)[
        f'{split}_accuracy'
      ],
    }
    for name, preset in presets.presets(context.adapted.spec).items()
  }


def _save_models(context: Context, candidate: Model) -> None:
  """Writes a structure as an adapter, a genome and a plain model."""
  adapted, variables, folded = candidate.adapted, candidate.variables, context.fold(candidate)
  if context.mesh is not None:
    variables, folded = jax.tree.map(tree.on_host, (variables, folded))
  with meshes.primary_first('folded'):
    if not meshes.primary():
      return
    path = context.path('adapter.safetensors')
    save_adapter(path, adapted, variables, task=context.task.name)
    write_json(
      context.path('genome.json'), genome_to_json(adapted.spec, candidate.genome), 'genome'
    )
    metadata = {
      'image_size': context.metadata['image_size'],
      'normalization': context.metadata['normalization'],
      'resize': context.settings.data.resize,
      'classes': context.task.classes,
    }
    source = context.metadata.get('source')
    weights.save(context.path('folded'), adapted.model, folded, metadata, source)


def _difference_to_folded(context: Context, candidate: Model) -> float:
  """The largest difference of a logit between the adapted model and the folded file."""
  plain, params, _ = weights.load(context.path('folded'))
  images = context.data('train').images
  if isinstance(images, pipeline.Stream):
    images = next(pipeline.blocks(None, images, COMPARED_IMAGES))[0]
  inputs = context.preprocess(images[:COMPARED_IMAGES])
  adapted, genome = candidate.adapted.fix(None), candidate.genome
  adapted_logits = jax.jit(lambda v, x: adapted.apply(v, x, genome=genome))(
    candidate.variables, inputs
  )
  plain_logits = jax.jit(lambda p, x: plain.apply({'params': p}, x))(params, inputs)
  return float(jnp.max(jnp.abs(adapted_logits - plain_logits)))


def hypervolume(params: np.ndarray, error: np.ndarray, most_params: float) -> float:
  """Share of the box up to (most_params, 1) that the points dominate.

  A place in the box is dominated where a point is at least as good in both. A structure without
  trained parameters and without errors would give 1. A box without width is the line of its errors.

  Args:
    params: trained parameters of each point, [point].
    error: error of each point, [point], at most 1.
    most_params: the box's edge in parameters.
  """
  front = pareto_front(params, error)
  widths = np.diff(np.append(params[front], most_params).clip(max=most_params))
  heights = 1 - error[front]
  if most_params == 0:
    return float(heights[params[front] <= 0].max(initial=0.0))
  return float((widths * heights).sum() / most_params)


def hypervolume_by_generation(archive: Archive, spec: Spec, num_images: int) -> list[float]:
  """The hypervolume of all structures that were scored up to each generation.

  Args:
    archive: the search's archive.
    spec: the genomes' spec; its largest structure on offer is the box's edge in parameters.
    num_images: number of images that the structures were scored on.
  """
  params = count_params(spec, archive.genomes)
  error = 1 - archive.correct / num_images
  most_params = count_params(spec, largest_genome(spec))
  ends = np.searchsorted(archive.generation, np.unique(archive.generation), side='right')
  return [hypervolume(params[:end], error[:end], most_params) for end in ends]
