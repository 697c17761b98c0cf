"""The methods of a comparison, each trained from many starts side by side.

The learning rate of each is chosen on the validation images.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

from glora_jax.files import read_json
from glora_jax.method import genomes
from glora_jax.method.adapted import Adapted
from glora_jax.method.presets import preset
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import choose
from glora_jax.search.errors import NoGradientError, NonFiniteError
from glora_jax.training.loop import NonFiniteLossError
from glora_jax.training.recipe import Recipe
from glora_jax.vision.files import write_json
from glora_jax.vision.runs.backbone import Model, Stream, stream_key
from glora_jax.vision.runs.config import RunSettings
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.sections import (
  FOUND,
  GRADIENT,
  NO_PRESETS,
  SEARCH,
  TRANSFER,
  TUNING_SEED,
)
from glora_jax.vision.runs.stage import TRAINING, Stage, clocked
from glora_jax.vision.runs.stages.allocation import (
  allocate_once,
  allocate_transfer,
  check_gradient,
  head_recipe,
  prior_of,
)
from glora_jax.vision.runs.stages.search import run_search
from glora_jax.vision.runs.stages.structures import READS_OF_TRANSFER
from glora_jax.vision.runs.stages.training import (
  FullFineTuning,
  HeadOnFeatures,
  Training,
  best_on_val,
  train,
)
from glora_jax.vision.structure_names import file_name

log = logging.getLogger(__name__)

FINETUNING_SHARE = 0.5  # of the supernet's learning rate, for finetuning a searched structure
_STOPPED = 'stopped at its last good state: its loss or gradient was no longer finite.'
# Fields that a method reads besides the recipe and the loss.
_READS = {
  SEARCH: ('finetune.', 'sampling.', 'search.', 'compare.budgets'),
  GRADIENT: ('allocation.', 'compare.budgets'),
  TRANSFER: (*READS_OF_TRANSFER, 'compare.budgets'),
}


class Trial(NamedTuple):
  """A seed and a learning rate, for each of which a method is trained once."""

  seed: int
  learning_rate: float


class TrainedStructure(NamedTuple):
  """The result of a method for one trial.

  Attributes:
    model: the trained structure.
    seconds: time of training, and of the search if there was one.
    inherited: the variables before finetuning, of a searched structure; None for the others.
    spared_epochs: by how many epochs its training was shorter, for what its structure cost.
    trouble: what diverged on the way, in sentences; empty if nothing did.
  """

  model: Model
  seconds: float
  inherited: Any = None
  spared_epochs: int = 0
  trouble: str = ''


class Task(NamedTuple):
  """What a method is trained for.

  Attributes:
    folder: folder in the workdir; earlier results in it are read.
    trials: seeds and learning rates.
    budgets: most trained parameters of searched and allocated structures.
    split: split that they are trained on; they are chosen on 'train' and 'val'.
  """

  folder: str
  trials: Sequence[Trial]
  budgets: Sequence[int]
  split: str = 'train'


def stages_of_methods(settings: RunSettings) -> tuple[Stage, ...]:
  """The stages of a comparison that tune and train its methods."""
  tuning, training = [], []
  for method in settings.compare.methods:
    name = file_name(method)
    reads = (f'compare.rate.{method}', *TRAINING, *_READS.get(method, ()))
    after = ()
    if settings.compare.rate.get(method) is None:
      tune = Stage(
        f'tuning/{name}',
        functools.partial(_choose_rate, method),
        reads=(*reads, 'compare.rates'),
        splits=('train',),
      )
      tuning.append(tune)
      after = (tune.name,)
    train_all = Stage(
      f'training/{name}',
      functools.partial(_train_seeds, method),
      reads=(*reads, 'compare.seeds', 'train_on'),
      after=after,
      check=functools.partial(_check, method),
      splits=('train', settings.final_split),
    )
    training.append(train_all)
  return (*tuning, *training)


def _check(method: str, context: Context) -> None:
  """Raises ValueError if a method cannot be trained side by side on this model and machine."""
  if context.mesh is not None:
    raise ValueError(
      'A comparison trains side by side on one device; give --config.mesh.devices=one.'
    )
  number = context.counts[context.settings.final_split]
  most = context.settings.data.max_resident
  if not context.is_resident(number):
    raise ValueError(
      f'A comparison trains on resident images, but data.max_resident={most} streams the {number} '
      'training images; raise it.'
    )
  if method == GRADIENT:
    check_gradient(context)
  elif method == TRANSFER:
    for budget in budgets_of(context.settings, method):
      allocate_transfer(context, budget)
  elif method not in NO_PRESETS:
    preset(context.place(method).adapted.spec, method)


def _choose_rate(method: str, context: Context) -> list[TriedRate]:
  """Validation accuracy and loss of a method at every learning rate of the list.

  A searched structure is judged within the largest budget.
  """
  folder = f'tuning/{file_name(method)}'
  path = context.path(folder, 'rates.json')
  if not os.path.exists(path):
    compare, seed = context.settings.compare, context.settings.seed + TUNING_SEED
    trials = [Trial(seed, rate) for rate in compare.rates]
    task = Task(folder, trials, budgets_of(context.settings, method)[-1:])
    [structures] = train_method(context, method, task).values()
    rows = [
      {'rate': trial.learning_rate, **context.measure(structure.model, 'val')}
      for trial, structure in zip(trials, structures, strict=True)
    ]
    write_json(path, {'rows': rows}, 'tuning')
  return read_json(path, 'tuning', _Tried)['rows']


def _train_seeds(
  method: str, context: Context, tried: list[TriedRate] | None = None
) -> dict[str, list[TrainedStructure]]:
  """A method, trained with every seed at its learning rate."""
  rate = rate_of(context.settings, method, tried)
  log.info('%s: learning rate %g', method, rate)
  rates = sorted(each['rate'] for each in tried or ())
  if len(rates) > 1 and rate in (rates[0], rates[-1]):
    log.warning('%s: %g is at an end of compare.rates; a rate beyond may do better.', method, rate)
  trials = [Trial(seed, rate) for seed in seeds_of(context.settings)]
  folder, budgets = f'training/{file_name(method)}', budgets_of(context.settings, method)
  task = Task(folder, trials, budgets, context.settings.final_split)
  return train_method(context, method, task)


def budgets_of(settings: RunSettings, method: str) -> Sequence[int]:
  """The budgets for each of which a method has a row; empty for other methods."""
  return settings.compare.budgets if method in FOUND else ()


def rate_of(settings: RunSettings, method: str, tried: list[TriedRate] | None) -> float:
  """A method's learning rate: the config's, or the best on the validation images, ties by loss."""
  rate = settings.compare.rate.get(method)
  return best_on_val(tried or ())['rate'] if rate is None else rate


def seeds_of(settings: RunSettings) -> list[int]:
  """The seeds that every method of a comparison is trained with."""
  return [settings.seed + number for number in range(settings.compare.seeds)]


def train_method(context: Context, method: str, task: Task) -> dict[str, list[TrainedStructure]]:
  """Trains one method once for each trial.

  Args:
    context: the context.
    method: a preset's name, 'finetuning', 'search', 'gradient' or 'transfer'.
    task: folder, trials and budgets.

  Returns:
    The structures by row of the table, one for each trial: one row, or one for each budget if the
    method is in `FOUND`.
  """
  if method == SEARCH:
    return _search(context, task)
  if method == GRADIENT:
    return _read_off_gradients(context, task)
  adapted = context.place(method).adapted
  if method == TRANSFER:
    return {
      f'{TRANSFER}-{budget}': _train_fixed(
        context,
        f'{task.folder}/{budget}',
        adapted.fix(allocate_transfer(context, budget).genome),
        task,
      )
      for budget in task.budgets
    }
  is_full = method == 'finetuning'
  learner = FullFineTuning.of(context.adapted) if is_full else adapted.fix(method)
  return {method: _train_fixed(context, task.folder, learner, task)}


def _train_fixed(
  context: Context, folder: str, learner: Adapted, task: Task
) -> list[TrainedStructure]:
  """Trains a fixed structure, once for each trial."""
  recipe, starts = context.settings.training, _starts(context, learner, task.trials)
  folder, trials = f'{folder}/states', task.trials
  return _structures(_train(context, folder, learner, recipe, starts, trials, split=task.split))


def _starts(context: Context, learner: Adapted, trials: Sequence[Trial]) -> list[Any]:
  """The variables before any training, for each trial."""
  base, adapted = context.variables['params'], learner.fix(None)
  return [adapted.init(stream_key(trial.seed, Stream.INIT), base) for trial in trials]


def _train(
  context: Context,
  name: str,
  learner: Adapted,
  recipe: Recipe,
  starts: list[Any],
  trials: Sequence[Trial],
  stream: Stream = Stream.SUPERNET,
  *,
  split: str = 'train',
) -> tuple[list[Model], float]:
  """The outcomes of a learner's trainings, one for each trial, and the seconds of each."""
  keys = [stream_key(trial.seed, stream) for trial in trials]
  rates = [trial.learning_rate for trial in trials]
  training = Training(name, learner, recipe, split, starts, keys, rates)
  with clocked(context.path(name)) as clock:
    trained = train(context, training)
  return trained, clock['seconds'] / len(trained)


