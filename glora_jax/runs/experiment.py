"""One run, stage by stage: supernet, baselines, search, finetuning, test, folding and report.

Every stage leaves its result in the workdir and is skipped when it is there, so the same command
resumes. The stage `test` comes last: it evaluates a list that was frozen to disk before, and only
the report reads what it finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_collections

from glora_jax.method.genomes import check_budget
from glora_jax.reports import run_report
from glora_jax.runs.lifecycle import carry_out, never
from glora_jax.runs.run import Run, Stream
from glora_jax.runs.stages.evaluation import freeze_and_evaluate
from glora_jax.runs.stages.results import write_results
from glora_jax.runs.stages.search import run_search
from glora_jax.runs.stages.training import finetune, train_baselines, train_supernet


def run(
  config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool] = never
) -> dict[str, Any]:
  """Runs, or resumes, what a config describes.

  Args:
    config: a config with the fields of `config.default_config`.
    workdir: folder for everything that is written; one config each.
    stop: asked after every dispatch and generation and before every stage; where it says True,
      everything is saved and the run ends. No signal handlers are installed.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError, OSError: a wrong field, file or workdir, or one in use; the sentence names it.
    NonFiniteLossError: training diverged; the last good state is in the workdir.
    Stopped: `stop` asked for it.
  """
  return carry_out(config, workdir, stop, _run_stages)


def _run_stages(run: Run) -> dict[str, Any]:
  budget = check_budget(run.settings.budget)
  with run.stage('supernet'):
    supernet = train_supernet(run)
  with run.stage('baselines'):
    baselines = train_baselines(run)
  with run.stage('search'):
    archive = run_search(run, supernet, budget=budget, key=run.key(Stream.SEARCH))
  with run.stage('finetune'):
    winner = archive.best(run.settings.search.fitness)
    candidates = {**baselines, **finetune(run, supernet, winner)}
  with run.stage('test'):
    tested, answers = freeze_and_evaluate(run, candidates)
  with run.stage('report'):
    result = write_results(run, candidates['winner'].variables, tested, answers, archive, supernet)
  return result


def summary(result: dict[str, Any], workdir: str) -> str:
  """What the command line prints at the end."""
  return (
    f'{run_report.table(result)}\n\n'
    f'{workdir}/report.md has the whole story, {workdir}/folded the plain model.'
  )
