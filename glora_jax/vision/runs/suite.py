"""The tasks of a benchmark: each a run in its own folder of the workdir, and one table of all.

    workdir/  config.json  report.html  table.csv  compiled/  cifar100/ (a run)  ...

Tasks whose data is ready run; the others are listed with what is missing. A task that fails is
listed with its error, and the rest continue. All tasks and their images are checked before the
first one starts. The table is made from each run's `result.json` alone, so the same command
resumes: finished runs are read, an interrupted one continues, a failed one is tried again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from glora_jax import mesh as meshes
from glora_jax.checks import check_path
from glora_jax.errors import UserError
from glora_jax.files import first_line
from glora_jax.vision.data.catalog import expand, find
from glora_jax.vision.reports import page, scoreboard
from glora_jax.vision.reports.scoreboard import Board
from glora_jax.vision.runs import experiment, processes
from glora_jax.vision.runs.config import RunSettings, check_config, check_settings, settings_of
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.fields import warn_of_unread
from glora_jax.vision.runs.job import claimed, prepared
from glora_jax.vision.runs.runners import THIS_PROCESS, Runner
from glora_jax.vision.runs.sections import SuiteSettings
from glora_jax.vision.runs.stage import read_by
from glora_jax.vision.runs.terminal import BUG, is_mistake, sentence, user_errors
from glora_jax.vision.runs.workdir import (
  InUseError,
  Stopped,
  changes_of,
  claim,
  is_finished,
  write_config,
)

log = logging.getLogger(__name__)


@user_errors()
def tasks_of(settings: RunSettings) -> dict[str, RunSettings]:
  """The settings of every task that a task stands for, each as for a run of that task alone.

  Args:
    settings: settings whose task stands for several, such as 'vtab/all', or for itself.

  Returns:
    Settings by task. The suite's settings for a task are in its budget, and in the learning rates
    of `training` and `finetune`.

  Raises:
    UserError: the suite's settings for a task are wrong.
  """
  by_task = settings.suite.settings
  check_settings(by_task, settings.task, 'suite.settings')
  found = {}
  for name in expand(settings.task):
    own = settings_of(by_task, name)
    fields: dict[str, Any] = {'budget': own['budget']} if 'budget' in own else {}
    if (rate := own.get('learning_rate')) is not None:
      for section in ('training', 'finetune'):
        fields[section] = dataclasses.replace(getattr(settings, section), learning_rate=rate)
    found[name] = dataclasses.replace(settings, task=name, suite=SuiteSettings(), **fields)
  return found


def run(
  config: ml_collections.ConfigDict | RunSettings,
  workdir: str,
  stop: Callable[[], bool] = never,
  runner: Runner = THIS_PROCESS,
  *,
  given: Sequence[str] = (),
) -> Board:
  """Runs, or resumes, all tasks that are ready, and keeps the table up to date.

  Args:
    config: a config whose task stands for several, such as 'vtab/all', or settings.
    workdir: folder for all output; one config each.
    stop: see `experiment.run`; also called before every task.
    runner: executes the runs, and the checks before them.
    given: see `experiment.run`.

  Returns:
    What is done, missing and failed, as in the table.

  Raises:
    UserError, OSError: a wrong field or workdir, one in use, or no task is ready.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  with user_errors():
    workdir = check_path(workdir)
  tasks = tasks_of(settings)
  read = read_by(experiment.stages_of(settings))
  processes.initialize(**dataclasses.asdict(settings.distributed))
  folders = {name: _folder(workdir, name) for name in tasks}
  inside = [part for name in tasks for part in _folder('', name).split(os.sep)]
  board = Board(settings.task, tuple(tasks))

  def do(job: Callable[..., Any], beginning: str) -> None:
    jobs = {
      name: functools.partial(
        job, tasks[name], folder, f'{beginning} {number} of {len(tasks)}: {name}'
      )
      for number, (name, folder) in enumerate(folders.items(), 1)
      if board.state(name) == 'waiting'
    }
    with contextlib.closing(runner.outcomes(jobs, workdir, stop)) as outcomes:
      for name, outcome in outcomes:
        attempt(board, name, outcome)
        _write(board, workdir)
        jax.clear_caches()  # no other run uses this run's programs, and many tasks pile them up
        gc.collect()  # frees its arrays on the device before the next run

  with contextlib.ExitStack() as stack:
    with user_errors():
      stack.enter_context(claim(workdir, tasks=inside))
      changes_of(settings, workdir, read, list(folders.values()))
    for name, folder in folders.items():
      if is_finished(folder):
        attempt(board, name, functools.partial(experiment.run, tasks[name], folder))
    _list_missing(board, tasks, settings.suite.prepare)
    _write(board, workdir)
    if board.waiting:
      warn_of_unread(settings, read, given)
    do(_rehearse, 'Checking task')
    if not board.results and not board.waiting:
      raise UserError(
        f'None of the {len(tasks)} tasks of {settings.task} can run; {workdir}/report.html says '
        'what each of them needs.'
      )
    if meshes.primary():
      write_config(settings, workdir)
    do(_run, 'Task')
  return board


