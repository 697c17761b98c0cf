"""Runs that are stopped before their first stage: all that is checked with a model and images."""

import json
import os
import random
from typing import Any

import ml_collections

from benchmarks.fuzz.checkpoints import originals
from benchmarks.fuzz.oracle import Case, Fault
from benchmarks.fuzz.pictures import PNG
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import damaged, shown
from glora_jax.runs import comparison, experiment
from glora_jax.runs.config import check_config, default_config
from glora_jax.runs.workdir import Stopped, read_config

EACH = 6  # images of a class
VALUES: dict[str, tuple[Any, ...]] = {
  'model.image_size': (1, 3, 7, 9, 64, 4096),
  'model.patch_size': (1, 2, 3, 8, 16, 4096),
  'model.num_heads': (1, 3, 7, 4096),
  'model.activation': ('gelu', 'gelu_tanh', 'quick_gelu'),
  'model.normalization': ('imagenet', 'unit'),
  'model.dtype': ('bfloat16',),
  'model.base_dtype': ('bfloat16',),
  'model.weights': (
    'hf:',
    'hf:a',
    'http://x',
    'gs://',
    '/',
    '.',
    '/dev/null',
    '~',
    '\0',
    'x' * 300,
  ),
  'model.sha256': ('0' * 64,),
  'space.ranks': ((1, 2, 3), (16,), (17,), (4, 2), (1, 1), (10**6,)),
  'budget': (0, 1, 1e15, 1.5, 200),
  'allocation.max_rank': (1, 1024),
  'allocation.folds': (2, 9, 10**6),
  'sampling.paths': (3, 2**31 - 1),
  'supernet.accumulate': (2, 16, 7),
  'supernet.batch_size': (1, 3, 5000),
  'finetune.batch_size': (1, 5000),
  'training.batch_size': (5000,),
  'data.source': ('noah', 'lists', 'tfds'),
  'data.version': ('x.y', ''),
  'data.dir': ('/proc', '/dev/null', '\0', '~nouser'),
  'data.max_resident': (0, 1, 2**62),
  'data.cache': ('/proc/x', '/dev/null', '\0'),
  'data.resize': ('crop',),
  'task': ('folder:', 'folder:/no', 'csv:/dev/null', 'vtab/', 'no', ' ', 'folder:\0', 'fewshot/x'),
  'merge': ('lazy', 'up_front'),
  'presets': (('lora:2@qkv', 'lora:2@qkv'), ('gradient',), ('lora:2@mlp',), ('lora@no',)),
  'structure': ('gradient', 'linear', 'lora:2@no', 'lora:4', '/etc/passwd.json', 'x.json', 'full'),
  'mesh.devices': ('one',),
  'mesh.base': ('sharded',),
  'search.population': (10**6,),
  'search.mode': ('pareto', 'random'),
  'augment.shift': (4, 8, 10**5),
  'job': ('compare',),
  'compare.methods': (('lora',), ('search', 'lora:4'), ('finetuning',), ('gradient',)),
  'compare.budgets': ((100,), (0,), (10**9,), (2, 1)),
  'protocol': ('paper',),
}


def start(rng: random.Random, place: Place) -> Case:
  """A run of the small ViT on a few images, some fields of which are odd."""
  for name in 'ab':
    for number in range(EACH):
      content = damaged(rng, PNG) if rng.random() < 0.01 else PNG
      place.write('photos', name, f'{number}.png', content=content)
  config = _small(place, rng.choice(originals(place.path('shared'))))
  changes = {
    name: rng.choice(VALUES[name]) for name in rng.sample(list(VALUES), rng.choice([1, 1, 2, 3]))
  }
  values = config.to_dict()
  for name, value in changes.items():
    *sections, last = name.split('.')
    (values[sections[0]] if sections else values)[last] = value
  config = ml_collections.ConfigDict(values)
  run = comparison.run if config.job == 'compare' else experiment.run

  def attempt() -> list:
    try:
      run(config, place.workdir, lambda: True)
    except Stopped:
      with open(os.path.join(place.workdir, 'config.json')) as file:
        return [json.load(file), sorted(os.listdir(place.workdir))]
    raise Fault('it was asked to stop, and went on')

  def check(_: Any) -> None:
    if check_config(read_config(place.workdir)) != check_config(config):
      raise Fault('config.json has other settings')

  return Case(f'start {shown(changes)}', attempt, check, limit=60)


def _small(place: Place, weights: str) -> ml_collections.ConfigDict:
  config = default_config()
  config.task = f'folder:{place.path("given", "photos")}'
  config.model.weights = weights
  config.budget = 1000
  config.supernet.update(epochs=6, warmup_epochs=1, batch_size=4)
  config.search.update(population=4, generations=2, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup_epochs=0, batch_size=4)
  config.training.update(epochs=6, warmup_epochs=1, batch_size=4)
  return config
