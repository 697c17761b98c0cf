"""One run: finds a structure, trains and tests it, and folds it into the plain model.

The structure is searched (supernet, search, finetuning), allocated from one gradient (head,
gradient, structure, training), or given (structure, training); baselines are only trained. The
test comes last. Before it, the list of tested structures is frozen to disk, and only the report
reads the results of the test. A run without a test ends with the accuracies on the validation
images.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from glora_jax import mesh as meshes
from glora_jax.checks import check_path
from glora_jax.errors import UserError
from glora_jax.files import write_json
from glora_jax.vision.models.checkpoint import require_no_other
from glora_jax.vision.runs import processes
from glora_jax.vision.runs.config import check_config
from glora_jax.vision.runs.context import Context, never
from glora_jax.vision.runs.job import begin, read_finished, with_provenance
from glora_jax.vision.runs.origins import note_process
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.stage import Stage, fields_of, prerequisites, walk
from glora_jax.vision.runs.stages.results import (
  freeze_and_test,
  list_structures,
  write_results,
)
from glora_jax.vision.runs.stages.search import stages_of_search
from glora_jax.vision.runs.stages.structures import stages_of_structure, stages_of_trainings
from glora_jax.vision.runs.terminal import user_errors
from glora_jax.vision.runs.workdir import Stop, changes_of, is_finished
from glora_jax.vision.structure_names import SEARCH, SUPERNET


def run(
  config: ml_collections.ConfigDict | RunSettings,
  workdir: str,
  stop: Stop = never,
  *,
  shared: str | None = None,
  listed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Runs, or resumes, the run that a config describes.

  A finished run is only read, whatever the version, unless fields were corrected before a test.

  Args:
    config: a config with the fields of `config.default_config`, or the settings that `check_config`
      made of one.
    workdir: folder for all output; one task each.
    stop: called after every dispatch and generation and before every stage; if it returns True,
      everything is saved and the run ends. No signal handlers are installed.
    shared: folder of the stages that runs of a suite have in common, such as a linear probe; None
      if the workdir has them.
    listed: the list that `train` returned and a suite has frozen; None if this run is alone.

  Returns:
    The content of `result.json`.

  Raises:
    UserError, OSError: a wrong field, file or workdir, a workdir in use, other structures than
      `listed`, or a training that diverged; the message names its last good state.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  if settings.is_suite:
    raise UserError(
      f'task={settings.task!r} and the section `suite` stand for several runs; call suite.run.'
    )
  stages = stages_of(settings)
  processes.initialize(**dataclasses.asdict(settings.distributed))
  with user_errors():
    workdir = check_path(workdir)
    is_done = is_finished(workdir) and not changes_of(settings, workdir, fields_of(stages))
    # Other processes may see an older state of a network's folder, and would wait for this one.
    if meshes.on_any(is_done and meshes.primary()):
      return read_finished(settings, workdir)
  with begin(settings, stages, workdir, stop, shared, listed) as context:
    note_process(workdir)
    result = walk(context, stages)
    if meshes.primary():
      write_json(os.path.join(workdir, 'result.json'), result, 'result')
    return with_provenance(result, workdir)


def train(
  config: ml_collections.ConfigDict | RunSettings,
  workdir: str,
  stop: Stop = never,
  *,
  shared: str | None = None,
) -> dict[str, Any]:
  """Runs, or resumes, all stages before the test; `run` continues from there.

  Args:
    config: see `run`.
    workdir: see `run`.
    stop: see `run`.
    shared: see `run`.

  Returns:
    The structures that `run` will test: the content of `test_list.json`, which is not yet written.

  Raises:
    UserError, OSError, Stopped: see `run`.
  """
  settings = check_config(config)
  stages = stages_of(settings)
  processes.initialize(**dataclasses.asdict(settings.distributed))
  with begin(settings, stages, workdir, stop, shared) as context:
    note_process(workdir)
    return walk(context, stages, until='list').content()


def stages_of(settings: RunSettings) -> tuple[Stage, ...]:
  """The stages of a run, in order."""
  trainings = stages_of_trainings(settings)
  supernet, search = stages_of_search(settings) if settings.structure == SEARCH else ((), ())
  before = (*stages_of_structure(settings), *supernet, *trainings.values(), *search)
  # The structures that are tested, and that the report describes.
  names = tuple(stage.name for stage in before)
  tested = {name: stage.name for name, stage in trainings.items()}
  if 'finetune' in names and settings.final_split == 'train':  # else it has seen fewer images
    tested[SUPERNET] = 'search'
  if search:
    tested[SEARCH] = search[-1].name
  if unknown := [name for name in settings.report.result if name not in tested]:
    raise UserError(
      f'report.result={unknown[0]!r} is not trained in this run; give one of {", ".join(tested)}.'
    )
  listing = Stage(
    'list',
    functools.partial(list_structures, tested, names),
    reads=('report.', 'train_on'),
    after=names,
    has_folder=False,
  )
  test = Stage('test', freeze_and_test, after=('list',), has_folder=False)
  last = (listing, test) if settings.test else (listing,)
  needs = {name: prerequisites(before, stage) for name, stage in tested.items()}
  report = Stage(
    'report',
    functools.partial(write_results, needs),
    reads=('presets', 'test'),
    after=(last[-1].name,),
    check=_check_folded,
    has_folder=False,
  )
  return (*before, *last, report)


def _check_folded(context: Context) -> None:
  """Raises ValueError if the folder of the folded model holds another checkpoint."""
  path = context.path('folded')
  if os.path.isdir(path):
    require_no_other(path)
