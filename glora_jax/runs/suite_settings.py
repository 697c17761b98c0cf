"""Budgets and learning rates by task, as a suite takes them from a file or from its config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from glora_jax.data.catalog import expand
from glora_jax.files import first_line
from glora_jax.limits import plain, shown
from glora_jax.method import draws

FIELDS = ('budget', 'learning_rate')
MOST_NAMES = 30  # that a sentence lists in full


def with_settings(config: ml_collections.ConfigDict, path: str | None) -> ml_collections.ConfigDict:
  """A config with the budgets and learning rates of a file.

  The file is JSON, `{"cifar100": {"budget": 860000, "learning_rate": 1e-4}}`. A task is named
  without its benchmark: 'cifar100', 'food101/4/0'. The beginning of several names, 'food101' or
  'food101/4', stands for all of them; where more than one fits, the longest counts. What is not
  given stays as in the config.

  Args:
    config: the config to be changed; the content of the file becomes part of it.
    path: path of the file; None changes nothing.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it holds something else; the sentence says what.
  """
  if path is None:
    return config
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"There is no file '{path}'; settings= takes a JSON file of budgets and learning rates by "
      'task.'
    )
  with open(path, encoding='utf-8') as file:
    try:
      settings = json.load(file)
    except (ValueError, RecursionError) as error:
      raise ValueError(f'{path} is no JSON ({first_line(error)}).') from error
  check_settings(settings, config.task, path)
  if expand(config.task) == [config.task]:
    apply_settings(config, settings)
  else:
    config.suite.settings = ml_collections.ConfigDict(settings)
  return config


def check_settings(settings: Any, task: str, where: str) -> None:
  """Checks settings by task.

  Args:
    settings: task's name -> its budget and learning rate.
    task: a config's task, which says of which benchmark the names are.
    where: the beginning of the sentence: path of the file, or name of the config's field.

  Raises:
    ValueError: the first name, type or value that cannot be.
  """
  benchmark = task.partition('/')[0]
  names = dict.fromkeys((*expand(f'{benchmark}/all'), *expand(task)))
  known = [name.partition('/')[2] for name in names]
  if not isinstance(settings, Mapping):
    raise ValueError(
      f'{where} holds a {type(settings).__name__}; an object of tasks is expected, as '
      f'{{"{known[0]}": {{"budget": 100000}}}}.'
    )
  for name, chosen in settings.items():
    if not any(_stands_for(name, task) for task in known):
      listed = known
      if len(known) >= MOST_NAMES:
        listed = dict.fromkeys(name.split('/')[0] for name in known)
      raise ValueError(
        f"{where}: '{name}' is no task of {benchmark}; there are {', '.join(listed)}."
      )
    _check_chosen(chosen, f"{where}: '{name}'")


def apply_settings(config: ml_collections.ConfigDict, settings: Mapping[str, Any]) -> None:
  """Gives the config of a single task the budget and learning rate that settings have for it."""
  task = config.task.partition('/')[2]
  for name in sorted((name for name in settings if _stands_for(name, task)), key=len):
    config.budget = plain(settings[name].get('budget', config.budget))
    for recipe in (config.supernet, config.finetune, config.training):
      rate = settings[name].get('learning_rate', recipe.learning_rate)
      recipe.learning_rate = float(rate)


def _stands_for(name: str, task: str) -> bool:
  return task == name or task.startswith(f'{name}/')


def _check_chosen(chosen: Any, where: str) -> None:
  """Checks the settings of one name."""
  if not isinstance(chosen, Mapping):
    raise ValueError(f'{where} has {chosen!r}; an object with {" or ".join(FIELDS)} is expected.')
  for field, value in chosen.items():
    if field not in FIELDS:
      raise ValueError(
        f"{where} has '{field}'; only {' and '.join(FIELDS)} can be given for each task."
      )
    if field == 'budget':
      try:
        draws.check_budget(value)
      except ValueError as error:
        raise ValueError(f'{where}: {error}') from error
    elif not _is_positive(value):
      raise ValueError(
        f'{where}: learning_rate={shown(value)} must be a number above 0, and at most '
        f'{sys.float_info.max:.2g}.'
      )


def _is_positive(value: Any) -> bool:
  value = plain(value)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and 0 < value <= sys.float_info.max  # a whole number may be beyond it
