"""The methods of a comparison: each trained from many starts side by side, the search as well."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import tree
from glora_jax.files import read_arrays, read_json, write_arrays, write_json
from glora_jax.method import genomes, presets
from glora_jax.method.adapted import Adapted, Subnet
from glora_jax.method.preset_names import file_name
from glora_jax.runs.run import Run, Stream, stream_key
from glora_jax.runs.stages.search import run_search
from glora_jax.runs.stages.training import loss_of_supernet
from glora_jax.runs.workdir import Stopped
from glora_jax.training.losses import subnet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, subnet_runs, train_many

log = logging.getLogger(__name__)

FINETUNING_SHARE = 0.5  # of the supernet's learning rate, for finetuning a searched subnet


class Trial(NamedTuple):
  """A method is trained once for each trial."""

  seed: int
  learning_rate: float


@dataclasses.dataclass(frozen=True)
class TrainedSubnet:
  """What a method made of one trial.

  Attributes:
    genome: its alleles, int8 [layer, 5].
    params: number of trained parameters, head not counted.
    variables: the model's variables.
    seconds: time of training, and of the search where there was one.
    inherited: the variables before finetuning, of a searched subnet; None for the others.
  """

  genome: np.ndarray
  params: int
  variables: Any
  seconds: float
  inherited: Any = None


@dataclasses.dataclass(frozen=True)
class FullFineTuning:
  """All of the base trained and no support, in the place of a `Subnet`.

  Attributes:
    adapted: the adapted backbone.
  """

  adapted: Adapted

  @functools.cached_property
  def genome(self) -> np.ndarray:
    """The subnet whose supports do nothing."""
    return genomes.smallest_genome(self.adapted.spec)

  @functools.cached_property
  def apply(self) -> Callable:
    """The model's forward pass."""
    return self.adapted.fix(self.genome).apply

  def split(self, variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): all parameters in float32, and all else."""
    params = jax.tree.map(lambda x: x.astype(jnp.float32), variables['params'])
    others = {name: value for name, value in variables.items() if name != 'params'}
    return {'params': params}, others

  def join(self, trainable: Any, frozen: Any) -> dict[str, Any]:
    """The inverse of `split`."""
    return {**frozen, **trainable}

  def count_params(self) -> int:
    """Number of trained parameters, heads not counted."""
    return sum(
      shape.size
      for path, shape in self.adapted.param_shapes.items()
      if path not in self.adapted.head_paths
    )


Learner = Adapted | Subnet | FullFineTuning


@dataclasses.dataclass(frozen=True)
class Batch:
  """Trainings of one learner side by side; the sequences have an item for each.

  Attributes:
    name: path of the result within the workdir, without its ending.
    learner: what is trained.
    recipe: how to train, but for the learning rate.
    starts: variables to start from.
    keys: random keys.
    learning_rates: the largest learning rates; a schedule is the recipe's, scaled to it.
  """

  name: str
  learner: Learner
  recipe: Recipe
  starts: Sequence[Any]
  keys: Sequence[jax.Array]
  learning_rates: Sequence[float]


class TrainedBatch(NamedTuple):
  """The variables of every training of a batch, and the time of one."""

  variables: list[Any]
  seconds_each: float


def train_method(
  run: Run, method: str, trials: Sequence[Trial], budgets: Sequence[int], folder: str
) -> dict[str, list[TrainedSubnet]]:
  """Trains one method once for each trial; what is in the folder is read.

  Args:
    run: the run.
    method: a preset's name, 'finetuning' or 'search'.
    trials: seeds and learning rates.
    budgets: most trained parameters of what is searched, or of ranks that rise.
    folder: folder in the workdir.

  Returns:
    The subnets by row of the table, one for each trial: one row, or one for each budget where the
    method is the search or has ranks that rise.
  """
  if method == 'search':
    return _search(run, trials, budgets, folder)
  if method == 'finetuning':
    return {method: _train(run, FullFineTuning(run.adapted), method, trials, folder)}
  spec = run.adapted.spec
  if ':rising' in method:
    genomes_by_row = {f'{method}-{n}': presets.preset(spec, method, n) for n in budgets}
  else:
    genomes_by_row = {method: presets.preset(spec, method)}
  return {
    row: _train(run, run.adapted.fix(genome), row, trials, folder)
    for row, genome in genomes_by_row.items()
  }


def _train(
  run: Run, learner: Subnet | FullFineTuning, row: str, trials: Sequence[Trial], folder: str
) -> list[TrainedSubnet]:
  """Trains a learner from the pretrained base once for each trial."""
  name = f'{folder}/{file_name(row)}'
  trained = train_batch(run, _from_pretrained(run, name, learner, run.settings.supernet, trials))
  return [
    TrainedSubnet(learner.genome, learner.count_params(), variables, trained.seconds_each)
    for variables in trained.variables
  ]


def _search(
  run: Run, trials: Sequence[Trial], budgets: Sequence[int], folder: str
) -> dict[str, list[TrainedSubnet]]:
  """Trains a supernet for each trial, and searches and finetunes a subnet in it for each budget."""
  recipe = run.settings.supernet
  shorter = dataclasses.replace(recipe, epochs=recipe.epochs - run.settings.finetune.epochs)
  batch = _from_pretrained(run, f'{folder}/supernet', run.adapted, shorter, trials)
  supernets = train_batch(run, batch)
  rows = {}
  for budget in budgets:
    row = rows[f'search-{budget}'] = []
    for number, (supernet, trial) in enumerate(zip(supernets.variables, trials, strict=True)):
      name = f'{folder}/search-{budget}-{number}'
      found = _search_one(run, name, supernet, trial, budget)
      row.append(dataclasses.replace(found, seconds=supernets.seconds_each + found.seconds))
  return rows


def _search_one(run: Run, name: str, supernet: Any, trial: Trial, budget: int) -> TrainedSubnet:
  """Searches a subnet within a budget, and finetunes it from the supernet's weights."""
  start = time.perf_counter()
  key = stream_key(trial.seed, Stream.SEARCH)
  archive = run_search(run, supernet, budget=budget, key=key, folder=name)
  searching = _first_seconds(run.path(f'{name}.json'), time.perf_counter() - start)
  subnet = run.adapted.fix(archive.best(run.settings.search.fitness))
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
  return TrainedSubnet(
    genome=subnet.genome,
    params=subnet.count_params(),
    variables=finetuned.variables[0],
    seconds=searching + finetuned.seconds_each,
    inherited=supernet,
  )


