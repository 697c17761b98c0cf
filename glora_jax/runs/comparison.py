"""Methods side by side on one task: presets, full fine-tuning and the search, with the same steps, the same tuning and the same seeds.

Stages, each with its files in the workdir, so that the same command resumes: every method's learning rate is chosen on the validation
images, with a seed that the table does not use; every method is trained with every seed, side by side (`train_many`); the search looks
in each seed's supernet for a subnet within each budget, which is finetuned; the list is frozen to disk; the test images are read;
table and picture are drawn. `config.supernet` is the recipe of all; of its epochs a searched subnet spends `finetune.epochs` on itself, the
others on the supernet.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from glora_jax import tree
from glora_jax.files import read_arrays, read_json, write_arrays, write_json
from glora_jax.method import genomes, presets
from glora_jax.method.adapted import Adapted
from glora_jax.reports import comparison_report
from glora_jax.runs.config import Comparison, finetune_recipe
from glora_jax.runs.run import Run, carry_out
from glora_jax.runs.stages import evaluation, search
from glora_jax.runs.workdir import Stopped
from glora_jax.training.losses import Consistency, Sampling, subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, subnet_runs, train_many

log = logging.getLogger(__name__)

TUNING = 1000  # the seed of the choice of learning rates comes so far after the table's first
FINETUNED_AT = 0.5  # of the supernet's learning rate


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One trained subnet, which is one seed of a row of the table. `inherited` are its variables before it was finetuned."""

  genome: np.ndarray
  params: int
  variables: Any
  seconds: float
  inherited: Any = None


