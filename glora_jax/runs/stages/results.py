"""The last two stages: the test, of a list that is frozen to disk first, and the report.

The report folds the winner, and writes what a run leaves behind.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import TypedDict

from glora_jax import mesh as meshes
from glora_jax import tree
from glora_jax.data import pipeline
from glora_jax.files import write_json
from glora_jax.method import presets
from glora_jax.method.adapter_file import save_adapter
from glora_jax.method.genomes import genome_to_json
from glora_jax.method.presets import preset_label
from glora_jax.models import weights
from glora_jax.records import read_record
from glora_jax.reports import run_page
from glora_jax.reports.errors import Outcome
from glora_jax.reports.findings import Findings
from glora_jax.reports.verdict import PAIRED
from glora_jax.runs.context import Candidate, Context
from glora_jax.runs.origins import recorded_processes, recorded_weights
from glora_jax.runs.sections import GRADIENT
from glora_jax.search.allocated import Allocation
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import hypervolume_by_generation
from glora_jax.search.scoring import Predictions


def freeze_and_evaluate(
  context: Context, candidates: dict[str, Candidate]
) -> tuple[dict[str, dict[str, Any]], Predictions]:
  """Freezes the list of candidates to disk, and only then evaluates it on the test split.

  Args:
    context: the context.
    candidates: what to test, by name; 'winner' is among them.

  Returns:
    (the rows of the list with their test accuracies, by name, and but for the winner how many
    images it alone got right, and the row alone; what the winner answered for each test image).

  Raises:
    ValueError: another list was frozen before.
  """
  scored = {name: in_the_runs_space(context, candidate) for name, candidate in candidates.items()}
  rows = {
    name: {
      'params': (candidate.adapted or context.adapted).count_params(candidate.genome),
      'val_accuracy': None
      if _trained_on_val(context, name)
      else context.accuracy(*scored[name], 'val'),
      'genome': candidate.genome.tolist(),
      'weights': tree.fingerprint(context.adapted.split(candidate.variables)[0]),
    }
    for name, candidate in candidates.items()
  }
  freeze(context, rows)
  labels = np.asarray(context.data('test').labels)
  answers, is_right = {}, {}
  for name, row in rows.items():
    answers[name] = context.predict(*scored[name], 'test')
    is_right[name] = answers[name].are(labels)
    row['test_accuracy'] = int(is_right[name].sum()) / len(labels)
    if others := context.task.tests[1:]:
      row['other_test_accuracies'] = {
        split: context.accuracy(*scored[name], split) for split in others
      }
  for name in rows.keys() - {'winner'}:
    rows[name][PAIRED] = {
      'winner_only': int((is_right['winner'] & ~is_right[name]).sum()),
      'row_only': int((is_right[name] & ~is_right['winner']).sum()),
    }
  return rows, answers['winner']


def in_the_runs_space(context: Context, candidate: Candidate) -> tuple[Any, np.ndarray]:
  """(variables, genome) for the run's own scorers; what is of another space is folded before."""
  if candidate.adapted is None:
    return candidate.variables, candidate.genome
  folded = jax.jit(candidate.adapted.fold)(candidate.variables, candidate.genome)
  return {**context.variables, 'params': folded}, np.zeros((len(context.adapted.spec), 5), np.int8)


def measure(context: Context, candidate: Candidate, split: str) -> dict[str, float]:
  """Accuracy and mean loss of a structure on a split, by 'SPLIT_accuracy' and 'SPLIT_loss'."""
  variables, genome = in_the_runs_space(context, candidate)
  correct, loss = context.score(variables, np.asarray(genome)[None], split)
  images = len(context.data(split).labels)
  return {
    f'{split}_accuracy': int(correct[0]) / images,
    f'{split}_loss': float(loss[0]) / images,
  }


def _trained_on_val(context: Context, name: str) -> bool:
  """Whether a candidate was trained on the validation images, which then say nothing of it."""
  finetuning = context.settings.finetune
  if context.settings.protocol == 'paper':
    return True
  if context.settings.structure != 'search':
    return False
  return name == 'winner' and finetuning.on == 'train+val' and finetuning.epochs > 0


