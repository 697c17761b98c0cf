"""What is refused before anything starts: one line, with the value."""

import pytest
from comparing import assert_refused
from places import CONFIGS, get_config
from test_early_checks import fitted
from tiny_runs import changed

from glora_jax import main
from glora_jax.training.sampling import Sampling
from glora_jax.vision.models import weights
from glora_jax.vision.runs import cells, experiment, look, runners, suite
from glora_jax.vision.runs.config import (
  check_config,
  default_config,
  parse_arguments,
  settings_by_task,
  with_settings,
)
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.settings import RunSettings, TrainingSettings

ADAPTING = [
  ({'model.sha256': 'zz'}, "model.sha256='zz'"),
  ({'space.ranks': (4, 2)}, 'space.ranks=(4, 2)'),
  ({'presets': ('lora', 'ssf:2')}, "presets: The preset 'ssf:2'"),
  ({'suite.rate': {'lorra': 2e-3}}, "suite.rate: The preset 'lorra' is unknown"),
  ({'structure': 'lora:2', 'presets': ('gradient',)}, "presets=('gradient',)"),
  ({'structure': 'gradient', 'protocol': 'paper'}, "protocol='paper'"),
  ({'train_on': 'train+val', 'training.keep': 'best'}, "training.keep='best'"),
  ({'structure': 'lora', 'train_on': 'train+val', 'test': False}, 'test=False leaves no images'),
  ({'training.steps': 9}, 'training.steps=9 must be None'),
  ({'train_on': 'train+val', 'finetune.epochs': 0}, 'finetune.epochs=0'),
  ({'finetune.warmup': 1.5}, 'finetune.warmup=1.5 must be'),
  ({'mesh.fsdp': 4}, 'mesh.fsdp=4'),
  ({'task': 'vtab/dtd', 'suite.settings': {'dtd': {'budget': 9}}}, "task='vtab/dtd' is one"),
  ({'structure': 'transfer'}, 'budget=None'),
  ({'structure': 'transfer', 'budget': 9, 'model.weights': 'mine'}, "model.weights='mine'"),
  (
    {'structure': 'gradient', 'training.epochs': 2},
    'training.epochs=2 is too few',
  ),
]
SEARCHES = {'suite.structures': ('search',)}


OF_A_TASK = {'task': 'vtab/all', 'suite.settings': {'dtd': {'budget': 9, 'learning_rate': 1e-4}}}


NO_EFFECT = 'of vtab/dtd: learning_rate=0.0001 has no effect, because suite.'
MANY = [
  ({'suite.structures': ('lora', 'lorra')}, "'lorra'"),
  ({'suite.structures': ('lora', 'lora')}, "suite.structures=('lora', 'lora')"),
  ({'suite.budgets': (900, 300)}, 'suite.budgets=(900, 300)'),
  ({'suite.structures': ('lora',), 'protocol': 'paper'}, "protocol='paper'"),
  ({'suite.rates': (1e-3,), 'protocol': 'paper'}, "protocol='paper'"),
  ({**SEARCHES, 'finetune.epochs': 500}, 'finetune.epochs=500'),
  ({'suite.structures': ('transfer',)}, 'budget=None'),
  ({'seed': 2**32 - 1, 'suite.seeds': 2}, 'seed=4294967296'),
  ({**OF_A_TASK, 'suite.structures': ('lora',), 'suite.rates': (1e-3,)}, f'{NO_EFFECT}rates repl'),
  ({**OF_A_TASK, 'suite.structures': ('lora',), 'suite.rate.lora': 1e-3}, f'{NO_EFFECT}rate repl'),
  ({**OF_A_TASK, **SEARCHES, 'suite.budgets': (900,)}, 'budget=9 has no effect, because suite.b'),
]


@pytest.mark.parametrize(
  'fields, named',
  [*ADAPTING, *MANY],
)
def test_a_field_that_cannot_be_is_named(fields, named):
  config = default_config()
  config.update_from_flattened_dict(fields)
  assert_refused(named, lambda: cells.runs_of(check_config(config)))


