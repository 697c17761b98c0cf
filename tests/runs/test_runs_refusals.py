"""What is refused before anything starts: the type of the error, and the value that it names."""

import re

import pytest
from places import get_config
from tiny_runs import changed

from glora_jax import main
from glora_jax.runs import comparison, experiment, look, runners, suite
from glora_jax.runs.config import (
  RunSettings,
  check_config,
  check_settings,
  default_config,
  parse_arguments,
  with_settings,
)
from glora_jax.runs.context import fit_batches, never
from glora_jax.runs.plan import chip_of
from glora_jax.runs.sections import TrainingSettings
from glora_jax.training.sampling import Sampling

COMPARED = {'job': 'compare', 'presets': (), 'budget': None}
ADAPTING = [
  ({'model.sha256': 'zz'}, "model.sha256='zz'"),
  ({'space.ranks': (4, 2)}, 'space.ranks=(4, 2)'),
  ({'presets': ('lora', 'ssf:2')}, "presets[1]='ssf:2'"),
  ({'structure': 'lora:2', 'presets': ('gradient',)}, "presets=('gradient',)"),
  ({'structure': 'gradient', 'protocol': 'paper'}, "protocol='paper'"),
  ({'train_on': 'train+val', 'training.keep': 'best'}, "training.keep='best'"),
  ({'train_on': 'train+val', 'finetune.epochs': 0}, 'finetune.epochs=0'),
  ({'structure': 'known'}, 'budget=None'),
  ({'structure': 'known', 'budget': 9, 'model.weights': 'mine'}, "model.weights='mine'"),
  ({'structure': 'known', 'budget': 9, 'presets': ('gradient',)}, "presets=('gradient',)"),
  (
    {'structure': 'gradient', 'training.epochs': 2, 'training.warmup_epochs': 0},
    'training.epochs=2 is too few',
  ),
]
COMPARING = [
  ({'compare.rates': ()}, 'compare.rates=()'),
  ({'compare.methods': ('known',), 'model.weights': 'mine'}, "model.weights='mine'"),
  ({'compare.budgets': (900, 300)}, 'compare.budgets=(900, 300)'),
  ({'protocol': 'paper'}, "protocol='paper'"),
  ({'finetune.epochs': 500}, 'finetune.epochs=500'),
  ({'seed': 2**32 - 1}, 'seed=4294967295'),
]


@pytest.mark.parametrize(
  'fields, named',
  [*ADAPTING, *(({'job': 'compare', **fields}, named) for fields, named in COMPARING)],
)
def test_a_field_that_cannot_be_is_named(fields, named):
  config = default_config()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=re.escape(named)):
    check_config(config)


def fit(**sections):
  settings, counts = RunSettings(**sections), {'train': 18, 'val': 4, 'test': 4, 'train+val': 22}
  fit_batches(settings, experiment.stages_of(settings), counts, None)


def settle(settings):
  check_settings(settings, 'vtab/all', 'own.json')


@pytest.mark.parametrize(
  'call, named',
  [
    (
      lambda: fit(training=TrainingSettings(batch_size=32, accumulate=32)),
      'training.batch_size=32',
    ),
    (
      lambda: fit(
        training=TrainingSettings(batch_size=16, accumulate=2), sampling=Sampling(paths=3)
      ),
      'sampling.paths=3',
    ),
    (
      lambda: fit(training=TrainingSettings(batch_size=1, epochs=2**31 - 1, warmup_epochs=0)),
      'training.epochs=2147483647',
    ),
    (lambda: parse_arguments('a,b', {'rank': 4}), "'b'"),
    (lambda: parse_arguments('a,rank=1,rank=2', {'rank': 4}), "'rank=2'"),
    (lambda: settle({'cifar10': {'budget': 1}}), "own.json: 'cifar10'"),
    (lambda: settle({'cifar100': {'budgets': 1}}), 'cifar100.budgets=1 is unknown'),
    (lambda: settle(['cifar100']), "own.json=['cifar100']"),
    (lambda: chip_of('v5e'), "'v5e'"),
    (lambda: chip_of('v5e:0x2'), "'v5e:0x2'"),
    (lambda: runners.named('process:8'), "'process:8'"),
    (lambda: runners.named('process', 'GPU=1'), 'GPU=1'),
    (lambda: runners.named('ray', 'CPU=1,GPU=0'), "'GPU=0'"),
  ],
)
def test_a_value_that_cannot_be_is_named(call, named):
  with pytest.raises(ValueError, match=re.escape(named)) as caught:
    call()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'call, error, named',
  [
    (lambda c, p: get_config('own', '/photos'), FileNotFoundError, "'/photos'"),
    (lambda c, p: with_settings(c, 'no.json'), FileNotFoundError, "'no.json'"),
    (
      lambda c, p: get_config('own', 'beans,tiny=True,weights=/none'),
      ValueError,
      'its own weights',
    ),
    (lambda c, p: get_config('own', 'beans,epochs=9,tiny=True'), ValueError, 'its own epochs'),
    (lambda c, p: experiment.run(c.to_dict(), p), TypeError, 'config is a dict; pass the'),
    (lambda c, p: experiment.run(c, None), ValueError, 'got None'),
    (lambda c, p: comparison.run(changed(c, **COMPARED), 3), ValueError, 'got 3'),
    (lambda c, p: suite.run(get_config('vtab', 'all'), None), ValueError, 'got None'),
    (lambda c, p: comparison.run(c, p), ValueError, "job='adapt'"),
    (lambda c, p: experiment.run(changed(c, **COMPARED), p), ValueError, "job='compare'"),
    (lambda c, p: main.dispatch(c, p, never, 'ray'), ValueError, '--runner=ray'),
    (
      lambda c, p: main.chosen_runner(changed(c, distributed__num_processes=2), 'ray', None),
      ValueError,
      '--runner=ray',
    ),
    (lambda c, p: look.show(get_config('vtab', 'all'), p), ValueError, "task='vtab/all'"),
    (lambda c, p: look.show(changed(c, augment__shift=16), p), ValueError, 'shift=16'),
  ],
)
def test_a_job_that_cannot_be_leaves_nothing(call, error, named, run_config, tmp_path):
  with pytest.raises(error, match=re.escape(named)):
    call(run_config, str(tmp_path / 'run'))
  assert not list(tmp_path.iterdir())