class FullFineTuning:
  """All of the base trained and no support, in the place of a `Subnet`."""

  def __init__(self, adapted: Adapted):
    self.adapted, self.genome = adapted, genomes.smallest_genome(adapted.spec)
    self.apply = adapted.fix(self.genome).apply

  def split(self, variables: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    params = jax.tree.map(lambda x: x.astype(jnp.float32), variables['params'])
    return {'params': params}, {
      name: value for name, value in variables.items() if name != 'params'
    }

  def join(self, trainable: Any, frozen: Any) -> dict[str, Any]:
    return {**frozen, **trainable}

  def count_params(self) -> int:
    """Trained parameters, heads not counted."""
    return sum(
      shape.size
      for path, shape in self.adapted.param_shapes.items()
      if path not in self.adapted.head_paths
    )


def run(
  config: ml_collections.ConfigDict, workdir: str, stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
  """Runs, or resumes, a comparison.

  Args:
    config: with the fields of `config.default_config` and `job='compare'`.
    workdir: folder for everything that is written; one config each.
    stop: asked before every training and after every generation; where it says True the comparison ends, and all that was finished is kept.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError, OSError: a wrong field, file or workdir, or one in use; the sentence names it.
    Stopped: `stop` said so.
  """
  return carry_out(config, workdir, stop, _run_stages)


def _run_stages(this: Run) -> dict[str, Any]:
  if this.mesh is not None:
    raise ValueError(
      'A comparison trains side by side on one device; give --config.mesh.devices=one.'
    )
  settings = Comparison(**this.config.compare)
  seeds = [this.config.seed + number for number in range(settings.seeds)]
  with this.stage('tuning'):
    rates = choose_rates(this, settings)
  with this.stage('training'):
    rows = {}
    for name in settings.methods:
      rows |= train_method(
        this, name, seeds, [rates[name]] * len(seeds), settings.budgets, 'trained'
      )
  with this.stage('test'):
    entries = test(this, rows)
  result = {
    'task': this.task.name,
    'data': {'origin': this.task.origin, 'notes': list(this.task.notes)},
    'weights': this.config.model.weights,
    'seeds': seeds,
    'epochs': this.config.supernet.epochs,
    'finetune_epochs': this.config.finetune.epochs,
    'rates': list(settings.rates),
    'rate': rates,
    'methods': entries,
  }
  with this.stage('report'):
    comparison_report.write(this.workdir, result)
  return result


def choose_rates(this: Run, settings: Comparison) -> dict[str, float]:
  """The learning rate of every method: the one given, or the best of the list by validation accuracy, ties by loss.

  Writes them to `rates.json`, with what was tried; a searched subnet is judged within the largest budget.
  """
  seed, rates, tried = this.config.seed + TUNING, list(settings.rates), {}
  chosen = {name: settings.rate[name] for name in settings.methods}
  for name in settings.methods:
    if chosen[name] is not None:
      continue
    path = this.path('tuning', f'{name}.json')
    if not os.path.exists(path):
      [candidates] = train_method(
        this, name, [seed] * len(rates), rates, settings.budgets[-1:], 'tuning'
      ).values()
      os.makedirs(os.path.dirname(path), exist_ok=True)
      write_json(
        path,
        [
          {'rate': rate, **measure(this, one.variables, one.genome, 'val')}
          for rate, one in zip(rates, candidates, strict=True)
        ],
      )
    tried[name] = read_json(path)
    chosen[name] = max(tried[name], key=lambda row: (row['val_accuracy'], -row['val_loss']))['rate']
    log.info('%s: learning rate %g', name, chosen[name])
  write_json(this.path('rates.json'), {'rate': chosen, 'seed': seed, 'tried': tried})
  return chosen


def train_method(
  this: Run,
  name: str,
  seeds: Sequence[int],
  rates: Sequence[float],
  budgets: Sequence[int],
  folder: str,
) -> dict[str, list[Candidate]]:
  """Trains one method once for each pair of a seed and a learning rate; what is in the folder is read.

  Returns:
    The candidates by row of the table: one row, or one for each budget where the method is the search.
  """
  recipe, finetuning = Recipe(**this.config.supernet), finetune_recipe(this.config)
  starts = [this.adapted.init(_key(seed, 0), this.variables['params']) for seed in seeds]
  keys = [_key(seed, 1) for seed in seeds]
  if name != 'search':
    learner = (
      FullFineTuning(this.adapted)
      if name == 'finetuning'
      else this.adapted.fix(presets.preset(this.adapted.spec, name))
    )
    trained, seconds = _side_by_side(this, f'{folder}/{name}', learner, starts, keys, recipe, rates)
    return {
      name: [
        Candidate(learner.genome, learner.count_params(), variables, seconds)
        for variables in trained
      ]
    }
  shorter = dataclasses.replace(recipe, epochs=recipe.epochs - finetuning.epochs)
  supernets, seconds = _side_by_side(
    this, f'{folder}/supernet', this.adapted, starts, keys, shorter, rates
  )
  found = {}
  for budget in budgets:
    found[f'search-{budget}'] = [
      _searched(this, f'{folder}/search-{budget}-{number}', supernet, seed, rate, budget, seconds)
      for number, (supernet, seed, rate) in enumerate(zip(supernets, seeds, rates, strict=True))
    ]
  return found


def _searched(this, place, supernet, seed, rate, budget, seconds):
  archive, searching = _timed(
    this.path(f'{place}.json'),
    lambda: search.run_search(this, supernet, folder=place, budget=budget, key=_key(seed, 3)),
  )
  subnet = this.adapted.fix(archive.best(this.config.search.fitness))
  recipe = dataclasses.replace(
    finetune_recipe(this.config), learning_rate=this.config.supernet.learning_rate
  )
  [tuned], tuning = _side_by_side(
    this, place, subnet, [supernet], [_key(seed, 5)], recipe, [FINETUNED_AT * rate]
  )
  return Candidate(
    subnet.genome, subnet.count_params(), tuned, seconds + searching + tuning, supernet
  )


def test(this: Run, rows: dict[str, list[Candidate]]) -> dict[str, list[dict[str, Any]]]:
  """Freezes all candidates with their weights to disk, and only then reads the test images; one entry a seed, by row."""
  entries, frozen = {}, {}
  for name, candidates in rows.items():
    entries[name] = [
      {
        'params': one.params,
        'seconds': round(one.seconds, 2),
        **measure(this, one.variables, one.genome, 'val'),
        **(measure(this, one.inherited, one.genome, 'val', 'inherited_') if one.inherited else {}),
      }
      for one in candidates
    ]
    frozen[name] = [
      {
        'genome': one.genome.tolist(),
        'val_accuracy': entry['val_accuracy'],
        'weights': tree.fingerprint(one.variables),
      }
      for one, entry in zip(candidates, entries[name], strict=True)
    ]
  evaluation.freeze(this, frozen)
  for name, candidates in rows.items():
    for entry, one in zip(entries[name], candidates, strict=True):
      entry.update(measure(this, one.variables, one.genome, 'test'))
      if one.inherited:
        entry.update(measure(this, one.inherited, one.genome, 'test', 'inherited_'))
  return entries


def measure(
  this: Run, variables: Any, genome: np.ndarray, split: str, title: str = ''
) -> dict[str, float]:
  """Accuracy and mean loss of one subnet on a split."""
  (correct, loss), images = (
    this.score(variables, np.asarray(genome)[None], split),
    len(this.data(split).labels),
  )
  return {
    f'{title}{split}_accuracy': int(correct[0]) / images,
    f'{title}{split}_loss': float(loss[0]) / images,
  }


def _key(seed, purpose):
  return jax.random.fold_in(jax.random.key(seed), purpose)


def _timed(path, function):
  """(what the function returns, the seconds of the call that first came to its end, which are kept in a file)."""
  start = time.perf_counter()
  result = function()
  if not os.path.exists(path):
    write_json(path, {'seconds': round(time.perf_counter() - start, 2)})
  return result, read_json(path)['seconds']


def _side_by_side(this, place, learner, starts, keys, recipe, rates):
  """(variables of every run, seconds of one): a learner trained from all starts, kept as `place`.npz."""
  runs = [
    dataclasses.replace(one, rate=rate / recipe.learning_rate)
    for one, rate in zip(_runs(this, learner, starts, keys), rates, strict=True)
  ]
  path = this.path(f'{place}.npz')
  if not os.path.exists(path):
    if this.stop():
      raise Stopped(f'before {place}', this.workdir)
    log.info('%s: %d runs of %d epochs', place, len(runs), recipe.epochs)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    start = time.perf_counter()
    states = train_many(runs, *this.data('train'), recipe)
    arrays = flax.traverse_util.flatten_dict(
      {str(number): state.trainable for number, state in enumerate(states)}, sep='/'
    )
    seconds = (time.perf_counter() - start) / len(runs)
    write_arrays(
      path,
      {**{name: np.asarray(value) for name, value in arrays.items()}, 'seconds': np.array(seconds)},
    )
  arrays = read_arrays(path)
  seconds = float(arrays.pop('seconds'))
  trained = flax.traverse_util.unflatten_dict(arrays, sep='/')
  return [
    learner.join(trained[str(number)], one.frozen) for number, one in enumerate(runs)
  ], seconds


def _runs(this, learner, starts, keys):
  """The runs of a supernet, of full fine-tuning or of a subnet from all starts, which differ in their supports alone."""
  options = {'mix': this.mix, 'consistency': Consistency(**this.config.consistency), 'train': True}
  if isinstance(learner, Adapted):
    sampling = Sampling(**this.config.sampling)
    loss = supernet_loss(
      learner,
      this.augmented,
      lambda key: sampling.draw(key, learner.spec),
      distillation=sampling.distillation,
      **options,
    )
  elif isinstance(learner, FullFineTuning):
    loss = subnet_loss(learner, this.augmented, **options)
  else:
    return subnet_runs(this.adapted, [learner.genome], starts, keys, this.augmented, **options)
  halves = [learner.split(start) for start in starts]
  return [
    Training(loss, trainable, halves[0][1], key)
    for (trainable, _), key in zip(halves, keys, strict=True)
  ]
