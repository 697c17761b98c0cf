"""The methods of a comparison: each trained from many starts side by side, with what it chooses.

The learning rate of each is chosen on the validation images.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import numpy as np

from glora_jax.files import write_json
from glora_jax.method import genomes
from glora_jax.method.adapted import Adapted
from glora_jax.method.presets import file_name
from glora_jax.records import read_record
from glora_jax.runs.config import RunSettings
from glora_jax.runs.run import Candidate, Place, Run, Stream, stream_key
from glora_jax.runs.sections import GRADIENT, SEARCH, TUNING_SEED
from glora_jax.runs.stages.many_starts import (
  Batch,
  FullFineTuning,
  TrainedBatch,
  Trial,
  from_pretrained,
  train_batch,
)
from glora_jax.runs.stages.results import in_the_runs_space
from glora_jax.runs.stages.search import run_search
from glora_jax.runs.stages.structures import (
  allocate_once,
  head_learner,
  head_recipe,
  is_allocated,
  prior_of,
  start_compiling,
)
from glora_jax.runs.stages.training import best_on_val
from glora_jax.search.checked import NoGradientError, NonFiniteError
from glora_jax.training.loop import NonFiniteLossError

log = logging.getLogger(__name__)

FINETUNING_SHARE = 0.5  # of the supernet's learning rate, for finetuning a searched subnet
_STOPPED = 'stopped at its last good state: the loss or its gradient was not finite any more.'


class _Duration(TypedDict):
  seconds: float


@dataclasses.dataclass(frozen=True)
class TrainedSubnet:
  """What a method made of one trial.

  Attributes:
    genome: its alleles, int8 [layer, 5].
    params: number of trained parameters, head not counted.
    variables: the model's variables.
    seconds: time of training, and of the search where there was one.
    inherited: the variables before finetuning, of a searched subnet; None for the others.
    adapted: the adapted backbone that these are of; None for the run's own.
    spared_epochs: by how many its training was shorter, for what its structure cost.
    trouble: what diverged on the way to it, in sentences; empty where nothing did.
  """

  genome: np.ndarray
  params: int
  variables: Any
  seconds: float
  inherited: Any = None
  adapted: Adapted | None = None
  spared_epochs: int = 0
  trouble: str = ''

  @property
  def candidate(self) -> Candidate:
    """What is tested."""
    return Candidate(self.variables, self.genome, self.adapted)


@dataclasses.dataclass
class _Timed:
  """A function without arguments, and the seconds of its calls so far."""

  function: Callable[[], Any]
  seconds: float = 0.0

  def __call__(self) -> Any:
    start = time.perf_counter()
    try:
      return self.function()
    finally:
      self.seconds += time.perf_counter() - start


def train_method(
  run: Run, method: str, trials: Sequence[Trial], budgets: Sequence[int], folder: str
) -> dict[str, list[TrainedSubnet]]:
  """Trains one method once for each trial; what is in the folder is read.

  Args:
    run: the run.
    method: a preset's name, 'finetuning', 'search' or 'gradient'.
    trials: seeds and learning rates.
    budgets: most trained parameters of what is searched or read off a gradient.
    folder: folder in the workdir.

  Returns:
    The subnets by row of the table, one for each trial: one row, or one for each budget where the
    method is the search or the gradient.
  """
  if method == SEARCH:
    return _search(run, trials, budgets, folder)
  if method == GRADIENT:
    return _read_off_gradients(run, trials, budgets, folder)
  if method == 'finetuning':
    return {method: _train(run, FullFineTuning.of(run.adapted), method, trials, folder)}
  return {method: _train(run, run.place(method).adapted.fix(method), method, trials, folder)}


def _train(
  run: Run, learner: Adapted, row: str, trials: Sequence[Trial], folder: str
) -> list[TrainedSubnet]:
  """Trains a learner from the pretrained base once for each trial."""
  name = f'{folder}/{file_name(row)}'
  trained = train_batch(run, from_pretrained(run, name, learner, run.settings.supernet, trials))
  return _subnets(run, learner, trained)


def _subnets(
  run: Run, learner: Adapted, trained: TrainedBatch, training: str = 'Its training', **more: Any
) -> list[TrainedSubnet]:
  """What became of each training of a batch; `more` are fields of all of them."""
  assert learner.genome is not None
  return [
    TrainedSubnet(
      learner.genome,
      learner.count_params(),
      variables,
      trained.seconds_each,
      adapted=None if learner.spec is run.adapted.spec else learner.fix(None),
      trouble=_trouble(training, diverged),
      **more,
    )
    for variables, diverged in zip(trained.variables, trained.diverged, strict=True)
  ]


def _trouble(training: str, diverged: bool) -> str:
  """The sentence about a training that diverged; empty about others."""
  return f'{training} {_STOPPED}' if diverged else ''


def _read_off_gradients(
  run: Run, trials: Sequence[Trial], budgets: Sequence[int], folder: str
) -> dict[str, list[TrainedSubnet]]:
  """Trains a structure of each seed's gradient for each budget.

  Heads are warmed at the recipe's learning rate, whatever the trial's, so that the structure is the
  seed's.
  """
  place, recipe = run.place(GRADIENT), run.settings.supernet
  adapted = place.adapted
  seeds = dict.fromkeys(trial.seed for trial in trials)
  names = {
    (seed, budget): f'{folder}/{GRADIENT}-{budget}-{seed}' for seed in seeds for budget in budgets
  }
  is_done = all(is_allocated(run, name) for name in names.values())
  ahead = None if is_done else start_compiling(run, place)  # one program for all of them
  warming = head_recipe(recipe, run.settings.allocation.head_epochs)
  head = head_learner(run, place, warming)
  if head is None:
    head = adapted.fix(genomes.smallest_genome(adapted.spec))
  starts = [Trial(seed, warming.learning_rate) for seed in seeds]
  heads = train_batch(run, from_pretrained(run, f'{folder}/head', head, warming, starts))
  rows = {f'{GRADIENT}-{budget}': [] for budget in budgets}
  for seed, warm, diverged in zip(seeds, heads.variables, heads.diverged, strict=True):
    fresh = adapted.init(stream_key(seed, Stream.INIT), run.variables['params'])
    start = Place(adapted, {**fresh, 'params': warm['params']})
    of_seed = [trial for trial in trials if trial.seed == seed]
    key = stream_key(seed, Stream.PRIOR)
    find = prior_of(run, Place(adapted, fresh), budget=min(budgets), key=key, ahead=ahead)
    prior = _Timed(find) if find else None
    for budget in budgets:
      trained = _train_structure(
        run, names[seed, budget], start, of_seed, budget=budget, ahead=ahead, prior=prior
      )
      shared = heads.seconds_each + _seconds_of(prior, run.path(f'{folder}/prior-{seed}.json'))
      before = _trouble('The training of its head', diverged)
      rows[f'{GRADIENT}-{budget}'] += [_after(subnet, shared, before) for subnet in trained]
  return rows


def _train_structure(
  run: Run,
  name: str,
  place: Place,
  trials: Sequence[Trial],
  *,
  budget: int,
  prior: _Timed | None,
  **options: Any,
) -> list[TrainedSubnet]:
  """Trains the structure of one seed's gradient within a budget, once for each learning rate.

  Its seconds are without those of the prior, which the structures of all budgets share.
  """
  before = prior.seconds if prior else 0.0
  start = time.perf_counter()
  options |= {'budget': budget, 'prior': prior, 'folder': name}
  key = stream_key(trials[0].seed, Stream.STRUCTURE)
  genome, variables, has_borrowed, trouble = _find_structure(run, place, key, options)
  of_prior = prior.seconds - before if prior else 0.0
  seconds = _first_seconds(run.path(f'{name}.json'), time.perf_counter() - start - of_prior)
  subnet = place.adapted.fix(genome)
  recipe = run.settings.supernet
  batch = Batch(
    name=name,
    learner=subnet,
    recipe=run.settings.allocation.shortened(recipe, has_borrowed),
    starts=[variables] * len(trials),
    keys=[stream_key(trial.seed, Stream.SUPERNET) for trial in trials],
    learning_rates=[trial.learning_rate for trial in trials],
  )
  trained = train_batch(run, batch)
  spared = recipe.epochs - batch.recipe.epochs
  subnets = _subnets(run, subnet, trained, spared_epochs=spared)
  return [_after(subnet, seconds, trouble) for subnet in subnets]


def _find_structure(
  run: Run, place: Place, key: jax.Array, options: Mapping[str, Any]
) -> tuple[np.ndarray, Any, bool, str]:
  """(genome, variables to train from, whether a prior had a part in it, trouble).

  It is the smallest one, and the trouble says why, where the gradient is not finite, or there is
  none. So a head that has diverged ends the comparison as little as a supernet that has, and as one
  does that is certain of every label.
  """
  try:
    found = allocate_once(run, place, key=key, **options)
  except (NoGradientError, NonFiniteError, NonFiniteLossError) as error:
    genome = genomes.smallest_genome(place.adapted.spec)
    return genome, place.variables, False, _stands_for(options['folder'], error)
  return found.genome, found.variables, found.borrowed > 0, ''


def _stands_for(name: str, error: Exception) -> str:
  """The sentences about a method's result that the smallest subnet stands for, which are logged."""
  trouble = f'{error} The smallest subnet stands for it.'
  log.warning('%s: %s', name, trouble)
  return trouble