def _run(
  settings: RunSettings, folder: str, title: str, stop: Callable[[], bool]
) -> dict[str, Any]:
  """Runs a task."""
  log.info(title)
  return experiment.run(settings, folder, stop, given=None)


@user_errors()
def _rehearse(settings: RunSettings, folder: str, title: str, stop: Callable[[], bool]) -> None:
  """Checks what a task needs; its arrays are freed at the end.

  A task that another process is running has been checked there.
  """
  del stop
  log.info(title)
  try:
    stages = experiment.stages_of(settings)
    with claimed(folder, stages):
      prepared(settings, stages, folder)
  except InUseError as error:
    if jax.process_count() > 1:
      raise
    log.info('%s', error)


def attempt(board: Board, name: str, job: Callable[[], dict[str, Any] | None]) -> None:
  """Records the result of a task's job, if it has one, or its error in a sentence.

  The log has the traceback of a bug, and with `--debug` that of any error.

  Raises:
    Stopped: the job was asked to stop.
    Exception: its error, if other processes may be waiting for this one.
  """
  try:
    result = job()
  except Stopped:
    raise
  except Exception as error:
    if jax.process_count() > 1:
      raise
    board.failed[name], is_shown = sentence(error), log.isEnabledFor(logging.DEBUG)
    if not is_mistake(error):
      board.failed[name], is_shown = f'{type(error).__name__}: {first_line(error)}. {BUG}', True
    log.warning('%s failed: %s', name, board.failed[name], exc_info=is_shown)
  else:
    if result is not None:
      board.results[name] = result


def missing(settings: RunSettings, prepare: bool) -> str | None:
  """What the data of a task lacks.

  Args:
    settings: the settings of a single task.
    prepare: whether to download what can be downloaded first.

  Returns:
    What is missing and how to get it; None if everything is ready.
  """
  try:
    task = find(settings.task, settings.data)
    if prepare:
      task.open('train')
    return task.missing()
  except (ValueError, OSError, ImportError) as error:
    return sentence(error)


def summary(board: Board, workdir: str) -> str:
  """The text that the command line prints at the end."""
  methods = scoreboard.methods_of(board)
  published = [method for method in methods if method.name == 'GLoRA'][:1]
  shown = [method for method in methods if scoreboard.is_ours(method)] + published
  states = [board.state(name) for name in board.tasks]
  counts = ', '.join(f'{states.count(state)} {state}' for state in ('done', 'failed', 'not ready'))
  lines = [
    str(scoreboard.accuracies(shown, scoreboard.scores(board, shown))),
    '',
    *(f'{name} failed: {sentence}' for name, sentence in board.failed.items()),
    *filter(None, [scoreboard.tell_other_images(board)]),
    f'{counts} of {len(board.tasks)} tasks. Page: {workdir}/report.html',
  ]
  return '\n'.join(lines)


def _folder(workdir: str, task: str) -> str:
  """The folder of a task's run, 'vtab/cifar100' in 'WORKDIR/cifar100'."""
  return os.path.join(workdir, *task.split('/')[1:])


def _list_missing(board: Board, tasks: dict[str, RunSettings], prepare: bool) -> None:
  """Records what the waiting tasks lack."""
  with meshes.primary_first('suite/prepare'):
    for name in board.waiting:
      if lacking := missing(tasks[name], prepare):
        board.missing[name] = lacking
        log.info('%s is not ready: %s', name, lacking)


def _write(board: Board, workdir: str) -> None:
  if not meshes.primary():
    return
  pages = {name: os.path.join(_folder('', name), page.NAME) for name in board.results}
  written = {name: path for name, path in pages.items() if os.path.exists(f'{workdir}/{path}')}
  scoreboard.write(board, workdir, written)
