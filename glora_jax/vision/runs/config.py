"""Configs: the fields of `RunSettings` as an `ml_collections.ConfigDict` that can be changed.

A config file returns what `default_config` made, with its values, and the command line changes
fields. `check_config` turns it into `RunSettings` once, before anything starts; everything else
uses these.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import os
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import ml_collections
from absl import flags
from ml_collections.config_flags import tuple_parser

from glora_jax.checks import kinds_of, listed, shown, validate
from glora_jax.errors import UserError
from glora_jax.files import load_json
from glora_jax.vision.data.catalog import expand
from glora_jax.vision.models.weights import EMBEDDED
from glora_jax.vision.runs.monitoring import function_of_user
from glora_jax.vision.runs.settings import RunSettings


def default_config() -> ml_collections.ConfigDict:
  """The defaults of `RunSettings` as a config whose fields can be changed.

  It accepts any value; `check_config` names all wrong ones at once.

  Example:
    >>> config = default_config()
    >>> config.training.epochs = 100
    >>> check_config(config).training.epochs
    100
  """
  return ml_collections.ConfigDict(dataclasses.asdict(RunSettings()), type_safe=False)


def check_config(config: ml_collections.ConfigDict | RunSettings) -> RunSettings:
  """Reads a config.

  Args:
    config: a config with all fields of `default_config`; settings are returned as they are.

  Returns:
    Its values, by section.

  Raises:
    TypeError: the config is neither.
    UserError: fields are unknown, missing or have wrong values: a line for each.
    ImportError: a field needs a package that is not installed.
  """
  if isinstance(config, RunSettings):
    return config
  if not isinstance(config, ml_collections.ConfigDict):
    raise TypeError(
      f'config is a {type(config).__name__}; pass the ConfigDict that config.default_config() '
      'makes, with your values.'
    )
  settings = read(RunSettings, config.to_dict())
  if settings.watch.tensorboard and importlib.util.find_spec('tensorboardX') is None:
    raise ImportError(
      'watch.tensorboard=True needs tensorboardX, which is not installed; pip install tensorboardX.'
    )
  if settings.watch.call is not None:
    with function_of_user(settings.watch.call):
      pass
  return settings


def read(section: type, values: Mapping[str, Any], prefix: str = '') -> Any:
  """Settings from nested values.

  Args:
    section: class of the settings.
    values: values of its fields by name; the values of a nested section are a mapping.
    prefix: of the dotted names in the error message.

  Raises:
    UserError: a field is missing or unknown, or a value has another type or is not allowed; a line
      for each mistake.
  """
  kinds, known = kinds_of(section), {}
  mistakes = [
    f'{prefix}{name} is missing; start from config.default_config().'
    for name in kinds
    if name not in values
  ]
  for name, value in values.items():
    dotted = f'{prefix}{name}'
    if name not in kinds:
      mistakes.append(f'{dotted}={shown(value)} is unknown; remove it, or correct its name.')
    elif not dataclasses.is_dataclass(kinds[name]):
      known[name] = _parse(value, kinds[name])
    else:
      try:
        known[name] = read(kinds[name], validate(value, dict, dotted), f'{dotted}.')
      except (TypeError, UserError) as error:
        mistakes.append(str(error))
  try:
    settings = section(**known)  # which checks its fields; those that are wrong have defaults here
    if not mistakes:
      return settings
  except (TypeError, ValueError) as error:
    mistakes += [prefix + line for line in str(error).splitlines()]
  raise UserError('\n'.join(mistakes))


class Text(str):
  """The text of a field on the command line; `read` turns it into a value of the field's type."""


_PARSERS = {  # by the type of a field; all other types are texts
  bool: flags.BooleanParser().parse,
  int: ast.literal_eval,
  float: ast.literal_eval,
  tuple: tuple_parser.TupleParser().parse,
  Any: ast.literal_eval,
}


def _parse(value: Any, kind: Any) -> Any:
  """The value that a text stands for; other values, and texts of another type, stay unchanged.

  Args:
    value: a value, perhaps a `Text`, or values by name.
    kind: the annotation of its field.
  """
  parts = typing.get_args(kind)
  if isinstance(value, Mapping) and parts:
    return {name: _parse(item, parts[1]) for name, item in value.items()}
  if not isinstance(value, Text):
    return value
  if value == 'None':
    return None
  origins = [typing.get_origin(each) or each for each in (kind, *parts)]
  parser = next((_PARSERS[each] for each in origins if each in _PARSERS), str)
  try:
    return parser(value)
  except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):  # of `literal_eval`
    return str(value)  # which `validate` rejects