def fit(sampling=Sampling(), **training):
  fitted(RunSettings(training=TrainingSettings(**training), sampling=sampling))


def settle(settings):
  settings_by_task(settings, 'vtab/all', 'own.json')


@pytest.mark.parametrize(
  'call, named',
  [
    (lambda: fit(batch_size=32, accumulate=32), 'training.batch_size=32'),
    (lambda: fit(Sampling(paths=3), batch_size=16, accumulate=2), 'sampling.paths=3'),
    (lambda: fit(batch_size=1, epochs=2**31 - 1, warmup=0.0), 'training.epochs=2147483647'),
    (lambda: parse_arguments('a,rank=1,rank=2', {'rank': 4}), "'rank=2'"),
    (lambda: settle({'cifar10': {'budget': 1}}), "own.json: 'cifar10'"),
    (lambda: settle({'cifar100': {'budgets': 1}}), 'cifar100.budgets=1 is unknown'),
    (lambda: runners.named('process:8'), "'process:8'"),
    (lambda: runners.named('process', 'GPU=1'), 'GPU=1'),
    (lambda: runners.named('ray', 'CPU=1,GPU=0'), "'GPU=0'"),
    (lambda: get_config('own', 'beans,epochs=9,tiny=True'), 'tiny=True sets epochs'),
  ],
)
def test_a_value_that_cannot_be_is_named(call, named):
  assert_refused(named, call)


READ_OFF = {'structure': 'gradient', 'presets': (), 'training__epochs': 5}
TRANSFER = {'structure': 'transfer', 'presets': ()}


def start(**fields):
  """A function that starts the job of a config with other values."""

  def run(config, workdir):
    experiment.run(changed(config, **fields), workdir)

  return run


def on_ray(**fields):
  """A function that starts a config with other values on Ray."""
  return lambda config, path: main.run(check_config(changed(config, **fields)), path, never, 'ray')


@pytest.mark.parametrize(
  'call, named',
  [
    (start(model__weights='typo'), "model.weights='typo'"),
    (start(augment__shift=8), 'shift=8'),
    (start(space__ranks=(1000,)), 'rank 1000'),
    (start(structure=str(CONFIGS / 'compare_rates.json')), 'compare_rates.json'),
    (start(structure='lora:8'), "structure='lora:8' has 4,096 parameters"),
    (start(**READ_OFF, budget=3), 'budget=3'),
    (start(**TRANSFER, budget=3, model__weights='embedded'), 'budget=3'),
    (start(**TRANSFER, allocation__transfer=weights.EMBEDDED_TRANSFER), 'transfer.json'),
    (start(**TRANSFER, allocation__transfer='no.json'), 'no.json'),
    (start(structure='lora', presets=(), watch__profile='search'), "watch.profile='search'"),
    (lambda c, p: with_settings(c, 'no.json'), "'no.json'"),
    (lambda c, p: experiment.run(c.to_dict(), p), 'config is a dict; pass the'),
    (lambda c, p: experiment.run(c, None), 'got None'),
    (lambda c, p: suite.run(get_config('vtab', 'all'), None), 'got None'),
    (start(suite__seeds=2), 'call suite.run'),
    (lambda c, p: main.run(check_config(c), p, never, 'ray'), '--runner=ray is for suites'),
    (on_ray(distributed__num_processes=2, suite__seeds=2), 'config.distributed makes one run'),
    (lambda c, p: look.show(check_config(get_config('vtab', 'all')), p), "task='vtab/all'"),
  ],
)
def test_a_job_that_cannot_be_is_refused_before_its_first_stage(call, named, run_config, tmp_path):
  kinds = ValueError, TypeError, OSError
  assert_refused(named, call, run_config, str(tmp_path / 'run'), kind=kinds)
  assert not [*tmp_path.rglob('stage.json')]
