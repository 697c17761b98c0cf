"""Methods side by side on one task: presets, full fine-tuning and the search, on equal terms.

All have the same steps, the same tuning and the same seeds. Stages, each with its files in the
workdir, so that the same command resumes: every method's learning rate is chosen on the validation
images, with a seed that the table does not use; every method is trained with every seed, side by
side (`fit`); the search looks in each seed's supernet for a subnet within each budget, which
is finetuned; the list is frozen to disk; the test images are read; table and picture are drawn.
`config.supernet` is the recipe of all; of its epochs a searched subnet spends `finetune.epochs` on
itself, the others on the supernet.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import ml_collections
import numpy as np

from glora_jax import tree
from glora_jax.data.catalog import require_apart
from glora_jax.files import write_json
from glora_jax.method.presets import preset_label
from glora_jax.reports import comparison_page
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import carry_out, never, prepare, read_seconds, rehearse
from glora_jax.runs.origins import Made, current, note_process, recorded_processes, recorded_weights
from glora_jax.runs.run import Candidate, Run
from glora_jax.runs.runners import THIS_PROCESS, Job, Runner, ThisProcess
from glora_jax.runs.sections import GRADIENT, NO_PRESETS
from glora_jax.runs.stages.many_starts import Trial
from glora_jax.runs.stages.methods import (
  TrainedSubnet,
  choose_rate,
  choose_rates,
  measure,
  seeds_of,
  train_method,
)
from glora_jax.runs.stages.results import freeze
from glora_jax.runs.stages.training import ENOUGH_STEPS, is_guessing, share_of_largest_class
from glora_jax.runs.used_fields import warn_of_unread
from glora_jax.runs.workdir import changes_of, claim, claim_workdir, is_finished

log = logging.getLogger(__name__)


class _Data(TypedDict):
  origin: str
  notes: list[str]


class Result(TypedDict):
  """The content of `result.json`."""

  task: str
  data: _Data
  weights: str
  seeds: list[int]
  epochs: int
  finetune_epochs: int
  rates: list[float]
  rate: dict[str, float]
  methods: dict[str, list[dict[str, Any]]]
  seconds: dict[str, float]
  sha256: dict[str, str]


def run(
  config: ml_collections.ConfigDict,
  workdir: str,
  stop: Callable[[], bool] = never,
  runner: Runner = THIS_PROCESS,
) -> dict[str, Any]:
  """Runs, or resumes, a comparison.

  Args:
    config: a config with the fields of `config.default_config` and `job='compare'`.
    workdir: folder for everything that is written; one config each.
    stop: asked before every training and after every generation; where it says True the comparison
      ends, and all that was finished is kept.
    runner: does the methods, each with all of its seeds, and then the test of all of them.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError, OSError: a wrong field, file or workdir, or one in use; the sentence names it.
    Stopped: `stop` asked for it.
  """
  settings = check_config(config)
  if (job := settings.job) != 'compare':
    raise ValueError(f"job={job!r} is no comparison; give job='compare', or call experiment.run.")
  finished = is_finished(workdir)
  if not finished:
    warn_of_unread(settings)
  rest = functools.partial(carry_out, config, workdir, stages=_run_stages, shape=Result)
  if isinstance(runner, ThisProcess) or finished:
    return rest(stop)
  train_methods(config, workdir, stop, runner)
  return _do_alone(runner, rest, workdir, stop)


def _run_stages(run: Run) -> dict[str, Any]:
  settings, compare = run.settings, run.settings.compare
  seeds = seeds_of(settings)
  with run.stage('tuning'):
    rates = choose_rates(run)
  with run.stage('training'):
    rows = {}
    for method in compare.methods:
      trials = [Trial(seed, rates[method]) for seed in seeds]
      rows |= train_method(run, method, trials, compare.budgets, 'trained')
  with run.stage('test'):
    tested = freeze_and_evaluate(run, rows)
  read_off = {name: subnets for name, subnets in rows.items() if name.startswith(GRADIENT)}
  result = {
    'task': run.task.name,
    'data': {'origin': run.task.origin, 'notes': list(run.task.notes)},
    'weights': settings.model.weights,
    **recorded_weights(run.workdir),
    'seeds': seeds,
    'epochs': settings.supernet.epochs,
    'finetune_epochs': settings.finetune.epochs,
    'rates': list(compare.rates),
    'rate': rates,
    'labels': {
      method: preset_label(run.place(method).adapted.spec, method)
      for method in compare.methods
      if method not in NO_PRESETS
    },
    'allocation_epochs': {
      name: [subnet.spared_epochs for subnet in subnets] for name, subnets in read_off.items()
    },
    'structures': {
      name: [subnet.genome.tolist() for subnet in subnets] for name, subnets in read_off.items()
    },
    'methods': tested,
    'diverged': _by_seed(seeds, rows, tested, _diverged),
    'learned_nothing': _by_seed(seeds, rows, tested, _teller_of_guessing(run)),
    'seconds': dict(run.seconds),
  }
  with run.stage('report'):
    spec = run.place(GRADIENT).adapted.spec
    comparison_page.write(run.workdir, result, spec, recorded_processes(run.workdir))
  return result


def _by_seed(
  seeds: Sequence[int],
  rows: Mapping[str, Sequence[TrainedSubnet]],
  tested: Mapping[str, Sequence[Mapping[str, Any]]],
  tell: Callable[[TrainedSubnet, Mapping[str, Any]], str],
) -> dict[str, dict[str, str]]:
  """What is told of subnets and their numbers, by row and seed; only of those that it tells of."""
  found: dict[str, dict[str, str]] = {}
  for name, subnets in rows.items():
    for seed, subnet, values in zip(seeds, subnets, tested[name], strict=True):
      if sentences := tell(subnet, values):
        found.setdefault(name, {})[str(seed)] = sentences
  return found


def _diverged(subnet: TrainedSubnet, values: Mapping[str, Any]) -> str:
  """What diverged on the way to a subnet with such numbers, in sentences."""
  is_finite = math.isfinite(values['val_loss'] + values['test_loss'])
  return subnet.trouble or ('' if is_finite else 'Its loss is not finite.')


def _teller_of_guessing(run: Run) -> Callable[[TrainedSubnet, Mapping[str, Any]], str]:
  """What says so of subnets that end in guessing, unless so few steps may well teach nothing."""
  labels = np.asarray(run.data('val').labels)
  recipe = run.settings.supernet
  steps_per_epoch = recipe.steps_per_epoch(len(run.task.open('train').labels))

  def tell(subnet: TrainedSubnet, values: Mapping[str, Any]) -> str:
    accuracy = values['val_accuracy']
    steps = (recipe.epochs - subnet.spared_epochs) * steps_per_epoch
    if steps < ENOUGH_STEPS or _diverged(subnet, values) or not is_guessing(accuracy, labels):
      return ''
    return (
      f'{accuracy:.1%} of the validation images are right, where naming one class for all of them '
      f'gets {share_of_largest_class(labels):.1%}.'
    )

  return tell


def freeze_and_evaluate(
  run: Run, rows: dict[str, list[TrainedSubnet]]
) -> dict[str, list[dict[str, Any]]]:
  """Freezes all subnets with their weights to disk, and only then reads the test images.

  Args:
    run: the run.
    rows: the subnets by row of the table, one for each seed.

  Returns:
    Parameters, seconds, accuracies and losses, in the order of `rows`.

  Raises:
    ValueError: another list was frozen before.
  """
  measured = {
    name: [
      {
        'params': subnet.params,
        'seconds': round(subnet.seconds, 2),
        **_measure_both(run, subnet, 'val'),
      }
      for subnet in subnets
    ]
    for name, subnets in rows.items()
  }
  frozen = {
    name: [
      {
        'genome': subnet.genome.tolist(),
        'val_accuracy': values['val_accuracy'],
        'weights': tree.fingerprint(subnet.variables),
      }
      for subnet, values in zip(subnets, measured[name], strict=True)
    ]
    for name, subnets in rows.items()
  }
  freeze(run, frozen)
  for name, subnets in rows.items():
    for values, subnet in zip(measured[name], subnets, strict=True):
      values.update(_measure_both(run, subnet, 'test'))
  return measured


def _measure_both(run: Run, subnet: TrainedSubnet, split: str) -> dict[str, float]:
  """A subnet's accuracy and loss on a split, and those with the weights that it inherited."""
  own = measure(run, subnet.candidate, split)
  if not subnet.inherited:
    return own
  inherited = measure(run, Candidate(subnet.inherited, subnet.genome), split)
  return {**own, **{f'inherited_{name}': value for name, value in inherited.items()}}


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
    _do_alone(runner, functools.partial(_rehearse, config, workdir), workdir, stop)
    claim_workdir(config, workdir)
    methods = settings.compare.methods
    jobs = {method: functools.partial(_train_method, config, workdir, method) for method in methods}
    with contextlib.closing(runner.outcomes(jobs, workdir, stop)) as outcomes:
      for number, (method, outcome) in enumerate(outcomes, 1):
        spent, made = outcome()
        note_process(workdir, made)
        seconds = read_seconds(workdir)
        for stage in spent:
          seconds[stage] = round(seconds.get(stage, 0.0) + spent[stage], 2)
        write_json(os.path.join(workdir, 'seconds.json'), seconds, 'seconds')
        log.info('%s is trained, %d of %d methods', method, number, len(methods))


def _do_alone(runner: Runner, job: Job, workdir: str, stop: Callable[[], bool]) -> Any:
  """What a single job returns."""
  with contextlib.closing(runner.outcomes({'comparison': job}, workdir, stop)) as outcomes:
    [(_, outcome)] = outcomes
  return outcome()


def _rehearse(config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool]) -> None:
  """Checks all that the comparison needs, and leaves in the workdir what preparing writes."""
  del stop
  rehearse(config, workdir)


def _train_method(
  config: ml_collections.ConfigDict, workdir: str, method: str, stop: Callable[[], bool]
) -> tuple[dict[str, float], Made]:
  """Trains a method with every seed; the seconds by stage, and with what it was made."""
  settings = check_config(config)
  run = prepare(settings, workdir, stop)
  start = time.perf_counter()
  rate = choose_rate(run, method).rate
  tuned = time.perf_counter()
  trials = [Trial(seed, rate) for seed in seeds_of(settings)]
  train_method(run, method, trials, settings.compare.budgets, 'trained')
  seconds = {'tuning': tuned - start, 'training': time.perf_counter() - tuned}
  return seconds, current()
