"""Comparisons: fair, resumable, tested last; and what their tables say."""

import csv
import json
import os
import shutil

import flax
import jax
import numpy as np
import pytest

from glora_jax.files import read_arrays, read_json
from glora_jax.reports import comparison_report
from glora_jax.runs import comparison
from glora_jax.runs.config import check_config, default_config
from glora_jax.runs.lifecycle import prepare
from glora_jax.runs.workdir import Stopped

METHODS = ('linear', 'lora', 'finetuning', 'search')


@pytest.fixture(scope='module')
def config(backbone, tmp_path_factory):
  config = default_config()
  config.job, config.model.weights, config.data.dir = (
    'compare',
    backbone,
    str(tmp_path_factory.mktemp('tfds')),
  )
  config.compare.update(methods=METHODS, budgets=(900,), seeds=2, rates=(1e-3, 1e-2))
  config.compare.rate.update(linear=5e-3, finetuning=1e-3, search=1e-2)
  config.supernet.update(epochs=2, warmup_epochs=0)
  config.search.update(population=6, generations=1, parents=2, mutations=3, crossovers=3)
  config.finetune.update(epochs=1, warmup_epochs=0)
  return config


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('compared') / 'whole')
  return workdir, comparison.run(config, workdir)


def without_times(result):
  methods = {
    name: [{field: value for field, value in row.items() if field != 'seconds'} for row in rows]
    for name, rows in result['methods'].items()
  }
  return {
    **{name: value for name, value in result.items() if name != 'seconds'},
    'methods': methods,
  }


def test_every_method_and_budget_has_a_row_for_each_seed(finished):
  _, result = finished
  assert set(result['methods']) == {'linear', 'lora', 'finetuning', 'search-900'}
  assert all(len(rows) == 2 for rows in result['methods'].values())
  assert all(0 < row['params'] <= 900 for row in result['methods']['search-900'])
  assert result['methods']['linear'][0]['params'] == 0


def test_full_fine_tuning_moves_all_of_the_base_and_the_others_none(finished, config):
  workdir, result = finished
  run = prepare(check_config(config), workdir)
  before = jax.tree.map(np.asarray, run.variables['params'])
  trained = {
    name: read_arrays(os.path.join(workdir, 'trained', f'{name}.npz'))
    for name in ('lora', 'finetuning')
  }
  moved = {
    name.removeprefix('0/params/') for name in trained['finetuning'] if name.startswith('0/params/')
  }
  flat = {'/'.join(path): value for path, value in flax.traverse_util.flatten_dict(before).items()}
  assert moved == set(flat)
  assert all(
    not np.array_equal(trained['finetuning'][f'0/params/{name}'], value)
    for name, value in flat.items()
  )
  assert {name.split('/')[2] for name in trained['lora'] if '/params/' in name} == {'head'}
  assert result['methods']['finetuning'][0]['params'] == sum(
    v.size for name, v in flat.items() if not name.startswith('head/')
  )


def test_seeds_differ_and_equal_seeds_do_not(finished, config, tmp_path):
  workdir, _ = finished
  arrays = read_arrays(os.path.join(workdir, 'trained', 'lora.npz'))
  name = next(name for name in arrays if name.startswith('0/glora'))
  assert not np.allclose(arrays[name], arrays[name.replace('0/', '1/', 1)], atol=1e-4)


def test_learning_rates_are_given_or_the_best_on_validation_images(finished):
  workdir, result = finished
  chosen = read_json(os.path.join(workdir, 'rates.json'))
  assert chosen['rate'] == result['rate']
  assert result['rate']['linear'] == 5e-3
  assert set(chosen['tried']) == {'lora'}
  for name, tried in chosen['tried'].items():
    assert [row['rate'] for row in tried] == [1e-3, 1e-2]
    best = max(tried, key=lambda row: (row['val_accuracy'], -row['val_loss']))
    assert result['rate'][name] == best['rate']
    assert not any('test' in field for row in tried for field in row)
  assert chosen['seed'] not in result['seeds']


