"""The learning rate of every method of a comparison, chosen on the validation images."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple, TypedDict

import numpy as np

from glora_jax.files import write_json
from glora_jax.method.presets import file_name
from glora_jax.records import read_record
from glora_jax.runs.config import RunSettings
from glora_jax.runs.run import Candidate, Run
from glora_jax.runs.sections import TUNING_SEED
from glora_jax.runs.stages import evaluation
from glora_jax.runs.stages.many_starts import Trial
from glora_jax.runs.stages.methods import train_method
from glora_jax.runs.stages.training import best_on_val

log = logging.getLogger(__name__)


class _TriedRate(TypedDict):
  rate: float
  val_accuracy: float
  val_loss: float | None  # null where a training diverged


class _Tried(TypedDict):
  rows: list[_TriedRate]


class Choice(NamedTuple):
  """The learning rate of a method.

  Attributes:
    rate: the one that it is trained with.
    tried: accuracy and loss of all that were tried; empty where the config gives the rate.
  """

  rate: float
  tried: list[_TriedRate]


def seeds_of(settings: RunSettings) -> list[int]:
  """The seeds that every method of a comparison is trained with."""
  return [settings.seed + number for number in range(settings.compare.seeds)]


def choose_rates(run: Run) -> dict[str, float]:
  """The learning rate of every method, by its name; written to `rates.json` with what was tried."""
  choices = {method: choose_rate(run, method) for method in run.settings.compare.methods}
  chosen = {method: choice.rate for method, choice in choices.items()}
  record = {
    'rate': chosen,
    'seed': run.settings.seed + TUNING_SEED,
    'tried': {method: choice.tried for method, choice in choices.items() if choice.tried},
  }
  write_json(run.path('rates.json'), record, 'rates')
  return chosen


def choose_rate(run: Run, method: str) -> Choice:
  """The learning rate of a method, and what was tried.

  It is the one that the config gives, or the best of its list by validation accuracy, ties by loss.
  A searched subnet is judged within the largest budget.
  """
  given = run.settings.compare.rate.get(method)
  if given is not None:
    return Choice(given, [])
  tried = _try_rates(run, method)
  best = best_on_val(tried)
  log.info('%s: learning rate %g', method, best['rate'])
  return Choice(best['rate'], tried)


def _try_rates(run: Run, method: str) -> list[_TriedRate]:
  """Validation accuracy and loss of a method at every learning rate of the list."""
  path = run.path('tuning', f'{file_name(method)}.json')
  if not os.path.exists(path):
    compare, seed = run.settings.compare, run.settings.seed + TUNING_SEED
    trials = [Trial(seed, rate) for rate in compare.rates]
    [subnets] = train_method(run, method, trials, compare.budgets[-1:], 'tuning').values()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    rows = [
      {'rate': trial.learning_rate, **measure(run, subnet.candidate, 'val')}
      for trial, subnet in zip(trials, subnets, strict=True)
    ]
    write_json(path, {'rows': rows}, 'tuning')
  return read_record(path, 'tuning', _Tried)['rows']


def measure(run: Run, candidate: Candidate, split: str) -> dict[str, float]:
  """Accuracy and mean loss of a subnet on a split, by 'SPLIT_accuracy' and 'SPLIT_loss'."""
  variables, genome = evaluation.in_the_runs_space(run, candidate)
  correct, loss = run.score(variables, np.asarray(genome)[None], split)
  images = len(run.data(split).labels)
  return {
    f'{split}_accuracy': int(correct[0]) / images,
    f'{split}_loss': float(loss[0]) / images,
  }