def parse_arguments(
  text: str, defaults: dict[str, Any], choices: Sequence[str] | None = None
) -> tuple[str, dict[str, Any]]:
  """Splits the part of `--config FILE:ARGUMENTS` after the colon, 'cifar100,source=noah,rank=4'.

  Args:
    text: an optional value without a name, which may be a path with commas, then any number of
      `name=value`.
    defaults: the known names with their default values, or with a type for a default of None. A
      value gets the type of its default.
    choices: allowed first values, '' for none; None allows any.

  Returns:
    (the first value, or ''; all names with their values).

  Raises:
    ValueError: an unknown or repeated name, a value of another type, or a first value that is not
      among the choices.

  Example:
    >>> parse_arguments('cifar100,rank=4', {'source': str, 'rank': 8})
    ('cifar100', {'source': None, 'rank': 4})
    >>> parse_arguments('tiny=True', {'tiny': False})
    ('', {'tiny': True})
  """
  first, *parts = re.split(r'(?:^|,)(?=\w+=)', text)
  if choices is not None and first not in choices:
    expected = ', '.join([*filter(None, choices), *(f'{name}=VALUE' for name in defaults)])
    raise ValueError(f'{shown(first)} is not an argument of this config; it accepts {expected}.')
  given: dict[str, Any] = {}
  for part in parts:
    name, _, value = part.partition('=')
    if name not in defaults or name in given:
      raise ValueError(
        f"{shown(part)} in the config's arguments is unknown or repeated; give NAME=VALUE, with "
        f'the names {", ".join(defaults)}, other fields as --config.FIELD=VALUE (--help_config).'
      )
    default = defaults[name]
    kind = default if isinstance(default, type) else type(default)
    try:
      given[name] = validate(_parse(Text(value), kind), kind, name)
    except (TypeError, ValueError) as error:
      raise ValueError(f"In the config's arguments, {error}") from error
  others = {name: None if isinstance(x, type) else x for name, x in defaults.items()}
  return first, {**others, **given}


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Shrinks a config until it runs in seconds; its results mean nothing.

  Few epochs, one generation of four structures, the backbone of the package, no cache of decoded
  images. Task, images and structure stay.

  Args:
    config: a config, which is changed.

  Returns:
    The same config.

  Example:
    >>> check_config(shrink(default_config())).training.epochs
    4
  """
  config.model.weights = EMBEDDED
  config.data.cache = None
  config.training.update(epochs=4, warmup=0.0)  # head and gradient count as two
  config.allocation.head_epochs = 1
  config.search.update(population=4, generations=1, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup=0.0)
  return config


def with_settings(config: ml_collections.ConfigDict, path: str | None) -> ml_collections.ConfigDict:
  """A config with budgets and learning rates by task from a file.

  The file is JSON, `{"cifar100": {"budget": 860000, "learning_rate": 1e-4}}`. A task is named
  without its benchmark: 'cifar100', 'food101/4/0'. 'food101' or 'food101/4' stands for all tasks
  below it; the longest name that fits counts. All other fields stay unchanged.

  Args:
    config: the config to change; the content of the file becomes part of it.
    path: path of the file; None changes nothing.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file is invalid; the message names the entry.
  """
  if path is None:
    return config
  path = os.path.expanduser(path)
  given = load_json(path, 'settings= needs JSON')
  found = settings_by_task(given, config.task, path)
  if list(found) == [config.task]:
    config.update(found[config.task])
  else:
    config.suite.settings = ml_collections.ConfigDict(given)
  return config


# The settings of a single task: names in the file, and the fields that they stand for.
_OF_TASKS = {
  'budget': ('budget',),
  'learning_rate': ('training.learning_rate', 'finetune.learning_rate'),
}


def settings_by_task(given: Any, task: str, where: str) -> dict[str, dict[str, Any]]:
  """The fields, by section, that are given for every task that a name stands for.

  Args:
    given: budget and learning rate by task, named as in `with_settings`.
    task: a config's task, whose benchmark the names belong to.
    where: beginning of an error message: path of the file, or name of the config's field.

  Raises:
    ValueError: a name is wrong.

  Example:
    >>> given = {'food101': {'budget': 900}, 'food101/4': {'budget': 500}}
    >>> settings_by_task(given, 'fewshot/food101/4/0', 'F')
    {'fewshot/food101/4/0': {'budget': 500}}
  """
  benchmark = task.partition('/')[0]
  found = {each: {} for each in expand(task)}
  known = {*found, *expand(f'{benchmark}/all')}
  given = validate(given, Mapping[str, Mapping], where)
  for name, own in sorted(given.items(), key=lambda item: len(item[0])):  # the longest name counts
    below = {each for each in known if f'{each}/'.startswith(f'{benchmark}/{name}/')}
    if not below:
      names = sorted(each.partition('/')[2] for each in known)
      near = difflib.get_close_matches(name, names) or names
      raise ValueError(f"{where}: '{name}' is not a task of {benchmark}; give {listed(near)}.")
    for field in own.keys() - _OF_TASKS.keys():
      raise ValueError(
        f'{where}.{name}.{field}={shown(own[field])} is unknown; give {listed(_OF_TASKS)}.'
      )
    for each in below & found.keys():
      found[each] |= {path: own[field] for field in own for path in _OF_TASKS[field]}
  return {
    each: flax.traverse_util.unflatten_dict(fields, sep='.') for each, fields in found.items()
  }
