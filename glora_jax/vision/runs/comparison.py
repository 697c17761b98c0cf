"""A comparison of methods on one task: presets, full fine-tuning, allocation and search.

All get the same recipe, number of steps, tuning and seeds. The learning rate of every method is
chosen on the validation images, with a seed that is not in the table. Every method is then trained
with every seed, side by side. The search looks for a structure within each budget in each seed's
supernet, and finetunes it for `finetune.epochs` of the recipe's epochs; the supernet has the rest.
The list of structures is frozen to disk before the test images are read and the page is written.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import ml_collections
import numpy as np

from glora_jax import tree
from glora_jax.checks import check_path
from glora_jax.errors import UserError
from glora_jax.vision.data.catalog import require_apart
from glora_jax.vision.files import write_json
from glora_jax.vision.reports import comparison_page
from glora_jax.vision.runs.config import RunSettings, check_config
from glora_jax.vision.runs.context import Context, make_context, never
from glora_jax.vision.runs.fields import warn_of_unread
from glora_jax.vision.runs.job import claimed, prepared, run_job
from glora_jax.vision.runs.origins import (
  Made,
  current,
  note_process,
  recorded_processes,
  recorded_weights,
)
from glora_jax.vision.runs.runners import THIS_PROCESS, Runner, ThisProcess
from glora_jax.vision.runs.sections import GRADIENT, NO_PRESETS, TUNING_SEED
from glora_jax.vision.runs.stage import Stage, read_by, walk
from glora_jax.vision.runs.stages.methods import (
  TrainedStructure,
  rate_of,
  seeds_of,
  stages_of_methods,
)
from glora_jax.vision.runs.stages.results import freeze
from glora_jax.vision.runs.stages.training import ENOUGH_STEPS, is_guessing, share_of_largest_class
from glora_jax.vision.runs.terminal import user_errors
from glora_jax.vision.runs.workdir import is_finished
from glora_jax.vision.structure_names import file_name, preset_label

log = logging.getLogger(__name__)


_TRAINED_ON = {'val_accuracy': None, 'val_loss': None}  # when training includes these images


class _Data(TypedDict):
  origin: str
  notes: list[str]


class Result(TypedDict):
  """The content of `result.json`."""

  task: str
  data: _Data
  weights: str
  seeds: list[int]
  epochs: int
  finetune_epochs: int
  train_on: str
  rates: list[float]
  rate: dict[str, float]
  methods: dict[str, list[dict[str, Any]]]
  seconds: dict[str, float]
  sha256: dict[str, str]


def run(
  config: ml_collections.ConfigDict | RunSettings,
  workdir: str,
  stop: Callable[[], bool] = never,
  runner: Runner = THIS_PROCESS,
  *,
  given: Sequence[str] = (),
) -> dict[str, Any]:
  """Runs, or resumes, a comparison.

  Args:
    config: a config with the fields of `config.default_config` and `job='compare'`, or the
      settings that `check_config` made of one.
    workdir: folder for all output; one task each.
    stop: see `experiment.run`.
    runner: trains the methods, each with all of its seeds, and then tests all of them.
    given: see `experiment.run`.

  Returns:
    The content of `result.json`.

  Raises:
    UserError, OSError: a wrong field, file or workdir, one in use, or a method that failed on
      another machine (the others' trainings are kept); the sentence names it.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  if (job := settings.job) != 'compare':
    raise UserError(f"job={job!r} is not a comparison; give job='compare', or call experiment.run.")
  with user_errors():
    workdir = check_path(workdir)
  stages = stages_of(settings)
  if isinstance(runner, ThisProcess) or is_finished(workdir):
    return run_job(settings, stages, workdir, stop, Result, given)
  with contextlib.ExitStack() as stack:
    with user_errors():
      warn_of_unread(settings, read_by(stages), given)
      require_apart(settings.task, workdir)
      stack.enter_context(claimed(workdir, stages))
      prepared(settings, stages, workdir)
    methods = settings.compare.methods
    jobs = {name: functools.partial(_train_one, settings, workdir, name) for name in methods}
    with contextlib.closing(runner.outcomes(jobs, workdir, stop)) as outcomes:
      for number, (method, outcome) in enumerate(outcomes, 1):
        note_process(workdir, outcome())
        log.info('%s: trained, %d of %d methods', method, number, len(methods))
  rest = functools.partial(run_job, settings, stages, workdir, shape=Result, given=None)
  with contextlib.closing(runner.outcomes({'comparison': rest}, workdir, stop)) as outcomes:
    [(_, outcome)] = outcomes
  return outcome()


def stages_of(settings: RunSettings) -> tuple[Stage, ...]:
  """The stages of a comparison, in order."""
  methods = stages_of_methods(settings)
  names = tuple(stage.name for stage in methods)
  trained = tuple(name for name in names if name.startswith('training/'))
  test = Stage('test', _test, after=trained, has_folder=False)
  run = functools.partial(_report, names)
  reads, after = ('compare.methods',), ('test', *names)
  return (*methods, test, Stage('report', run, reads, after, has_folder=False))


def _test(context: Context, *trained: dict[str, list[TrainedStructure]]) -> Any:
  return freeze_and_evaluate(context, {name: row for rows in trained for name, row in rows.items()})


def _report(
  names: Sequence[str], context: Context, tested: dict[str, Any], *results: Any
) -> dict[str, Any]:
  """Writes the chosen learning rates and the page; the content of `result.json`."""
  settings, compare = context.settings, context.settings.compare
  found = dict(zip(names, results, strict=True))
  tried = {method: found.get(f'tuning/{file_name(method)}', []) for method in compare.methods}
  rates = {method: rate_of(settings, method, tried[method]) for method in compare.methods}
  rows = {
    row: structures
    for method in compare.methods
    for row, structures in found[f'training/{file_name(method)}'].items()
  }
  record = {
    'rate': rates,
    'seed': settings.seed + TUNING_SEED,
    'tried': {method: rows for method, rows in tried.items() if rows},
  }
  write_json(context.path('rates.json'), record, 'rates')
  diverged, guessing = _troubles(context, rows, tested)
  read_off = {name: structures for name, structures in rows.items() if name.startswith(GRADIENT)}
  result = {
    'task': context.task.name,
    'data': {'origin': context.task.origin, 'notes': list(context.task.notes)},
    'weights': settings.model.weights,
    **recorded_weights(context.workdir),
    'seeds': seeds_of(settings),
    'epochs': settings.training.epochs,
    'finetune_epochs': settings.finetuning.epochs,
    'train_on': settings.final_split,
    'rates': list(compare.rates),
    'rate': rates,
    'labels': {
      method: preset_label(context.place(method).adapted.spec, method)
      for method in compare.methods
      if method not in NO_PRESETS
    },
    'allocation_epochs': {
      name: [structure.spared_epochs for structure in structures]
      for name, structures in read_off.items()
    },
    'structures': {
      name: [structure.model.genome.tolist() for structure in structures]
      for name, structures in read_off.items()
    },
    'methods': tested,
    'diverged': diverged,
    'learned_nothing': guessing,
    'seconds': dict(context.seconds),
  }
  spec = context.place(GRADIENT).adapted.spec
  comparison_page.write(context.workdir, result, spec, recorded_processes(context.workdir))
  return result


def _troubles(
  context: Context,
  rows: Mapping[str, Sequence[TrainedStructure]],
  tested: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]]]:
  """What diverged, and what learned nothing: sentences by row and seed.

  A training of very few steps is not reported as having learned nothing.
  """
  trained, recipe = context.settings.final_split, context.settings.training
  split, title = ('val', 'validation') if trained == 'train' else ('test', 'test')
  labels = np.asarray(context.data(split).labels)
  steps_per_epoch = recipe.steps_per_epoch(context.counts[trained])
  diverged: dict[str, dict[str, str]] = {}
  guessing: dict[str, dict[str, str]] = {}
  for name, structures in rows.items():
    for seed, structure, values in zip(
      seeds_of(context.settings), structures, tested[name], strict=True
    ):
      accuracy = values[f'{split}_accuracy']
      steps = (recipe.epochs - structure.spared_epochs) * steps_per_epoch
      if structure.trouble or not math.isfinite(values[f'{split}_loss'] + values['test_loss']):
        sentence = structure.trouble or 'Its loss is not finite.'
        diverged.setdefault(name, {})[str(seed)] = sentence
      elif steps >= ENOUGH_STEPS and is_guessing(accuracy, labels):
        guessing.setdefault(name, {})[str(seed)] = (
          f'Its {title} accuracy is {accuracy:.1%}; answering the most frequent class for every '
          f'image gets {share_of_largest_class(labels):.1%}.'
        )
  return diverged, guessing