def _structures(
  trained: tuple[list[Model], float],
  title: str = 'Its training',
  seconds: float = 0.0,
  troubles: Sequence[str] = (),
  **more: Any,
) -> list[TrainedStructure]:
  """The structures of some trainings.

  Args:
    trained: what `_train` returned.
    title: how a sentence refers to one of them.
    seconds: time of what came before.
    troubles: sentences about what came before.
    **more: fields of all of them.
  """
  models, own = trained
  return [
    TrainedStructure(
      model,
      seconds + own,
      trouble=' '.join(filter(None, (*troubles, _trouble(title, model)))),
      **more,
    )
    for model in models
  ]


def _trouble(training: str, trained: Model) -> str:
  """A sentence about a training that diverged; empty for others."""
  return f'{training} {_STOPPED}' if trained.diverged else ''


def _read_off_gradients(context: Context, task: Task) -> dict[str, list[TrainedStructure]]:
  """Trains a structure of each seed's gradient for each budget.

  Heads are warmed at the recipe's learning rate, not the trial's, so that the structure depends on
  the seed alone.
  """
  place, budgets = context.place(GRADIENT), task.budgets
  seeds = list(dict.fromkeys(trial.seed for trial in task.trials))
  head, warming = HeadOnFeatures.of(place.adapted), head_recipe(context.settings)
  trials = [Trial(seed, warming.learning_rate) for seed in seeds]
  starts = _starts(context, place.adapted, trials)
  folder = f'{task.folder}/heads'
  heads, seconds = _train(context, folder, head, warming, starts, trials)
  rows: dict[str, list[TrainedStructure]] = {f'{GRADIENT}-{budget}': [] for budget in budgets}
  for seed, start, warm in zip(seeds, starts, heads, strict=True):
    folder, place = f'{task.folder}/{seed}', place._replace(variables=start)
    options: dict[str, Any] = {'budget': max(budgets)}
    prior = prior_of(context, place, key=stream_key(seed, Stream.PRIOR), **options)
    warmed = place._replace(variables={**start, 'params': warm.variables['params']})
    of_seed = task._replace(trials=[trial for trial in task.trials if trial.seed == seed])
    found, troubles = None, [_trouble('The training of its head', warm)]
    with clocked(context.path(folder)) as clock:
      try:
        key = stream_key(seed, Stream.STRUCTURE)
        found = allocate_once(context, warmed, key=key, folder=folder, prior=prior, **options)
      except (NoGradientError, NonFiniteError, NonFiniteLossError) as error:
        troubles.append(_stands_for(folder, error))
    before = {'seconds': seconds + clock['seconds'], 'troubles': troubles}
    for budget in budgets:
      rows[f'{GRADIENT}-{budget}'] += _train_structure(
        context, warmed, of_seed, found, budget, **before
      )
  return rows


