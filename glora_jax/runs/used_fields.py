"""Which stage of a job uses which fields of its config, and which stages have left anything yet.

A workdir belongs to a config as far as its stages have used it: what no stage has read may still be
corrected. The stages of a job stand in their order, and each depends on those before it, so all
fields up to the last stage that has left something are used.
"""

from __future__ import annotations

import itertools
import logging
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from glora_jax.data.catalog import expand
from glora_jax.files import Path, is_partial
from glora_jax.limits import shown
from glora_jax.records import FORMAT_FILE
from glora_jax.runs.config import RunSettings
from glora_jax.runs.sections import GRADIENT, SEARCH, has_budget

log = logging.getLogger(__name__)

# Fields that change no result: a run may go on with other values of them. The digest of a config in
# `result.json` leaves them out, so a field that moves here changes digests.
FREE_FIELDS = (
  'checkpoint_epochs',
  'data.cache',
  'data.workers',
  'distributed.',
  'mesh.',
  'suite.prepare',
  'watch.',
)

# What preparing reads, and with it every stage.
COMMON_FIELDS = (
  'data.',
  'job',
  'model.',
  'protocol',
  'seed',
  'space.',
  'structure',
  'suite.settings.',
  'task',
)

_LOSS = ('augment.', 'consistency.')


class Stage(NamedTuple):
  """A stage as its workdir shows it.

  Attributes:
    name: its name.
    traces: what it leaves in the workdir: files, or folders of training states.
    fields: what it is the first to use; those that end in a dot stand for whole sections.
  """

  name: str
  traces: tuple[str, ...]
  fields: tuple[str, ...]


# What a run leaves at its end, when all of its stages are over.
_TEST = Stage('test', ('test_list.json', 'result.json'), ())

SEARCHED = (
  Stage('head', ('head',), ('allocation.', 'presets', 'supernet.', *_LOSS)),
  Stage('structure', ('structure',), ('budget',)),
  Stage('supernet', ('supernet',), ('sampling.', 'supernet.', *_LOSS)),
  Stage('baselines', ('baselines',), ('budget', 'presets')),
  Stage('search', ('search',), ('budget', 'search.')),
  Stage('finetune', ('finetune', 'finetune_choice', 'finetune_epochs.json'), ('finetune.',)),
  _TEST,
)
GIVEN = (
  Stage('head', ('head',), ('allocation.', 'training.', *_LOSS)),
  Stage('structure', ('structure',), ('budget',)),
  Stage('baselines', ('baselines',), ('presets', 'training.', *_LOSS)),
  Stage('training', ('training',), ('training.',)),
  _TEST,
)
COMPARED = (
  Stage(
    'tuning',
    ('tuning', 'rates.json'),
    (
      'allocation.',
      'compare.budgets',
      'compare.methods',
      'compare.rate.',
      'compare.rates',
      'finetune.',
      'sampling.',
      'search.',
      'supernet.',
      *_LOSS,
    ),
  ),
  Stage('training', ('trained',), ('compare.seeds',)),
  _TEST,
)

# Sections that a comparison reads for one of its methods alone.
OF_METHODS: Mapping[str, tuple[str, ...]] = {
  SEARCH: ('finetune.', 'sampling.', 'search.'),
  GRADIENT: ('allocation.',),
}

EVERY_STAGE = (*SEARCHED, *GIVEN, *COMPARED)


def stages_of(config: Mapping[str, Any]) -> tuple[Stage, ...]:
  """The stages of a config's job, in their order.

  Args:
    config: values by dotted name.
  """
  if config.get('job') == 'compare':
    return _compared(_names(config.get('compare.methods', tuple(OF_METHODS))))
  structure = config.get('structure', SEARCH)
  stages = SEARCHED if structure == SEARCH else GIVEN
  lacking = {'finetune'} if config.get('protocol') == 'paper' else set()
  if GRADIENT not in (structure, *_names(config.get('presets', ()))):
    lacking |= {'head', 'structure'} if structure == SEARCH else {'head'}
  return tuple(stage for stage in stages if stage.name not in lacking)


def _names(value: Any) -> Sequence[str]:
  """A list of names; none where a file that somebody has edited says something else."""
  return value if isinstance(value, list | tuple) else ()


def _compared(methods: Sequence[str]) -> tuple[Stage, ...]:
  """The stages of a comparison of some methods."""
  unread = {
    section
    for method, sections in OF_METHODS.items()
    if method not in methods
    for section in sections
  }
  return tuple(
    stage._replace(fields=tuple(field for field in stage.fields if field not in unread))
    for stage in COMPARED
  )


