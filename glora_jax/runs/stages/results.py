"""The last two stages: the test, of a list that is frozen to disk first, and the report.

The report folds the winner, and writes what a run leaves behind.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax import tree
from glora_jax.data import pipeline
from glora_jax.files import write_json
from glora_jax.method import presets
from glora_jax.method.adapter_file import save_adapter
from glora_jax.method.draws import check_budget
from glora_jax.method.genomes import genome_to_json
from glora_jax.method.presets import preset_label
from glora_jax.models import weights
from glora_jax.records import read_record
from glora_jax.reports import run_page
from glora_jax.reports.errors import Outcome
from glora_jax.reports.findings import Findings
from glora_jax.reports.verdict import PAIRED
from glora_jax.runs.origins import recorded_processes, recorded_weights
from glora_jax.runs.run import Candidate, Run
from glora_jax.runs.sections import GRADIENT
from glora_jax.search.allocated import Allocation
from glora_jax.search.archive import Archive
from glora_jax.search.pareto import hypervolume_by_generation
from glora_jax.search.scoring import Predictions


def freeze_and_evaluate(
  run: Run, candidates: dict[str, Candidate]
) -> tuple[dict[str, dict[str, Any]], Predictions]:
  """Freezes the list of candidates to disk, and only then evaluates it on the test split.

  Args:
    run: the run.
    candidates: what to test, by name; 'winner' is among them.

  Returns:
    (the rows of the list with their test accuracies, by name, and but for the winner how many
    images it alone got right, and the row alone; what the winner answered for each test image).

  Raises:
    ValueError: another list was frozen before.
  """
  scored = {name: in_the_runs_space(run, candidate) for name, candidate in candidates.items()}
  rows = {
    name: {
      'params': (candidate.adapted or run.adapted).count_params(candidate.genome),
      'val_accuracy': None if _trained_on_val(run, name) else run.accuracy(*scored[name], 'val'),
      'genome': candidate.genome.tolist(),
      'weights': tree.fingerprint(run.adapted.split(candidate.variables)[0]),
    }
    for name, candidate in candidates.items()
  }
  freeze(run, rows)
  labels = np.asarray(run.data('test').labels)
  answers, is_right = {}, {}
  for name, row in rows.items():
    answers[name] = run.predict(*scored[name], 'test')
    is_right[name] = answers[name].are(labels)
    row['test_accuracy'] = int(is_right[name].sum()) / len(labels)
    if others := run.task.tests[1:]:
      row['other_test_accuracies'] = {split: run.accuracy(*scored[name], split) for split in others}
  for name in rows.keys() - {'winner'}:
    rows[name][PAIRED] = {
      'winner_only': int((is_right['winner'] & ~is_right[name]).sum()),
      'row_only': int((is_right[name] & ~is_right['winner']).sum()),
    }
  return rows, answers['winner']


def in_the_runs_space(run: Run, candidate: Candidate) -> tuple[Any, np.ndarray]:
  """(variables, genome) for the run's own scorers; what is of another space is folded before."""
  if candidate.adapted is None:
    return candidate.variables, candidate.genome
  folded = jax.jit(candidate.adapted.fold)(candidate.variables, candidate.genome)
  return {**run.variables, 'params': folded}, np.zeros((len(run.adapted.spec), 5), np.int8)


def _trained_on_val(run: Run, name: str) -> bool:
  """Whether a candidate was trained on the validation images, which then say nothing of it."""
  finetuning = run.settings.finetune
  if run.settings.protocol == 'paper':
    return True
  if run.settings.structure != 'search':
    return False
  return name == 'winner' and finetuning.on == 'train+val' and finetuning.epochs > 0