def freeze(context: Context, rows: dict[str, Any]) -> None:
  """Writes the list of what will be tested, with fingerprints of the weights, to `test_list.json`.

  Raises:
    ValueError: another list was frozen before.
  """
  path = context.path('test_list.json')
  if os.path.exists(path):
    remedy = 'use a new workdir, since what this one tests is no longer known'
    frozen = read_record(path, 'test list', dict[str, Any], remedy)
    if _without_accuracies(frozen) != _without_accuracies(rows):
      raise ValueError(
        f'{path} was frozen with other structures than this run has now; use a new workdir.'
      )
  if meshes.primary():
    write_json(path, rows, 'test list')


def _without_accuracies(rows: Any) -> Any:
  """A list to compare: accuracies may differ by an image or two between devices."""
  if isinstance(rows, Mapping):
    return {name: _without_accuracies(row) for name, row in rows.items() if name != 'val_accuracy'}
  return [_without_accuracies(row) for row in rows] if isinstance(rows, list) else rows


COMPARED_IMAGES = 256  # on which the folded model's logits are compared with the adapted one's


class _Row(TypedDict):
  params: int
  val_accuracy: float | None
  test_accuracy: float


class _Data(TypedDict):
  origin: str
  notes: list[str]
  images: dict[str, int]


class Result(TypedDict):
  """The content of `result.json`; what only a search has is null where there was none."""

  task: str
  protocol: str
  seed: int
  budget: int | None
  linear: _Row
  winner_supernet: _Row | None
  winner: _Row
  presets: dict[str, _Row]
  finetuned: bool | None
  evaluations: int | None
  hypervolume: list[float] | None
  data: _Data
  weights: str
  seconds: dict[str, float]
  sha256: dict[str, str]


def write_results(
  context: Context,
  candidates: dict[str, Candidate],
  tested: dict[str, dict[str, Any]],
  answers: Predictions,
  *,
  archive: Archive | None = None,
  supernet: Any = None,
  allocation: Allocation | None = None,
) -> dict[str, Any]:
  """Folds the winner, and writes adapter, plain checkpoint and page.

  Args:
    context: the context.
    candidates: what was tested, by name; 'winner' is among them.
    tested: what `freeze_and_evaluate` returned of the candidates.
    answers: what the winner answered for the test images.
    archive: the search's; None where nothing was searched.
    supernet: variables of the supernet that it searched in.
    allocation: the structure that was read off a gradient; None where none was.

  Returns:
    The content of `result.json` but for the seconds of the last stage.
  """
  config, adapted = context.settings, context.adapted
  variables, genome = candidates['winner'][:2]
  _save_models(context, variables, genome)
  difference = _difference_to_folded(context, variables, genome)
  images = {
    split: len(context.data(split).labels)
    for split in (context.train_split, context.search_split, 'test')
  }
  shown = {name: _shown(name, row) for name, row in tested.items()}
  # Where the structure is 'linear', the probe is the winner, and was not trained a second time.
  shown.setdefault('linear', _shown('linear', tested['winner']))
  result = {
    'task': context.task.name,
    'protocol': config.protocol,
    'seed': config.seed,
    'budget': config.budget,
    'linear': shown.pop('linear'),
    'winner_supernet': shown.pop('winner_supernet', None),
    'winner': shown.pop('winner'),
    'presets': shown,  # what is left
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
    **_of_structure(context, allocation),
  }
  for name, row in shown.items():
    spec = (candidates[name].adapted or adapted).spec
    row['label'] = name if name == GRADIENT else preset_label(spec, name)
  inherited = _inherited(context, supernet)
  if meshes.primary():
    outcome = Outcome(
      np.asarray(context.data('test').labels), *answers, functools.partial(context.pixels, 'test')
    )
    findings = Findings(
      result,
      context.task,
      adapted.spec,
      outcome,
      archive=archive,
      fitness=config.search.fitness,
      presets=inherited,
      allocation=allocation,
      backbone=_backbone(context),
      made=recorded_processes(context.workdir),
    )
    run_page.write(context.workdir, findings)
  return result