def last_begun(stages: tuple[Stage, ...], workdirs: Iterable[Path]) -> Stage | None:
  """The last stage that has left something in one of the workdirs; None where none has."""
  for stage in reversed(stages):
    paths = itertools.product(workdirs, stage.traces)
    if any(has_content(os.path.join(*path)) for path in paths):
      return stage
  return None


def used_by(stages: tuple[Stage, ...], last: Stage | None) -> tuple[str, ...]:
  """The fields that all stages up to one of them have used; none where that is None."""
  if last is None:
    return ()
  until = stages[: stages.index(last) + 1]
  return COMMON_FIELDS + tuple(field for stage in until for field in stage.fields)


def is_among(name: str, fields: tuple[str, ...]) -> bool:
  """Whether a field, by its dotted name, is one of some fields and sections.

  Example:
    >>> is_among('finetune.epochs', ('budget', 'finetune.')), is_among('budget', ('finetune.',))
    (True, False)
  """
  return any(name == field or (field.endswith('.') and name.startswith(field)) for field in fields)


def has_content(path: str) -> bool:
  """Whether a path is a file, or a folder with a file or with a training state somewhere in it.

  What a kill has left half-written does not count.
  """
  if not os.path.isdir(path):
    return os.path.exists(path)
  for _, folders, files in os.walk(path):
    states = [name for name in folders if name.isdigit()]
    whole = [name for name in files if not is_partial(name) and name != FORMAT_FILE]
    if states or whole:
      return True
    folders[:] = [name for name in folders if 'tmp' not in name]
  return False


# Fields that a run reads and a comparison does not, with what it does in their place.
_OF_RUNS = {
  'checkpoint_epochs': 'a training that is interrupted begins anew',
  'finetune.learning_rate': "a searched subnet is finetuned at half of the search's rate",
  'watch.tensorboard': 'what is trained side by side leaves no metrics',
}

# Fields that say which stages a job has.
_WHICH_STAGES = ('job', 'structure', 'presets', 'protocol', 'compare.methods')


def warn_of_unread(settings: RunSettings) -> None:
  """Warns of every field that has another value than its default, and does nothing.

  Args:
    settings: the config.
  """
  defaults = RunSettings()
  for name, reason in _reasons(settings).items():
    value, default = map(operator.attrgetter(name), (settings, defaults))
    if value != default:
      log.warning('%s=%s does nothing in %s: %s.', name, shown(value), _job(settings), reason)


def _reasons(settings: RunSettings) -> dict[str, str]:
  """Why fields do nothing, by name."""
  reasons = dict(_OF_RUNS) if settings.job == 'compare' else {}
  if len(expand(settings.task)) == 1:
    reasons['suite.settings'] = "it is of a task that stands for several, as 'vtab/all'"
  if (base := settings.mesh.base) != 'sharded':
    reasons['mesh.fsdp'] = f"mesh.base={base!r} keeps the weights whole; give 'sharded'"
  return reasons


def warn_of_unused(settings: RunSettings, given: Iterable[str]) -> None:
  """Warns of fields that somebody gives for this job, and that it does not read.

  A config file gives fields for other structures and modes, too; a command line does not.

  Args:
    settings: the config.
    given: names of fields that the command line gives.
  """
  stages = stages_of({name: operator.attrgetter(name)(settings) for name in _WHICH_STAGES})
  used = (*used_by(stages, stages[-1]), *FREE_FIELDS)
  named, idle = _reasons(settings), _idle(settings)  # the former without their being given, too
  for name in given:
    if name in named:
      continue
    if not is_among(name, used) or name in idle:
      job = _job_without(settings, name)
      log.warning('--config.%s does nothing in %s, which does not read it.', name, job)


def _idle(settings: RunSettings) -> dict[str, str]:
  """Fields of the job's own stages that others make useless, with what they do nothing in."""
  idle = {}
  if settings.job != 'compare':
    return idle
  compare = settings.compare
  if not any(map(has_budget, compare.methods)):
    idle['compare.budgets'] = 'a comparison of methods that fill no budget'
  if all(compare.rate.get(name) is not None for name in compare.methods):
    idle['compare.rates'] = 'a comparison of methods that have a learning rate each'
  return idle


def _job_without(settings: RunSettings, name: str) -> str:
  """What a field does nothing in, with the reason where another job of its kind reads it."""
  if settings.job == 'compare':
    for method, sections in OF_METHODS.items():
      if method not in settings.compare.methods and is_among(name, sections):
        return f"{_job(settings)} without the method '{method}'"
  elif settings.protocol == 'paper' and is_among(name, ('finetune.',)):
    return "a run of protocol='paper'"
  return _idle(settings).get(name, _job(settings))


def _job(settings: RunSettings) -> str:
  if settings.job == 'compare':
    return 'a comparison'
  return f'a run of structure={shown(settings.structure)}'
