"""Several tasks of a benchmark, each a run of its own in a folder of the workdir, and one table of all of them.

    workdir/  config.json  table.md  table.csv  table.png  compiled/  cifar100/ (a run)  caltech101/ (a run)  ...

What is ready runs; what is not is listed with what is missing, and so is a task that fails, and the others go on. The table is made of the
runs' `result.json` alone, so the same command resumes: finished runs are read, an interrupted one goes on, a failed one is tried again.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from glora_jax import mesh as meshes
from glora_jax.data.catalog import expand, find
from glora_jax.method import genomes
from glora_jax.reports import scoreboard, suite_report
from glora_jax.reports.scoreboard import Board
from glora_jax.runs import experiment
from glora_jax.runs.config import check_config, data_source
from glora_jax.runs.workdir import Stopped, claim, claim_workdir

SETTINGS = ('budget', 'learning_rate')
FAILURES = (
  ValueError,
  OSError,
  ImportError,
  RuntimeError,
)  # of a task; anything else is a fault of the program

log = logging.getLogger(__name__)


def with_settings(config: ml_collections.ConfigDict, path: str | None) -> ml_collections.ConfigDict:
  """The config with budgets and learning rates by task from a JSON file, as `{"cifar100": {"budget": 860000, "learning_rate": 1e-4}}`.

  A task is named without its benchmark: 'cifar100', 'food101/4/0'. The beginning of several names, 'food101' or 'food101/4', stands for all
  of them; where more than one fits, the longest counts. What is not given stays as in the config.

  Args:
    config: to be changed; the content of the file becomes part of it.
    path: of the file; None changes nothing.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds something else; the sentence says what.
  """
  if path is None:
    return config
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"There is no file '{path}'; settings= takes a JSON file of budgets and learning rates by task."
    )
  with open(path) as file:
    try:
      settings = json.load(file)
    except ValueError as error:
      raise ValueError(f'{path} is no JSON ({error}).') from error
  check_settings(settings, config.task, path)
  if expand(config.task) == [config.task]:
    _choose(config, settings)
  else:
    config.suite.settings = ml_collections.ConfigDict(settings)
  return config


def check_settings(settings: Any, task: str, where: str) -> None:
  """Raises ValueError for the first name, type or value in settings that cannot be; `where` begins the sentence."""
  kind = task.partition('/')[0]
  known = [
    name.partition('/')[2] for name in dict.fromkeys((*expand(f'{kind}/all'), *expand(task)))
  ]
  if not isinstance(settings, Mapping):
    raise ValueError(
      f'{where} holds a {type(settings).__name__}; an object of tasks is expected, as {{"{known[0]}": {{"budget": 100000}}}}.'
    )
  for name, chosen in settings.items():
    if not any(_stands_for(name, one) for one in known):
      shown = known if len(known) < 30 else dict.fromkeys(one.split('/')[0] for one in known)
      raise ValueError(f"{where}: '{name}' is no task of {kind}; there are {', '.join(shown)}.")
    if not isinstance(chosen, Mapping):
      raise ValueError(
        f"{where}: '{name}' has {chosen!r}; an object with {' or '.join(SETTINGS)} is expected."
      )
    for field, value in chosen.items():
      if field not in SETTINGS:
        raise ValueError(
          f"{where}: '{name}' has '{field}'; only {' and '.join(SETTINGS)} can be given for each task."
        )
      if field == 'budget':
        try:
          genomes.check_budget(value)
        except ValueError as error:
          raise ValueError(f"{where}: '{name}': {error}") from error
      elif (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf
      ):
        raise ValueError(f"{where}: '{name}': learning_rate={value!r} must be a number above 0.")


def _stands_for(name, task):
  return task == name or task.startswith(f'{name}/')


def task_configs(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
  """The config of every task that a config's task stands for, by name: what a run of that task alone would have.

  The settings of a task have gone into its `budget`, and into the learning rates of `supernet` and `finetune`.

  Raises:
    ValueError: a field that cannot be, those of `config.suite.settings` included.
  """
  check_config(config)
  settings = config.suite.settings.to_dict()
  check_settings(settings, config.task, 'suite.settings')
  configs = {}
  for name in expand(config.task):
    own = configs[name] = config.copy_and_resolve_references()
    own.task, own.suite = name, ml_collections.ConfigDict({'settings': {}, 'prepare': False})
    _choose(own, settings)
  return configs


def _choose(config, settings):
  """Gives the config of one task what the settings say of it."""
  name = config.task.partition('/')[2]
  for key in sorted((key for key in settings if _stands_for(key, name)), key=len):
    config.budget = settings[key].get('budget', config.budget)
    for recipe in (config.supernet, config.finetune):
      recipe.learning_rate = float(settings[key].get('learning_rate', recipe.learning_rate))


def run(
  config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool] = lambda: False
) -> Board:
  """Runs, or resumes, all tasks that are ready, and keeps the table up to date.

  Args:
    config: whose task stands for several, as 'vtab/all'.
    workdir: folder for everything that is written; one config each.
    stop: see `experiment.run`; also asked before every task.

  Returns:
    What is done, missing and failed, as the table has it.

  Raises:
    ValueError, OSError: a wrong field or workdir, one in use, or no task is ready.
    Stopped: `stop` said so.
  """
  configs = task_configs(config)
  meshes.initialize(**config.distributed)
  with claim(workdir) if meshes.primary() else contextlib.nullcontext():
    claim_workdir(config, workdir)
    board = Board(config.task, tuple(configs))
    folder = lambda name: os.path.join(workdir, *name.split('/')[1:])
    finished = [
      name for name in configs if os.path.exists(os.path.join(folder(name), 'result.json'))
    ]
    for name in finished:
      attempt(board, name, functools.partial(experiment.run, configs[name], folder(name)))
    with meshes.primary_first('suite/prepare'):
      for name in board.waiting:
        if lacking := missing(configs[name], folder(name), config.suite.prepare):
          board.missing[name] = lacking
          log.info('%s is not ready: %s', name, lacking)
    _write(board, workdir)
    if not board.results and not board.waiting:
      raise ValueError(
        f'None of the {len(configs)} tasks of {config.task} can run; {workdir}/table.md says what each of them lacks.'
      )
    for name in board.waiting:
      if meshes.on_any(stop()):
        raise Stopped(f'before the task {name}', workdir)
      log.info('Task %d of %d: %s', board.tasks.index(name) + 1, len(board.tasks), name)
      attempt(board, name, functools.partial(experiment.run, configs[name], folder(name), stop))
      _write(board, workdir)
      jax.clear_caches()  # a run's programs serve no other run; many tasks would pile them up
      gc.collect()  # and its arrays leave the device before the next one's come
  return board


def attempt(board: Board, name: str, job: Callable[[], dict[str, Any]]) -> None:
  """Notes the result of a task's job, or the sentence that it failed with; a stop goes on its way."""
  try:
    board.results[name] = job()
  except Stopped:
    raise
  except FAILURES as error:
    if jax.process_count() > 1:  # the others may be waiting for this one amid the task
      raise
    board.failed[name] = str(error)
    log.warning('%s failed: %s', name, error)


