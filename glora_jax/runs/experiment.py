"""One run, stage by stage: the structure, its training, the test, folding and report.

A structure is searched (supernet, baselines, search, finetuning), read off one gradient (head,
structure, baselines, training), or given (structure, baselines, training).

Every stage leaves its result in the workdir and is skipped when it is there, so the same command
resumes. The stage `test` comes last: it evaluates a list that was frozen to disk before, and only
the report reads what it finds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ml_collections

from glora_jax.method.draws import check_budget
from glora_jax.models import folder
from glora_jax.reports import run_page
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import carry_out, never
from glora_jax.runs.run import Candidate, Run, Stream
from glora_jax.runs.sections import SEARCH
from glora_jax.runs.stages import structures
from glora_jax.runs.stages.results import Result, freeze_and_evaluate, write_results
from glora_jax.runs.stages.search import run_search
from glora_jax.runs.stages.structures import Structure
from glora_jax.runs.stages.training import finetune, train_supernet
from glora_jax.runs.used_fields import warn_of_unread
from glora_jax.runs.workdir import is_finished

LEFT = ('report.html', 'adapter.safetensors')  # what a run is for, beside the model in `folded`


def run(
  config: ml_collections.ConfigDict,
  workdir: str,
  stop: Callable[[], bool] = never,
  *,
  is_alone: bool = True,
) -> dict[str, Any]:
  """Runs, or resumes, what a config describes.

  Args:
    config: a config with the fields of `config.default_config`.
    workdir: folder for everything that is written; one config each.
    stop: asked after every dispatch and generation and before every stage; where it says True,
      everything is saved and the run ends. No signal handlers are installed.
    is_alone: whether it is no task of a suite, which names fields that do nothing once for all.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError, OSError: a wrong field, file or workdir, or one in use; the sentence names it.
    NonFiniteLossError: training diverged; the last good state is in the workdir.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  if (job := settings.job) != 'adapt':
    raise ValueError(f"job={job!r} is no run; give job='adapt', or call comparison.run.")
  if is_alone and not is_finished(workdir):
    warn_of_unread(settings)
  return carry_out(config, workdir, stop, _run_stages, Result)


def _run_stages(run: Run) -> dict[str, Any]:
  structure = structures.find(run)
  if run.settings.structure == SEARCH:
    candidates, found = _search(run, structure)
  else:
    assert structure is not None  # only a search may do without
    candidates, found = _train_structure(run, structure)
  with run.stage('test'):
    tested, answers = freeze_and_evaluate(run, candidates)
  with run.stage('report'):
    result = write_results(run, candidates, tested, answers, **found)
  return result


def _search(run: Run, beside: Structure | None) -> tuple[dict[str, Candidate], dict[str, Any]]:
  """Supernet, rows beside the winner, search and finetuning."""
  with run.stage('supernet'):
    supernet = train_supernet(run)
  with run.stage('baselines'):
    rows = structures.train_rows(run, beside)
  with run.stage('search'):
    budget = check_budget(run.settings.budget)
    archive = run_search(run, supernet, budget=budget, key=run.key(Stream.SEARCH))
  with run.stage('finetune'):
    winner = archive.best(run.settings.search.fitness)
    candidates = {**rows, **finetune(run, supernet, winner)}
  allocation = beside.allocation if beside else None
  return candidates, {'archive': archive, 'supernet': supernet, 'allocation': allocation}


def _train_structure(run: Run, structure: Structure) -> tuple[dict[str, Candidate], dict[str, Any]]:
  """Rows beside the winner, and the structure, trained alone."""
  with run.stage('baselines'):
    rows = structures.train_rows(run, structure)
  with run.stage('training'):
    winner = structures.train_alone(run, structure)
  return {**rows, 'winner': winner}, {'allocation': structure.allocation}


def summary(result: dict[str, Any], workdir: str) -> str:
  """What the command line prints at the end."""
  if gone := _gone(workdir):
    last = (
      f'{", ".join(gone)} of this finished run are gone; remove {workdir}/result.json, and the '
      'same command writes them again, without training.'
    )
  else:
    last = f'{workdir}/report.html has the whole story, {workdir}/folded the plain model.'
  return f'{run_page.table(result)}\n\n{last}'


def _gone(workdir: str) -> list[str]:
  """What a finished run is for and has no more; the model's file is called as its base's was."""
  gone = [name for name in LEFT if not os.path.exists(os.path.join(workdir, name))]
  folded = os.path.join(workdir, 'folded')
  is_there = os.path.isdir(folded) and folder.checkpoints_in(folded)
  return gone if is_there else [*gone, 'the model in folded']
