"""One run, stage by stage: pretrained params -> adapt -> supernet -> baselines -> search -> finetuning -> test -> fold, report.

Every stage leaves its result in the workdir and is skipped when it is there, so the same command resumes. The stage `test`
runs last: it evaluates a list that was frozen to disk before, and only the report reads what it finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_collections

from glora_jax.method.genomes import check_budget
from glora_jax.reports import run_report
from glora_jax.runs.run import carry_out
from glora_jax.runs.stages.evaluation import test
from glora_jax.runs.stages.results import write_results
from glora_jax.runs.stages.search import run_search
from glora_jax.runs.stages.training import finetune, train_baselines, train_supernet


def run(
  config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
  """Runs, or resumes, what a config describes.

  Args:
    config: with the fields of `config.default_config`.
    workdir: folder for everything that is written; one config each.
    stop: asked after every dispatch and generation and before every stage; where it says True, everything is saved and the run
      ends. No signal handlers are installed here.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError, OSError: a wrong field, file or workdir, or one in use; the sentence names it.
    NonFiniteLossError: training diverged; the last good state is in the workdir.
    Stopped: `stop` said so.
  """
  return carry_out(config, workdir, stop, _run_stages)


def _run_stages(this):
  config = this.config
  with this.stage('supernet'):
    trained = train_supernet(this)
  with this.stage('baselines'):
    baselines = train_baselines(this)
  with this.stage('search'):
    archive = run_search(this, trained, budget=check_budget(config.budget), key=this.key(3))
  with this.stage('finetune'):
    candidates = {**baselines, **finetune(this, trained, archive.best(config.search.fitness))}
  with this.stage('test'):
    entries, answers = test(this, candidates)
  with this.stage('report'):
    result = write_results(this, candidates['winner'][0], entries, answers, archive, trained)
  return result


def summary(result: dict[str, Any], workdir: str) -> str:
  """What the command line prints at the end."""
  return f'{run_report.table(result)}\n\n{workdir}/report.md has the whole story, {workdir}/folded the plain model.'