def missing(config: ml_collections.ConfigDict, workdir: str, prepare: bool) -> str | None:
  """What the data of a config's task lacks and how to get it, or None; with `prepare`, what can be fetched is fetched before."""
  try:
    task = find(config.task, data_source(config), workdir)
    if prepare:
      task.open('train')
    return task.missing()
  except FAILURES as error:
    return str(error)


def _write(board, workdir):
  if meshes.primary():
    suite_report.write(board, workdir)


def keep_compiled(workdir: str) -> None:
  """From now on JAX keeps in the workdir what it compiles, unless it keeps it elsewhere: for tasks of equal shapes, and after a restart."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', os.path.join(workdir, 'compiled'))


def summary(board: Board, workdir: str) -> str:
  """What the command line prints at the end."""
  ours = [row for row in scoreboard.own_rows(board) if row.cells]
  best = [row for row in scoreboard.published_rows(board.tasks) if row.method == 'GLoRA'][:1]
  counts = [
    f'{sum(board.state(name) == state for name in board.tasks)} {state}'
    for state in ('done', 'failed', 'not ready')
  ]
  failures = [f'{name} failed: {sentence}' for name, sentence in board.failed.items()]
  return '\n'.join(
    [
      suite_report.table(board, ours + best),
      '',
      *failures,
      f'{", ".join(counts)} of {len(board.tasks)} tasks. {workdir}/table.md has the published rows and what is missing.',
    ]
  )