def _backbone(context: Context) -> dict[str, Any]:
  """How the run's base is loaded again, beside its weights: what the config gave, and the size."""
  model = context.settings.model
  names = ('sha256', 'num_heads', 'activation', 'patch_size')
  given = {name: getattr(model, name) for name in names}
  chosen = {name: value for name, value in given.items() if value is not None}
  return {**chosen, 'image_size': context.metadata['image_size']}


def _of_search(context: Context, archive: Archive | None, num_images: int) -> dict[str, Any]:
  """What the result holds of the search; null of each where there was none."""
  if archive is None:
    return dict.fromkeys(('finetuned', 'evaluations', 'hypervolume'))
  finetuned = context.settings.protocol == 'honest' and context.settings.finetune.epochs > 0
  volumes = hypervolume_by_generation(archive, context.adapted.spec, num_images)
  return {
    'finetuned': finetuned,
    'evaluations': len(archive),
    'hypervolume': [round(volume, 5) for volume in volumes],
  }


def _of_structure(context: Context, allocation: Allocation | None) -> dict[str, Any]:
  """What the result holds of a structure that was not searched; nothing where all was."""
  content: dict[str, Any] = {}
  if context.settings.structure != 'search':
    content['structure'] = context.settings.structure
  if allocation is not None:
    settings = context.settings.allocation
    content['allocation'] = {
      'params': allocation.count_params(),
      'budget': allocation.budget,
      'proposed': allocation.proposed,
      'head_epochs': settings.head_epochs,
      'epochs': settings.spared(context.settings.training, allocation.borrowed > 0),
      'borrowed': allocation.borrowed,
    }
  return content


def _inherited(context: Context, supernet: Any) -> dict[str, dict[str, float]]:
  """Parameters and accuracy of each preset with the supernet's weights; none without one."""
  if supernet is None:
    return {}
  return {
    name: {
      'params': context.adapted.count_params(preset),
      'accuracy': context.accuracy(supernet, preset, context.search_split),
    }
    for name, preset in presets.presets(context.adapted.spec).items()
  }


def _save_models(context: Context, variables: Any, genome: np.ndarray) -> None:
  """Writes the winner as an adapter, a genome and a plain model in the weights' own format."""
  folded = jax.jit(context.adapted.fold)(variables, genome)
  if context.mesh is not None:
    variables, folded = meshes.on_host((variables, folded))
  with meshes.primary_first('folded'):
    if not meshes.primary():
      return
    path = context.path('adapter.safetensors')
    save_adapter(path, context.adapted, variables, genome, task=context.task.name)
    write_json(context.path('genome.json'), genome_to_json(context.adapted.spec, genome), 'genome')
    metadata = {
      'image_size': context.metadata['image_size'],
      'normalization': context.metadata['normalization'],
      'resize': context.settings.data.resize,
      'classes': context.task.classes,
    }
    source = context.metadata.get('source')
    weights.save(context.path('folded'), context.adapted.model, folded, metadata, source)


def _difference_to_folded(context: Context, variables: Any, genome: np.ndarray) -> float:
  """The largest difference of a logit between the adapted winner and the folded file."""
  plain, params, _ = weights.load(context.path('folded'))
  images = context.data('train').images
  if isinstance(images, pipeline.Stream):
    images = next(images.blocks(COMPARED_IMAGES)).images
  inputs = context.preprocess(images[:COMPARED_IMAGES])
  adapted_logits = jax.jit(lambda v, x: context.adapted.apply(v, x, genome=genome))(
    variables, inputs
  )
  plain_logits = jax.jit(lambda p, x: plain.apply({'params': p}, x))(params, inputs)
  return float(jnp.max(jnp.abs(adapted_logits - plain_logits)))


def _shown(name: str, row: dict[str, Any]) -> dict[str, Any]:
  """What the result holds of a tested subnet: no fingerprint, and only the winner's genome."""
  hidden = {'weights'} if name == 'winner' else {'weights', 'genome'}
  return {field: value for field, value in row.items() if field not in hidden}