def freeze(run: Run, rows: dict[str, Any]) -> None:
  """Writes the list of what will be tested, with fingerprints of the weights, to `test_list.json`.

  Raises:
    ValueError: another list was frozen before.
  """
  path = run.path('test_list.json')
  if os.path.exists(path):
    remedy = 'use a new workdir, since what this one tests is no longer known'
    frozen = read_record(path, 'test list', dict[str, Any], remedy)
    if _without_accuracies(frozen) != _without_accuracies(rows):
      raise ValueError(
        f'{path} was frozen with other subnets than this run has now; use a new workdir.'
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
  run: Run,
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
    run: the run.
    candidates: what was tested, by name; 'winner' is among them.
    tested: what `freeze_and_evaluate` returned of the candidates.
    answers: what the winner answered for the test images.
    archive: the search's; None where nothing was searched.
    supernet: variables of the supernet that it searched in.
    allocation: the structure that was read off a gradient; None where none was.

  Returns:
    The content of `result.json` but for the seconds of the last stage.
  """
  config, adapted = run.settings, run.adapted
  variables, genome = candidates['winner'][:2]
  _save_models(run, variables, genome)
  difference = _difference_to_folded(run, variables, genome)
  images = {
    split: len(run.data(split).labels) for split in (run.train_split, run.search_split, 'test')
  }
  shown = {name: _shown(name, row) for name, row in tested.items()}
  # Where the structure is 'linear', the probe is the winner, and was not trained a second time.
  shown.setdefault('linear', _shown('linear', tested['winner']))
  result = {
    'task': run.task.name,
    'protocol': config.protocol,
    'seed': config.seed,
    'budget': check_budget(config.budget),
    'linear': shown.pop('linear'),
    'winner_supernet': shown.pop('winner_supernet', None),
    'winner': shown.pop('winner'),
    'presets': shown,  # what is left
    **_of_search(run, archive, images[run.search_split]),
    'fold_max_abs_diff': difference,
    'data': {
      'origin': run.task.origin,
      'notes': list(run.task.notes),
      'resize': config.data.resize,
      'images': images,
    },
    'normalization': run.metadata['normalization'],
    'weights': config.model.weights,
    **recorded_weights(run.workdir),
    'seconds': dict(run.seconds),
    **_of_structure(run, allocation),
  }
  for name, row in shown.items():
    spec = (candidates[name].adapted or adapted).spec
    row['label'] = name if name == GRADIENT else preset_label(spec, name)
  inherited = _inherited(run, supernet)
  if meshes.primary():
    outcome = Outcome(
      np.asarray(run.data('test').labels), *answers, functools.partial(run.pixels, 'test')
    )
    findings = Findings(
      result,
      run.task,
      adapted.spec,
      outcome,
      archive=archive,
      fitness=config.search.fitness,
      presets=inherited,
      allocation=allocation,
      backbone=_backbone(run),
      made=recorded_processes(run.workdir),
    )
    run_page.write(run.workdir, findings)
  return result


def _backbone(run: Run) -> dict[str, Any]:
  """How the run's base is loaded again, beside its weights: what the config gave, and the size."""
  model = run.settings.model
  names = ('sha256', 'num_heads', 'activation', 'patch_size')
  given = {name: getattr(model, name) for name in names}
  chosen = {name: value for name, value in given.items() if value is not None}
  return {**chosen, 'image_size': run.metadata['image_size']}


def _of_search(run: Run, archive: Archive | None, num_images: int) -> dict[str, Any]:
  """What the result holds of the search; null of each where there was none."""
  if archive is None:
    return dict.fromkeys(('finetuned', 'evaluations', 'hypervolume'))
  finetuned = run.settings.protocol == 'honest' and run.settings.finetune.epochs > 0
  volumes = hypervolume_by_generation(archive, run.adapted.spec, num_images)
  return {
    'finetuned': finetuned,
    'evaluations': len(archive),
    'hypervolume': [round(volume, 5) for volume in volumes],
  }


def _of_structure(run: Run, allocation: Allocation | None) -> dict[str, Any]:
  """What the result holds of a structure that was not searched; nothing where all was."""
  content: dict[str, Any] = {}
  if run.settings.structure != 'search':
    content['structure'] = run.settings.structure
  if allocation is not None:
    settings = run.settings.allocation
    content['allocation'] = {
      'params': allocation.count_params(),
      'budget': allocation.budget,
      'proposed': allocation.proposed,
      'head_epochs': settings.head_epochs,
      'epochs': settings.spared(run.settings.recipe_alone, allocation.borrowed > 0),
      'borrowed': allocation.borrowed,
    }
  return content


def _inherited(run: Run, supernet: Any) -> dict[str, dict[str, float]]:
  """Parameters and accuracy of each preset with the supernet's weights; none without one."""
  if supernet is None:
    return {}
  return {
    name: {
      'params': run.adapted.count_params(preset),
      'accuracy': run.accuracy(supernet, preset, run.search_split),
    }
    for name, preset in presets.presets(run.adapted.spec).items()
  }


def _save_models(run: Run, variables: Any, genome: np.ndarray) -> None:
  """Writes the winner as an adapter, a genome and a plain model in the weights' own format."""
  folded = jax.jit(run.adapted.fold)(variables, genome)
  if run.mesh is not None:
    variables, folded = meshes.on_host((variables, folded))
  with meshes.primary_first('folded'):
    if not meshes.primary():
      return
    path = run.path('adapter.safetensors')
    save_adapter(path, run.adapted, variables, genome, task=run.task.name)
    write_json(run.path('genome.json'), genome_to_json(run.adapted.spec, genome), 'genome')
    metadata = {
      'image_size': run.metadata['image_size'],
      'normalization': run.metadata['normalization'],
      'resize': run.settings.data.resize,
      'classes': run.task.classes,
    }
    source = run.metadata.get('source')
    weights.save(run.path('folded'), run.adapted.model, folded, metadata, source)


def _difference_to_folded(run: Run, variables: Any, genome: np.ndarray) -> float:
  """The largest difference of a logit between the adapted winner and the folded file."""
  plain, params, _ = weights.load(run.path('folded'))
  images = run.data('train').images
  if isinstance(images, pipeline.Stream):
    images = next(images.blocks(COMPARED_IMAGES)).images
  inputs = run.preprocess(images[:COMPARED_IMAGES])
  adapted_logits = jax.jit(lambda v, x: run.adapted.apply(v, x, genome=genome))(variables, inputs)
  plain_logits = jax.jit(lambda p, x: plain.apply({'params': p}, x))(params, inputs)
  return float(jnp.max(jnp.abs(adapted_logits - plain_logits)))


def _shown(name: str, row: dict[str, Any]) -> dict[str, Any]:
  """What the result holds of a tested subnet: no fingerprint, and only the winner's genome."""
  hidden = {'weights'} if name == 'winner' else {'weights', 'genome'}
  return {field: value for field, value in row.items() if field not in hidden}
