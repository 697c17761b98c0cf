"""Many runs as one: a grid of tasks, structures, budgets and seeds, and one table of all.

    workdir/  config.json  report.html  table.csv  test_list.json  compiled/  shared/
              dtd/lora:8/42/ (a run)  dtd/lora:8/rate-0.001/ (one that tries a rate)  ...

All runs are checked before the first one starts. Those that try learning rates come first. Then all
others train, the list of structures to test is written to disk, and only then the first one is
tested. Stages that several runs need, such as a linear probe, run once, in `shared/`.

Tasks whose data is missing are listed with the missing data. A run that fails is listed with its
error, and the rest continues. If it is trained at a later start, when others have been tested, the
list and the page say so: to wait for it would withhold the tests of all others. The table is made
only from each run's `result.json`, so the same command resumes: finished runs are read, interrupted
ones continue, failed ones are tried again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax
import ml_collections

from glora_jax import mesh as meshes
from glora_jax.checks import check_path
from glora_jax.errors import UserError
from glora_jax.files import first_line, read_json, write_json
from glora_jax.vision.data.catalog import find
from glora_jax.vision.reports import page, report
from glora_jax.vision.reports.page import group_by
from glora_jax.vision.reports.table import Board
from glora_jax.vision.runs import experiment, processes
from glora_jax.vision.runs.cells import Run, runs_of
from glora_jax.vision.runs.config import check_config
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.job import begin
from glora_jax.vision.runs.runners import Runner, in_this_process
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.stage import DIVERGED, fields_of
from glora_jax.vision.runs.terminal import BUG, is_mistake, sentence, user_errors
from glora_jax.vision.runs.workdir import (
  SHARED,
  TEST_LIST,
  InUseError,
  Stop,
  Stopped,
  changes_of,
  claim,
  has_test_list,
  is_finished,
  write_config,
)

log = logging.getLogger(__name__)


def run(
  config: ml_collections.ConfigDict | RunSettings,
  workdir: str,
  stop: Stop = never,
  runner: Runner = in_this_process,
) -> Board:
  """Runs, or resumes, all runs whose data is ready, and keeps page and table up to date.

  Args:
    config: a config whose task stands for several, such as 'vtab/all', or whose section `suite`
      lists structures, rates or seeds; or settings.
    workdir: folder for all output; one config each.
    stop: see `experiment.run`; also called before every run.
    runner: executes the runs, and the checks before them.

  Returns:
    The runs that are done, missing and failed, as in the table.

  Raises:
    UserError, OSError: a wrong field or workdir, one in use, or no task is ready.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  with user_errors():
    workdir = check_path(workdir)
  runs = runs_of(settings)
  board = Board(settings.task, {name: run.cell for name, run in runs.items()})
  phases = _Phases(board, workdir, runner, stop)
  processes.initialize(**dataclasses.asdict(settings.distributed))
  with contextlib.ExitStack() as stack:
    with user_errors():
      parts = {part for name in board.cells for part in name.split('/')}
      stack.enter_context(claim(workdir, tasks=parts))
      folders = [phases.folder(name) for name in board.cells]
      changes_of(settings, workdir, fields_read(settings), folders)
      board.late = _read_lists(workdir)['late']
    # An earlier start may have left a run without the test.
    unfinished = {
      name: run for name, run in runs.items() if not _is_done(run.settings, phases.folder(name))
    }
    phases.list_missing(unfinished, settings.suite.prepare)
    phases.check(unfinished)
    phases.write()
    if not board.waiting:
      raise UserError(
        f'None of the {len(board.tested)} runs of {settings.task} can start; {page.path(workdir)} '
        'lists the data that each of them needs.'
      )
    if meshes.primary():
      write_config(settings, workdir)
    trials = {name: run for name, run in runs.items() if name not in board.tested}
    phases.execute('Trying a rate', _try_rate, trials, board.results)
    chosen = runs_of(settings, phases.choose_rates(settings.report.chooses_by))
    tested = {name: chosen[name] for name in board.tested}
    lists = phases.train(tested)
    phases.execute('Testing', experiment.run, tested, board.results, listed=lists)
  return board


def fields_read(settings: RunSettings) -> tuple[str, ...]:
  """Fields and sections that the runs of a config read."""
  runs = runs_of(settings).values()
  stages = [stage for run in runs for stage in experiment.stages_of(run.settings)]
  return (*fields_of(stages), 'suite.') if settings.is_suite else fields_of(stages)


