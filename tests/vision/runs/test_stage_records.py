"""What the stages of a run left is read back with its shape checked; damage is one sentence."""

import os
import types

import chex
import numpy as np
import pytest
from glora_jax.vision.runs.stages.methods import Trial
from tiny_runs import context_of

from glora_jax.method.draws import random_genomes
from glora_jax.search.archive import Archive
from glora_jax.vision.files import write_arrays, write_json
from glora_jax.vision.runs.stages import methods, results, training
from glora_jax.vision.runs.stages.search import read_archive


@pytest.fixture(scope='module')
def run(run_config, tmp_path_factory):
  return context_of(run_config, tmp_path_factory.mktemp('prepared'))


def archive_of(spec, **changes):
  genomes = random_genomes(np.random.default_rng(0), spec, 4)
  archive = Archive.empty(spec).extended(genomes, [5, 7, 7, 1], [1.0, 2.0, 3.0, 4.0], 0)
  return {**archive.arrays(), 'generation': np.array([0, 0, 1, 1]), **changes}


@pytest.mark.parametrize(
  'changes, reason',
  [
    ({'correct': np.array([1, 2, -3, 4])}, 'negative number of right answers'),
    ({'genomes': np.full((4, 8, 5), 9, np.int8)}, '9 for A of layer 0'),
  ],
)
def test_an_archive_that_cannot_be_is_named(changes, reason, run, tmp_path):
  path = str(tmp_path / 'archive.npz')
  write_arrays(path, archive_of(run.adapted.spec), 'archive')
  assert len(read_archive(path, run.adapted.spec)) == 4
  write_arrays(path, archive_of(run.adapted.spec, **changes), 'archive')
  with pytest.raises(ValueError, match=rf'archive.npz is damaged \(.*{reason}'):
    read_archive(path, run.adapted.spec)


def test_a_rate_that_diverged_wins_no_tie(run):
  losses = {0.1: None, 0.05: -np.inf, 0.03: np.nan, 0.01: 2.0}
  rows = [{'rate': rate, 'val_accuracy': 0.5, 'val_loss': loss} for rate, loss in losses.items()]
  os.makedirs(run.path('tuning/lora'))
  write_json(run.path('tuning/lora/rates.json'), {'rows': rows}, 'tuning')
  tried = methods._choose_rate('lora', run)
  assert methods.rate_of(run.settings, 'lora', tried) == 0.01


def test_a_training_that_diverged_is_told_from_the_others_when_it_is_read_again(run):
  task = methods.Task('training/linear', [Trial(0, 1e-2), Trial(1, 1e30)], ())
  for _ in range(2):
    [(good, bad)] = methods.train_method(run, 'linear', task).values()
    assert good.trouble == ''
    assert bad.trouble.startswith('Its training stopped at its last good state')


def test_many_trainings_are_trained_in_parts_to_the_same_result(run, monkeypatch):
  trials = [Trial(seed, 1e-2) for seed in range(3)]
  [together] = methods.train_method(run, 'linear', methods.Task('a', trials, ())).values()
  monkeypatch.setattr(training, 'MOST_SIDE_BY_SIDE', 2)
  [parts] = methods.train_method(run, 'linear', methods.Task('b', trials, ())).values()
  for one, other in zip(together, parts, strict=True):
    chex.assert_trees_all_close(one.model.variables, other.model.variables, rtol=0, atol=1e-6)


def test_a_frozen_list_is_the_same_where_other_devices_round_otherwise(tmp_path):
  run = types.SimpleNamespace(path=lambda name: str(tmp_path / name))
  structure = {'genome': [[0, 3, 0, 0, 0]], 'weights': 'fingerprint'}
  results.freeze(run, {'lora': {**structure, 'val_accuracy': 0.905}})
  results.freeze(run, {'lora': {**structure, 'val_accuracy': 0.900}})
  with pytest.raises(ValueError, match='was frozen with other structures'):
    results.freeze(run, {'lora': {**structure, 'val_accuracy': 0.9, 'weights': 'others'}})
