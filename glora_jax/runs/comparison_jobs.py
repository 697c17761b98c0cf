"""The methods of a comparison as jobs that a runner hands out: one for each, with all of its seeds.

What a job has tuned and trained lies in the workdir, where the comparison itself finds it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_collections

from glora_jax.data.catalog import require_apart
from glora_jax.files import write_json
from glora_jax.runs import early_checks, provenance_record
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import prepare, read_seconds, rehearse
from glora_jax.runs.runners import Job, Runner
from glora_jax.runs.stages.many_starts import Trial
from glora_jax.runs.stages.methods import train_method
from glora_jax.runs.stages.tuning import choose_rate, seeds_of
from glora_jax.runs.workdir import changes_of, claim, claim_workdir

log = logging.getLogger(__name__)


class _Part(NamedTuple):
  """What a job has spent, by the stage of the comparison, and with what it worked."""

  seconds: dict[str, float]
  made: provenance_record.Made


def train_methods(
  config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool], runner: Runner
) -> None:
  """Tunes and trains every method of a comparison that is not finished; tests none.

  Args:
    config: see `comparison.run`.
    workdir: see `comparison.run`; this process holds it meanwhile.
    stop: see `comparison.run`.
    runner: does the methods.

  Raises:
    ValueError, OSError: what can be known before: a wrong field, file or workdir, or one in use.
    RuntimeError: a method failed; what the others have trained is kept.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  require_apart(settings.task, workdir)
  with claim(workdir):
    changes_of(config, workdir)
    do_alone(runner, functools.partial(_check, config, workdir), workdir, stop)
    claim_workdir(config, workdir)
    methods = settings.compare.methods
    jobs = {method: functools.partial(_train, config, workdir, method) for method in methods}
    with contextlib.closing(runner.outcomes(jobs, workdir, stop)) as outcomes:
      for number, (method, outcome) in enumerate(outcomes, 1):
        _note(outcome(), workdir)
        log.info('%s is trained, %d of %d methods', method, number, len(methods))


def do_alone(runner: Runner, job: Job, workdir: str, stop: Callable[[], bool]) -> Any:
  """What a single job returns."""
  with contextlib.closing(runner.outcomes({'comparison': job}, workdir, stop)) as outcomes:
    [(_, outcome)] = outcomes
  return outcome()


def _check(config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool]) -> None:
  """Checks all that the comparison needs, and leaves in the workdir what preparing writes."""
  del stop
  rehearse(config, workdir)


def _train(
  config: ml_collections.ConfigDict, workdir: str, method: str, stop: Callable[[], bool]
) -> _Part:
  """Chooses the learning rate of a method, and trains it with every seed."""
  settings = check_config(config)
  run = prepare(settings, workdir, stop, early_checks.check_stages)
  start = time.perf_counter()
  rate = choose_rate(run, method).rate
  tuned = time.perf_counter()
  trials = [Trial(seed, rate) for seed in seeds_of(settings)]
  train_method(run, method, trials, settings.compare.budgets, 'trained')
  seconds = {'tuning': tuned - start, 'training': time.perf_counter() - tuned}
  return _Part(seconds, provenance_record.current())


def _note(part: _Part, workdir: str) -> None:
  """Adds a job's share to what the workdir says of the whole comparison."""
  provenance_record.note(workdir, part.made)
  seconds = read_seconds(workdir)
  for stage, spent in part.seconds.items():
    seconds[stage] = round(seconds.get(stage, 0.0) + spent, 2)
  write_json(os.path.join(workdir, 'seconds.json'), seconds, 'seconds')