def test_table_and_picture_say_what_the_result_says(finished):
  workdir, result = finished
  with open(os.path.join(workdir, 'table.csv')) as file:
    lines = {line['method']: line for line in csv.DictReader(file)}
  for name, rows in result['methods'].items():
    values = [row['test_accuracy'] for row in rows]
    assert float(lines[name]['test_accuracy']) == pytest.approx(np.mean(values))
    assert float(lines[name]['test_accuracy_spread']) == pytest.approx(np.std(values, ddof=1))
    with open(os.path.join(workdir, 'report.md')) as file:
      assert f'{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}' in file.read()
  assert os.path.getsize(os.path.join(workdir, 'accuracy.png')) > 5000


@pytest.mark.parametrize(
  'lost',
  [
    ('result.json',),
    ('result.json', 'trained/search-900-1.npz', 'rates.json', 'tuning/lora.json'),
    (
      'result.json',
      'trained/supernet.npz',
      'trained/search-900-0/archive.npz',
      'trained/finetuning.npz',
    ),
  ],
)
def test_what_is_lost_is_made_again_to_the_same_result(finished, config, tmp_path, lost):
  workdir, result = finished
  again = str(tmp_path / 'again')
  shutil.copytree(workdir, again)
  for name in lost:
    os.remove(os.path.join(again, name))
  assert without_times(comparison.run(config, again)) == without_times(result)


def test_a_comparison_that_is_stopped_goes_on_to_the_same_result(finished, config, tmp_path):
  asked = iter([False] * 6 + [True] * 100)
  workdir = str(tmp_path / 'stopped')
  with pytest.raises(Stopped, match='goes on from there'):
    comparison.run(config, workdir, lambda: next(asked))
  assert not os.path.exists(os.path.join(workdir, 'result.json'))
  assert without_times(comparison.run(config, workdir)) == without_times(finished[1])


def test_another_list_than_the_frozen_one_is_not_tested(finished, config, tmp_path):
  workdir, _ = finished
  again = str(tmp_path / 'again')
  shutil.copytree(workdir, again)
  os.remove(os.path.join(again, 'result.json'))
  path = os.path.join(again, 'test_list.json')
  entries = read_json(path)
  entries['lora'][0]['weights'] = 'others'
  with open(path, 'w') as file:
    json.dump(entries, file)
  with pytest.raises(ValueError, match='was frozen with other subnets'):
    comparison.run(config, again)


def test_the_verdict_is_the_paired_difference_to_the_best_within_the_budget():
  row = lambda params, *tests: [
    {'params': params, 'seconds': 1.0, 'val_accuracy': 0.5, 'test_accuracy': test} for test in tests
  ]
  result = {
    'seeds': [0, 1],
    'rate': dict.fromkeys(('linear', 'lora', 'full', 'search'), 1e-3),
    'methods': {
      'linear': row(0, 0.80, 0.82),
      'lora': row(180, 0.90, 0.88),
      'full': row(500, 0.95, 0.95),
      'search-200': row(150, 0.91, 0.91),
    },
  }
  [said] = comparison_report.verdicts(result)
  assert said.startswith(
    'Searched, at most 200: +2.0 ± 1.4 points beside LoRA, the best other method within that (150 and 180 parameters'
  )


@pytest.mark.parametrize(
  'fields, message',
  [
    (
      {'compare.methods': ('lora', 'lorra')},
      r"compare.methods\[1\]='lorra' is unknown; it is one of linear,",
    ),
    ({'compare.budgets': (900, 300)}, 'must be ascending numbers of parameters'),
    ({'compare.rates': ()}, r'compare.rates=\(\) must not be empty: learning rates'),
    ({'compare.seeds': 0}, 'compare.seeds=0 must be at least 1'),
    ({'protocol': 'paper'}, "protocol='paper' must be 'honest'"),
    ({'budget': 900.0}, 'a comparison has compare.budgets'),
    ({'finetune.epochs': 2}, 'must be fewer'),
    ({'job': 'compared'}, "job='compared' is unknown"),
  ],
)
def test_wrong_fields_are_explained(config, tmp_path, fields, message):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    comparison.run(config, str(tmp_path))
  assert not os.listdir(tmp_path)
