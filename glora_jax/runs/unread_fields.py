"""Fields of a config that are given and do nothing in its job, which says so before it begins."""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterable

from glora_jax.data.catalog import expand
from glora_jax.limits import shown
from glora_jax.runs.config import RunSettings
from glora_jax.runs.sections import has_budget
from glora_jax.runs.used_fields import (
  FREE_FIELDS,
  OF_METHODS,
  is_among,
  stages_of,
  used_by,
)

log = logging.getLogger(__name__)

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
