"""One run: finds a structure, trains and tests it, and folds it into the plain model.

The structure is searched (supernet, search, finetuning), allocated from one gradient (head,
structure, training), or given (structure, training); baselines are trained alone. The test comes
last, on a list that is frozen to disk before, and only the report reads its results.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from glora_jax.errors import UserError
from glora_jax.vision.models.checkpoint import MODEL_FILE, require_no_other
from glora_jax.vision.reports import run_page
from glora_jax.vision.runs.backbone import Model
from glora_jax.vision.runs.config import RunSettings, check_config
from glora_jax.vision.runs.context import Context, never
from glora_jax.vision.runs.job import run_job
from glora_jax.vision.runs.sections import SEARCH
from glora_jax.vision.runs.stage import Stage
from glora_jax.vision.runs.stages.results import (
  SUPERNET,
  Result,
  Tested,
  freeze_and_evaluate,
  write_results,
)
from glora_jax.vision.runs.stages.search import stages_of_search
from glora_jax.vision.runs.stages.structures import stages_of_structure, stages_of_trainings


def run(
  config: ml_collections.ConfigDict | RunSettings,
  workdir: str,
  stop: Callable[[], bool] = never,
  *,
  given: Sequence[str] | None = (),
) -> dict[str, Any]:
  """Runs, or resumes, what a config describes.

  Args:
    config: a config with the fields of `config.default_config`, or the settings that `check_config`
      made of one.
    workdir: folder for all output; one task each.
    stop: called after every dispatch and generation and before every stage; if it returns True,
      everything is saved and the run ends. No signal handlers are installed.
    given: fields that are set on a command line, to warn of those that nothing reads. None warns of
      none, because a suite has done so for all of its runs.

  Returns:
    The content of `result.json`.

  Raises:
    UserError, OSError: a wrong field, file or workdir, one in use, or a training that diverged,
      whose last good state is in the workdir; the sentence names it.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  return run_job(settings, stages_of(settings), workdir, stop, Result, given)


def stages_of(settings: RunSettings) -> tuple[Stage, ...]:
  """The stages of a run, in order."""
  trainings = stages_of_trainings(settings)
  first, last = stages_of_search(settings) if settings.structure == SEARCH else ((), ())
  before = (*stages_of_structure(settings), *first, *trainings.values(), *last)
  # What is tested, and what the report describes.
  names = tuple(stage.name for stage in before if stage.name != 'head')
  tested = {name: stage.name for name, stage in trainings.items()}
  if 'finetune' in names and settings.final_split == 'train':  # else it has seen fewer images
    tested[SUPERNET] = 'search'
  if last:
    tested[SEARCH] = last[-1].name
  if (result := settings.report.result) not in (None, *tested):
    raise UserError(
      f'report.result={result!r} is not trained in this run; give one of {", ".join(tested)}.'
    )
  test = Stage(
    'test',
    functools.partial(_test, tested, names),
    reads=('report.', 'train_on'),
    after=names,
    has_folder=False,
  )
  report = Stage(
    'report',
    functools.partial(_report, names),
    reads=('presets',),
    after=('test', *names),
    check=_check_folded,
    has_folder=False,
  )
  return (*before, test, report)


def _test(
  tested: Mapping[str, str], names: Sequence[str], context: Context, *results: Any
) -> Tested:
  found, candidates = dict(zip(names, results, strict=True)), {}
  for name, stage in tested.items():
    candidates[name] = found[stage]
    if stage == 'search':  # a searched structure in its supernet
      genome = found[stage].best(context.settings.search.fitness)
      candidates[name] = Model(context.adapted.fix(genome), found['supernet'])
  return freeze_and_evaluate(context, candidates)


def _report(
  names: Sequence[str], context: Context, tested: Tested, *results: Any
) -> dict[str, Any]:
  found = dict(zip(names, results, strict=True))
  allocation = found['structure'].allocation if 'structure' in found else None
  return write_results(context, tested, found.get('search'), found.get('supernet'), allocation)


def _check_folded(context: Context) -> None:
  """Raises ValueError if the folder of the folded model holds another checkpoint."""
  path = context.path('folded')
  if context.workdir and os.path.isdir(path):
    require_no_other(path)


def summary(result: dict[str, Any], workdir: str) -> str:
  """The text that the command line prints at the end."""
  # The purpose of a run.
  left = ('report.html', 'adapter.safetensors', f'folded/{MODEL_FILE}')
  gone = [name for name in left if not os.path.exists(os.path.join(workdir, name))]
  last = f'Page: {workdir}/report.html\nFolded model: {workdir}/folded'
  if gone:
    last = (
      f'Missing from this finished run: {", ".join(gone)}; remove {workdir}/result.json, and the '
      'same command writes them again without training.'
    )
  return f'{run_page.table(result)}\n\n{last}'
