"""The runs of a suite: tasks x structures x budgets x seeds, and those that choose learning rates.

A run is a cell of this grid: its structure, its settings, which are those of an ordinary run, and
its folder in the suite's workdir.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from glora_jax.vision.data.catalog import expand
from glora_jax.vision.reports.table import Cell
from glora_jax.vision.runs.config import settings_by_task
from glora_jax.vision.runs.settings import (
  CHOOSING_SEED,
  FOUND,
  SEARCH,
  RunSettings,
  SuiteSettings,
)
from glora_jax.vision.runs.stages.allocation import head_recipe
from glora_jax.vision.runs.terminal import user_errors
from glora_jax.vision.structure_names import file_name

# Of the supernet's learning rate, for finetuning a searched structure if the config has no rate.
FINETUNING_SHARE = 0.5


class Run(NamedTuple):
  """A run of a suite.

  Attributes:
    cell: its place in the grid.
    settings: its config; a run of it alone, in the same folder, is the same run.
  """

  cell: Cell
  settings: RunSettings


@user_errors()
def runs_of(
  settings: RunSettings, chosen: Mapping[tuple[str, str], float] | None = None
) -> dict[str, Run]:
  """All runs by their folders in the workdir: those that try learning rates, then the others.

  A structure of `suite.structures` is trained without baselines. All of them get the same number of
  epochs: `training.epochs` includes the finetuning of a search, and the head and the gradient of an
  allocation.

  A run that tries a rate is not tested, and has a seed that no tested run has. If there are several
  budgets, it has the largest. A rate of the suite replaces `training.learning_rate`, and
  `finetune.learning_rate` keeps its ratio to it.

  Args:
    settings: the suite's settings.
    chosen: the learning rates that were chosen from `suite.rates`, by task and structure.

  Raises:
    UserError: a field is wrong, or does not fit one of the structures.

  Example:
    >>> suite = SuiteSettings(structures=('bitfit', 'search'), budgets=(900, 5000), seeds=2)
    >>> list(runs_of(RunSettings(suite=suite)))  # doctest: +NORMALIZE_WHITESPACE
    ['bitfit/42', 'bitfit/43', 'search-900/42', 'search-900/43', 'search-5000/42', 'search-5000/43']
    >>> suite = SuiteSettings(structures=('lora:2', 'bitfit'), rates=(1e-3, 4e-3), rate={'lora': 1})
    >>> list(runs_of(RunSettings(suite=suite)))
    ['bitfit/rate-0.001', 'bitfit/rate-0.004', 'lora:2/42', 'bitfit/42']
  """
  suite, trials, tested = settings.suite, {}, {}
  for task, own in _tasks_of(settings).items():
    for name in suite.structures or ('',):  # the structure of the config, with its baselines
      structure = name or own.structure
      budgets = (suite.budgets if structure in FOUND else ()) or (None,)
      given = suite.rate_of(structure)
      for rate in suite.rates if given is None else ():
        cell = Cell(task, name, budgets[-1], own.seed + CHOOSING_SEED, rate)
        path = _path(settings, task, file_name(structure), f'rate-{rate:g}')
        trials[path] = Run(cell, _settings_of(own, cell, rate))
      rate = given or (chosen or {}).get((task, name))
      for budget, number in itertools.product(budgets, range(suite.seeds)):
        cell = Cell(task, name, budget, own.seed + number)
        folder = file_name(structure) if budget is None else f'{structure}-{budget}'
        path = _path(settings, task, *((folder, str(cell.seed)) if settings.is_grid else ()))
        tested[path] = Run(cell, _settings_of(own, cell, rate))
  return {**trials, **tested}


def _tasks_of(settings: RunSettings) -> dict[str, RunSettings]:
  """The settings of every task, with the budget and the learning rate for it."""
  found, suite = {}, dataclasses.replace(settings.suite, settings={})
  by_task = settings_by_task(settings.suite.settings, settings.task, 'suite.settings')
  has_rate = any(map(suite.rate_of, suite.structures or (settings.structure,)))
  replacing = {
    'learning_rate': 'suite.rates' if suite.rates else has_rate and 'suite.rate',
    'budget': suite.budgets and 'suite.budgets',
  }
  for name, own in by_task.items():
    try:
      for field, value in {**own.get('training', {}), **own}.items():
        if other := replacing.get(field):
          raise ValueError(
            f'{field}={value} has no effect, because {other} replaces it; leave one of the two out.'
          )
      found[name] = _replace(settings, {**own, 'task': name, 'suite': suite})
    except (TypeError, ValueError) as error:
      raise ValueError(f'suite.settings of {name}: {error}') from error
  return found


def _settings_of(own: RunSettings, cell: Cell, rate: float | None) -> RunSettings:
  """The settings of a run, from those of its task."""
  structure, budget = cell.structure or own.structure, own.budget
  if cell.structure and structure not in FOUND:
    budget = None
  if cell.rate is not None and own.protocol == 'paper':
    raise ValueError(
      "suite.rates needs validation images that are not trained on, but protocol='paper' trains on "
      'them; give training.learning_rate.'
    )
  fields: dict[str, Any] = {
    'structure': structure,
    'presets': None if cell.structure else own.presets,
    'budget': budget if cell.budget is None else cell.budget,
    'seed': cell.seed,
    'suite': SuiteSettings(),
    'training': {},
  }
  if cell.structure == SEARCH and own.finetunes:
    epochs = own.training.epochs - own.finetune.epochs
    if epochs < 1:
      raise ValueError(
        f'finetune.epochs={own.finetune.epochs} must be below training.epochs='
        f'{own.training.epochs}: with suite.structures, the epochs of a search include its '
        'finetuning.'
      )
    fields['training']['epochs'] = epochs
  if rate is not None:
    training, finetuning = own.training.learning_rate, own.finetune.learning_rate
    share = FINETUNING_SHARE if finetuning is None else finetuning / training
    fields['training']['learning_rate'] = rate
    fields['finetune'] = {'learning_rate': share * rate}
    # The same for all rates, which therefore share a gradient.
    fields['allocation'] = {'head_rate': head_recipe(own).learning_rate}
  if cell.rate is not None:
    fields.update(test=False, train_on='train', presets=None, report={'result': ()})
  return _replace(own, fields)


def _replace(settings: Any, fields: Mapping[str, Any]) -> Any:
  """Settings with other values; the values of a nested section are a mapping."""
  values = {
    name: _replace(getattr(settings, name), value) if isinstance(value, Mapping) else value
    for name, value in fields.items()
  }
  return dataclasses.replace(settings, **values)


def _path(settings: RunSettings, task: str, *parts: str) -> str:
  """A run's folder: 'vtab/cifar100' of 'vtab/all' is in 'cifar100'."""
  of_task = task.split('/')[1:] if len(expand(settings.task)) > 1 else []
  return '/'.join([*of_task, *parts])