def freeze_and_evaluate(
  context: Context, rows: dict[str, list[TrainedStructure]]
) -> dict[str, list[dict[str, Any]]]:
  """Freezes all structures with their weights to disk, and only then reads the test images.

  Args:
    context: the context.
    rows: the structures by row of the table, one for each seed.

  Returns:
    Parameters, seconds, accuracies and losses, in the order of `rows`.

  Raises:
    ValueError: another list was frozen before.
  """
  is_held_out = context.settings.final_split == 'train'
  measured: dict[str, list[dict[str, Any]]] = {
    name: [
      {
        'params': structure.model.adapted.count_params(),
        'seconds': round(structure.seconds, 2),
        **(_measure_both(context, structure, 'val') if is_held_out else _TRAINED_ON),
      }
      for structure in structures
    ]
    for name, structures in rows.items()
  }
  frozen = {
    name: [
      {
        'genome': structure.model.genome.tolist(),
        'val_accuracy': values['val_accuracy'],
        'weights': tree.fingerprint(structure.model.variables),
      }
      for structure, values in zip(structures, measured[name], strict=True)
    ]
    for name, structures in rows.items()
  }
  freeze(context, frozen)
  for name, structures in rows.items():
    for values, structure in zip(measured[name], structures, strict=True):
      values.update(_measure_both(context, structure, 'test'))
  return measured


def _measure_both(context: Context, structure: TrainedStructure, split: str) -> dict[str, float]:
  """A structure's accuracy and loss on a split, also with the weights before finetuning."""
  own = context.measure(structure.model, split)
  if not structure.inherited:
    return own
  inherited = context.measure(structure.model._replace(variables=structure.inherited), split)
  return {**own, **{f'inherited_{name}': value for name, value in inherited.items()}}


def _train_one(settings: RunSettings, workdir: str, method: str, stop: Callable[[], bool]) -> Made:
  """Tunes and trains a method with every seed; returns how it was made."""
  stages = stages_of(settings)
  context = make_context(settings, stages, workdir, stop)
  walk(context, stages, until=f'training/{file_name(method)}')
  return current()