@dataclasses.dataclass
class _Phases:
  """The phases of a suite, which share its board and the names of the trials that diverged."""

  board: Board
  workdir: str
  runner: Runner
  stop: Stop
  diverged: set[str] = dataclasses.field(default_factory=set)

  def folder(self, name: str) -> str:
    """The workdir of a run."""
    return os.path.join(self.workdir, *name.split('/'))

  def list_missing(self, runs: Mapping[str, Run], prepare: bool) -> None:
    """Writes the missing data of unfinished runs on the board."""
    with meshes.primary_first('suite/prepare'):
      for task, names in group_by(runs, lambda name: runs[name].cell.task).items():
        if why := missing(runs[names[0]].settings, prepare):
          log.info('%s is not ready: %s', task, why)
          self.board.missing.update(dict.fromkeys(names, why))

  def check(self, runs: Mapping[str, Run]) -> None:
    """Checks the first unfinished run of each task, structure and budget.

    Others differ in rate or seed.

    If it fails, no run of that task and structure starts. Nothing is written into the folder of a
    run whose learning rate has not been chosen yet.
    """
    cells, tested = self.board.cells, self.board.tested
    tried = {cell[:2] for name, cell in cells.items() if name not in tested}
    waiting = [name for name in self.board.waiting if name in runs]
    groups = group_by(waiting, lambda name: (cells[name][:3], name in tested))
    is_dry = {name: name in tested and cells[name][:2] in tried for name, *_ in groups.values()}
    self.execute('Checking', _check, {name: runs[name] for name in is_dry}, {}, is_dry=is_dry)
    reasons = {cells[name][:2]: why for name, why in self.board.failed.items()}
    for name in self.board.waiting:
      if why := reasons.get(cells[name][:2]):
        self.board.failed[name] = why

  def execute(
    self,
    title: str,
    job: Callable[..., Any],
    runs: Mapping[str, Run],
    found: dict[str, Any],
    **arguments: Mapping[str, Any],
  ) -> None:
    """Executes a job for each run that is waiting, and keeps the page up to date.

    Args:
      title: name of the phase, for the log.
      job: `(settings, folder, stop, *, shared, **arguments) -> result`, as `experiment.run`.
      runs: the runs.
      found: receives the results by name. A result of None is left out, and a text is the error of
        a run whose training diverged.
      **arguments: further arguments of the job, each with its values by name of the run; None for
        others.
    """
    jobs, shared = {}, os.path.join(self.workdir, SHARED)
    for number, (name, (_, settings)) in enumerate(runs.items(), 1):
      if self.board.state(name) == 'waiting':
        line = f'{title}: {name} ({number} of {len(runs)})'
        further = {key: values.get(name) for key, values in arguments.items()}
        jobs[name] = functools.partial(
          _log_and_call, line, job, settings, self.folder(name), shared=shared, **further
        )
    with contextlib.closing(self.runner(jobs, self.workdir, self.stop)) as outcomes:
      for name, outcome in outcomes:
        result = attempt(self.board, name, outcome)
        if isinstance(result, str):
          self.board.failed[name] = result
          self.diverged.add(name)
        elif result is not None:
          found[name] = result
        self.write()
        jax.clear_caches()  # no other run uses these programs, and those of many runs add up
        gc.collect()  # frees its arrays on the device before the next run

  def choose_rates(self, by: str) -> dict[tuple[str, str], float]:
    """The learning rates that are best on the validation images, by task and structure.

    If none can be chosen, the runs of that structure are listed as failed.

    Args:
      by: see `best_on_val`.
    """
    board, chosen = self.board, {}
    trials = [name for name in board.cells if name not in {*board.tested, *board.missing}]
    for key, names in group_by(trials, lambda name: board.cells[name][:2]).items():
      rates: dict[str, Any] = {name: board.cells[name].rate for name in names}
      rows = {
        rates[name]: result['structures'][result['result']]
        for name in names
        if (result := board.results.get(name))
      }
      failed = [name for name in names if name in board.failed.keys() - self.diverged]
      if failed or not rows:
        why = board.failed[(failed or names)[-1]]
        for name in board.waiting:
          if board.cells[name][:2] == key:
            board.failed[name] = f'No learning rate could be chosen. {why}'
        continue
      best = chosen[key] = best_on_val(rows, by)
      log.info('%s %s: learning rate %g', *key, best)
      if len(rates) > 1 and best in (min(rates.values()), max(rates.values())):
        log.warning(
          '%s %s: %g is at an end of suite.rates; a rate beyond it may be better.', *key, best
        )
    return chosen

  def train(self, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Trains all runs, and writes the lists of structures to test; only then tests may begin.

    A run with a list from an earlier start is already trained.

    Returns:
      All lists, in the order of the runs.
    """
    lists = _read_lists(self.workdir)['runs']
    is_late = any(has_test_list(self.folder(name)) for name in lists)
    untrained = {name: run for name, run in runs.items() if name not in lists}
    trained: dict[str, Any] = {}
    self.execute('Training', _train, untrained, trained)
    every = {**lists, **trained}
    lists = {name: every[name] for name in self.board.cells if name in every}
    self.board.late += trained if is_late else ()
    with meshes.primary_first('suite/list'):
      if meshes.primary() and trained:
        path = os.path.join(self.workdir, TEST_LIST)
        write_json(path, {'runs': lists, 'late': self.board.late}, 'test list')
    return lists

  def write(self) -> None:
    """Writes the page and the table."""
    if meshes.primary():
      report.write_board(self.board, self.workdir)


def best_on_val(rows: Mapping[float, Any], by: str) -> float:
  """The rate with the highest `by`, and the lowest 'val_loss' if equal; nan and inf come last."""

  def rank(rate: float) -> tuple[float, float]:
    loss = rows[rate]['val_loss']
    is_finite = loss is not None and math.isfinite(loss)  # null in a file; nan is never less
    return rows[rate][by], -loss if is_finite else -math.inf

  return max(rows, key=rank)


class _TestLists(TypedDict):
  runs: dict[str, Any]
  late: list[str]


def _read_lists(workdir: str) -> _TestLists:
  """The lists of an earlier start; empty before it wrote them."""
  path = os.path.join(workdir, TEST_LIST)
  return (
    read_json(path, 'test list', _TestLists)
    if os.path.exists(path)
    else _TestLists(runs={}, late=[])
  )


def _is_done(settings: RunSettings, folder: str) -> bool:
  """Whether a run is finished; an earlier start may have left it without the test."""
  return is_finished(folder) and (has_test_list(folder) or not settings.test)


def _log_and_call(line: str, job: Callable[..., Any], *arguments: Any, **further: Any) -> Any:
  """The result of a job, after a line in the log of the process that runs it."""
  log.info(line)
  return job(*arguments, **further)


@user_errors()
def _check(settings: RunSettings, folder: str, stop: Stop, *, shared: str, is_dry: bool) -> None:
  """Checks a run before it starts; its arrays are freed at the end.

  A dry check begins the run in a temporary folder. A run that another process has started was
  checked by that process.
  """
  with tempfile.TemporaryDirectory() as elsewhere:
    folder = elsewhere if is_dry else folder
    try:
      with begin(settings, experiment.stages_of(settings), folder, stop, shared):
        pass
    except InUseError as error:
      if jax.process_count() > 1:
        raise
      log.info('%s', error)


def _try_rate(
  settings: RunSettings, folder: str, stop: Stop, *, shared: str
) -> dict[str, Any] | str:
  """The result of a run that tries a learning rate, or an error message if it diverged."""
  try:
    return experiment.run(settings, folder, stop, shared=shared)
  except UserError as error:
    if not isinstance(error.__cause__, DIVERGED):
      raise
    return str(error)


def _train(settings: RunSettings, folder: str, stop: Stop, *, shared: str) -> dict[str, Any] | None:
  """The structures that a run tests, after its training; None if it is done or tests nothing."""
  if _is_done(settings, folder) or not settings.test:
    return None
  return experiment.train(settings, folder, stop, shared=shared)


def attempt(board: Board, name: str, job: Callable[[], Any]) -> Any:
  """The result of a job; None if it fails, with its error message on the board.

  The log has the traceback of a bug, and with `--debug` that of any error.

  Raises:
    Stopped: the job was asked to stop.
    Exception: its error, if other processes may be waiting for this one.
  """
  try:
    return job()
  except Stopped:
    raise
  except Exception as error:
    if jax.process_count() > 1:
      raise
    board.failed[name], is_shown = sentence(error), log.isEnabledFor(logging.DEBUG)
    if not is_mistake(error):
      board.failed[name], is_shown = f'{type(error).__name__}: {first_line(error)}. {BUG}', True
    log.warning('%s failed: %s', name, board.failed[name], exc_info=is_shown)
    return None


def missing(settings: RunSettings, prepare: bool) -> str | None:
  """The missing data of a task, as a message.

  Args:
    settings: the settings of a single task.
    prepare: whether to download what can be downloaded first.

  Returns:
    The missing data and how to get it; None if everything is ready.
  """
  try:
    task = find(settings.task, settings.data)
    if prepare:
      task.open('train')
    return task.missing()
  except (ValueError, OSError, ImportError) as error:
    return sentence(error)