def _train_structure(
  context: Context,
  place: Model,
  task: Task,
  found: Allocation | None,
  budget: int,
  **before: Any,
) -> list[TrainedStructure]:
  """Trains the structure of one seed's gradient within a budget, once for each learning rate.

  Without a finite gradient (`found` is None) it is the smallest structure, so that a head that
  diverged, or that is certain of every label, does not end the comparison. `before` has the seconds
  and troubles of head and gradient.
  """
  spec, variables, has_borrowed = place.adapted.spec, place.variables, False
  genome = genomes.smallest_genome(spec)
  if found is not None:
    genome, variables = choose(spec, found.scores, budget), found.variables
    has_borrowed = found.borrowed > 0
  structure, recipe = place.adapted.fix(genome), context.settings.training
  shorter = context.settings.allocation.shortened(recipe, has_borrowed)
  starts = [variables] * len(task.trials)
  folder = f'{task.folder}/{budget}-{task.trials[0].seed}/states'
  options = {'split': task.split}
  trained = _train(context, folder, structure, shorter, starts, task.trials, **options)
  return _structures(trained, spared_epochs=recipe.epochs - shorter.epochs, **before)


def _stands_for(name: str, error: Exception) -> str:
  """Logs and returns an error after which the smallest structure is used."""
  trouble = f'{error} The smallest structure is used instead.'
  log.warning('%s: %s', name, trouble)
  return trouble