def train_batch(run: Run, batch: Batch) -> TrainedBatch:
  """Trains a batch, or reads what an earlier call with its name trained.

  Raises:
    Stopped: the run was asked to stop before it.
  """
  path = run.path(f'{batch.name}.npz')
  trainings = _trainings(run, batch)
  if not os.path.exists(path):
    if run.stop():
      raise Stopped(f'before {batch.name}', run.workdir)
    log.info('%s: %d runs of %d epochs', batch.name, len(trainings), batch.recipe.epochs)
    start = time.perf_counter()
    states = train_many(trainings, *run.data('train'), batch.recipe)
    trained = {str(number): state.trainable for number, state in enumerate(states)}
    seconds = (time.perf_counter() - start) / len(trainings)
    flat = flax.traverse_util.flatten_dict(trained, sep='/')
    arrays = {name: np.asarray(value) for name, value in flat.items()}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_arrays(path, {**arrays, 'seconds': np.array(seconds)})
  arrays = read_arrays(path)
  seconds = float(arrays.pop('seconds'))
  templates = flax.traverse_util.flatten_dict(
    {str(number): training.trainable for number, training in enumerate(trainings)}, sep='/'
  )
  # Version 0.1.0 stored all ranks of a fixed subnet.
  arrays = tree.cut_to(arrays, {name: templates[name] for name in arrays})
  trained = flax.traverse_util.unflatten_dict(arrays, sep='/')
  variables = [
    batch.learner.join(trained[str(number)], training.frozen)
    for number, training in enumerate(trainings)
  ]
  return TrainedBatch(variables, seconds)


def _from_pretrained(
  run: Run, name: str, learner: Learner, recipe: Recipe, trials: Sequence[Trial]
) -> Batch:
  """The trainings of a learner from the pretrained base, for each trial."""
  base = run.variables['params']
  return Batch(
    name=name,
    learner=learner,
    recipe=recipe,
    starts=[run.adapted.init(stream_key(trial.seed, Stream.INIT), base) for trial in trials],
    keys=[stream_key(trial.seed, Stream.SUPERNET) for trial in trials],
    learning_rates=[trial.learning_rate for trial in trials],
  )


def _trainings(run: Run, batch: Batch) -> list[Training]:
  """What `train_many` takes: equal losses and frozen arrays, which make them one program."""
  learner = batch.learner
  if isinstance(learner, Subnet):
    trainings = subnet_runs(
      run.adapted,
      [learner.genome],
      batch.starts,
      batch.keys,
      run.augmented,
      **run.loss_options,
    )
  else:
    if isinstance(learner, FullFineTuning):
      loss = subnet_loss(learner, run.augmented, **run.loss_options)
    else:
      loss = loss_of_supernet(run)
    halves = [learner.split(start) for start in batch.starts]
    frozen = halves[0][1]
    trainings = [
      Training(loss, trainable, frozen, key)
      for (trainable, _), key in zip(halves, batch.keys, strict=True)
    ]
  return [
    dataclasses.replace(training, rate=learning_rate / batch.recipe.learning_rate)
    for training, learning_rate in zip(trainings, batch.learning_rates, strict=True)
  ]


def _first_seconds(path: str, seconds: float) -> float:
  """The seconds of the call that first came to its end, which are kept in a file."""
  if not os.path.exists(path):
    write_json(path, {'seconds': round(seconds, 2)})
  return read_json(path)['seconds']