def _after(subnet: TrainedSubnet, seconds: float, trouble: str) -> TrainedSubnet:
  """A subnet with the seconds and the trouble of what it shares with others and came before it."""
  told = ' '.join(filter(None, (trouble, subnet.trouble)))
  return dataclasses.replace(subnet, seconds=seconds + subnet.seconds, trouble=told)


def _search(
  run: Run, trials: Sequence[Trial], budgets: Sequence[int], folder: str
) -> dict[str, list[TrainedSubnet]]:
  """Trains a supernet for each trial, and searches and finetunes a subnet in it for each budget."""
  recipe = run.settings.supernet
  shorter = dataclasses.replace(recipe, epochs=recipe.epochs - run.settings.finetune.epochs)
  batch = from_pretrained(run, f'{folder}/supernet', run.adapted, shorter, trials)
  supernets = train_batch(run, batch)
  rows = {}
  for budget in budgets:
    row = rows[f'search-{budget}'] = []
    for number, trial in enumerate(trials):
      name = f'{folder}/search-{budget}-{number}'
      found = _search_one(run, name, supernets.variables[number], trial, budget)
      before = _trouble('The training of its supernet', supernets.diverged[number])
      row.append(_after(found, supernets.seconds_each, before))
  return rows


def _search_one(run: Run, name: str, supernet: Any, trial: Trial, budget: int) -> TrainedSubnet:
  """Searches a subnet within a budget, and finetunes it from the supernet's weights.

  A supernet that has diverged cannot be searched; its smallest subnet is what
  the trial has come to, and ends the comparison as little as any other training that diverges.
  """
  start = time.perf_counter()
  key = stream_key(trial.seed, Stream.SEARCH)
  trouble = ''
  try:
    archive = run_search(run, supernet, budget=budget, key=key, folder=name)
    genome = archive.best(run.settings.search.fitness)
  except NonFiniteError as error:
    trouble = _stands_for(name, error)
    genome = genomes.smallest_genome(run.adapted.spec)
  searching = _first_seconds(run.path(f'{name}.json'), time.perf_counter() - start)
  subnet = run.adapted.fix(genome)
  batch = Batch(
    name=name,
    learner=subnet,
    # The schedule's ends are those of the supernet's learning rate.
    recipe=dataclasses.replace(
      run.settings.finetune, learning_rate=run.settings.supernet.learning_rate
    ),
    starts=[supernet],
    keys=[stream_key(trial.seed, Stream.FINETUNE)],
    learning_rates=[FINETUNING_SHARE * trial.learning_rate],
  )
  finetuned = train_batch(run, batch)
  [found] = _subnets(run, subnet, finetuned, 'Its finetuning', inherited=supernet)
  return _after(found, searching, trouble)


def _seconds_of(prior: _Timed | None, path: str) -> float:
  """The seconds of a prior where one was looked for, now or in an earlier start; else none."""
  seconds = prior.seconds if prior else 0.0
  return _first_seconds(path, seconds) if seconds or os.path.exists(path) else 0.0


def _first_seconds(path: str, seconds: float) -> float:
  """The seconds of the call that first came to its end, which are kept in a file."""
  if not os.path.exists(path):
    write_json(path, {'seconds': round(seconds, 2)}, 'duration')
  return read_record(path, 'duration', _Duration)['seconds']


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
  variables, genome = in_the_runs_space(run, candidate)
  correct, loss = run.score(variables, np.asarray(genome)[None], split)
  images = len(run.data(split).labels)
  return {
    f'{split}_accuracy': int(correct[0]) / images,
    f'{split}_loss': float(loss[0]) / images,
  }