def _search(context: Context, task: Task) -> dict[str, list[TrainedStructure]]:
  """Trains a supernet for each trial, and finds and finetunes a structure in it for each budget."""
  starts, recipe = _starts(context, context.adapted, task.trials), _of_supernet(context.settings)
  folder = f'{task.folder}/supernets'
  supernets, seconds = _train(context, folder, context.adapted, recipe, starts, task.trials)
  return {
    f'{SEARCH}-{budget}': [
      _search_one(context, task, number, supernet, seconds, budget)
      for number, supernet in enumerate(supernets)
    ]
    for budget in task.budgets
  }


def _of_supernet(settings: RunSettings) -> Recipe:
  """The recipe of all methods without the epochs for finetuning a searched structure."""
  epochs = settings.training.epochs - settings.finetuning.epochs
  return dataclasses.replace(settings.training, epochs=epochs)


def _search_one(
  context: Context, task: Task, number: int, supernet: Model, seconds: float, budget: int
) -> TrainedStructure:
  """Searches a structure within a budget, and finetunes it from the supernet's weights.

  A supernet that diverged cannot be searched; the trial then uses its smallest structure, and the
  comparison continues.
  """
  trial, name = task.trials[number], f'{task.folder}/{budget}-{number}'
  key, start = stream_key(trial.seed, Stream.SEARCH), supernet.variables
  troubles = [_trouble('The training of its supernet', supernet)]
  with clocked(context.path(name)) as clock:
    try:
      archive = run_search(context, start, budget=budget, key=key, folder=name)
      genome = archive.best(context.settings.search.fitness)
    except NonFiniteError as error:
      troubles.append(_stands_for(name, error))
      genome = genomes.smallest_genome(context.adapted.spec)
  structure = context.adapted.fix(genome)
  # The schedule's ends follow the supernet's learning rate.
  rate = context.settings.training.learning_rate
  recipe = dataclasses.replace(context.settings.finetuning, learning_rate=rate)
  trials = [trial._replace(learning_rate=FINETUNING_SHARE * trial.learning_rate)]
  options = {'stream': Stream.FINETUNE, 'split': task.split}
  trained = _train(context, f'{name}/states', structure, recipe, [start], trials, **options)
  seconds += clock['seconds']
  # The supernet has not seen the validation images.
  inherited = start if task.split == 'train' else None
  return _structures(trained, 'Its finetuning', seconds, troubles, inherited=inherited)[0]


class TriedRate(TypedDict):
  """The outcome of a method at a learning rate."""

  rate: float
  val_accuracy: float
  val_loss: float | None  # null if the training diverged


class _Tried(TypedDict):
  rows: list[TriedRate]
