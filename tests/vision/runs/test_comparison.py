"""Comparisons: fair, resumable, tested last; and what their tables say."""

import os
import shutil

import flax
import html_pages
import jax
import numpy as np
import pytest
from tiny_runs import changed, context_of, stages_of, without_seconds

from glora_jax.files import read_json
from glora_jax.vision.files import write_json
from glora_jax.vision.runs import comparison
from glora_jax.vision.runs.config import default_config
from glora_jax.vision.runs.stage import walk
from glora_jax.vision.runs.workdir import Stopped

METHODS = ('linear', 'lora', 'finetuning', 'search')


@pytest.fixture(scope='module')
def config(backbone):
  config = default_config()
  config.job = 'compare'
  config.model.weights = backbone
  config.compare.update(methods=METHODS, budgets=(900,), seeds=2, rates=(1e-3, 1e-2))
  config.compare.rate.update(linear=5e-3, finetuning=1e-3, search=1e-2)
  config.training.update(epochs=2, warmup_epochs=0)
  config.search.update(population=4, generations=1, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup_epochs=0)
  return config


@pytest.fixture(scope='module')
def compared(config, tmp_path_factory):
  """(workdir, result) of a comparison that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('compared') / 'whole'
  return workdir, comparison.run(config, str(workdir))


@pytest.fixture
def copy(compared, tmp_path):
  """A copy of the comparison's workdir."""
  workdir, _ = compared
  shutil.copytree(workdir, tmp_path / 'copy')
  return tmp_path / 'copy'


@pytest.mark.parametrize(
  'epochs, rate, named', [(2, 1e30, 'diverged'), (9, 5e-3, 'learned_nothing')]
)
def test_seeds_that_diverge_or_end_in_guessing_are_named(epochs, rate, named, config, tmp_path):
  """A head learns nothing on a backbone of random weights."""
  fields = {'compare__methods': ('linear',), 'compare__seeds': 1, 'training__epochs': epochs}
  config = changed(config, **fields, compare__rate__linear=rate)
  result = comparison.run(config, str(tmp_path))
  assert [trouble for trouble in ('diverged', 'learned_nothing') if result[trouble]] == [named]


@pytest.mark.full
def test_every_method_and_budget_has_a_row_for_each_seed_and_the_table_says_so(compared):
  workdir, result = compared
  methods = result['methods']
  assert set(methods) == {'linear', 'lora', 'finetuning', 'search-900'}
  assert all(len(rows) == 2 for rows in methods.values())
  assert all(0 < row['params'] <= 900 for row in methods['search-900'])
  assert methods['linear'][0]['params'] == 0
  accuracies = [row['test_accuracy'] for row in methods['search-900']]
  assert f'{100 * np.mean(accuracies):.1f} ± ' in html_pages.read(workdir).text


@pytest.mark.full
def test_full_fine_tuning_moves_all_of_the_base_the_others_none_and_seeds_differ(compared, config):
  workdir, result = compared
  context = context_of(config, workdir)
  before = flax.traverse_util.flatten_dict(context.variables['params'], sep='/')
  stages = stages_of(config)
  [lora] = walk(context, stages, until='training/lora').values()
  [finetuning] = walk(context, stages, until='training/finetuning').values()
  moved = flax.traverse_util.flatten_dict(finetuning[0].model.variables['params'], sep='/')
  for name, value in before.items():
    assert not np.array_equal(moved[name], value)
  still = flax.traverse_util.flatten_dict(lora[0].model.variables['params'], sep='/')
  assert {
    name.split('/')[0] for name, x in still.items() if not np.array_equal(x, before[name])
  } == {'head'}
  assert result['methods']['finetuning'][0]['params'] == sum(
    value.size for name, value in before.items() if not name.startswith('head/')
  )
  one, other = (jax.tree.leaves(subnet.model.variables['glora']) for subnet in lora)
  assert not all(np.allclose(x, y, atol=1e-4) for x, y in zip(one, other, strict=True))


@pytest.mark.full
def test_learning_rates_are_given_or_the_best_on_validation_images(compared):
  workdir, result = compared
  chosen = read_json(workdir / 'rates.json')
  assert chosen['rate'] == result['rate']
  assert result['rate']['linear'] == 5e-3
  [(name, tried)] = chosen['tried'].items()
  assert name == 'lora'
  assert [row['rate'] for row in tried] == [1e-3, 1e-2]
  best = max(tried, key=lambda row: (row['val_accuracy'], -row['val_loss']))
  assert result['rate'][name] == best['rate']
  assert not any('test' in field for row in tried for field in row)
  assert chosen['seed'] not in result['seeds']


@pytest.mark.full
def test_a_comparison_that_is_stopped_goes_on_to_the_same_result(compared, config, tmp_path):
  _, result = compared
  asked = iter([False] * 6 + [True] * 100)
  workdir = tmp_path / 'stopped'
  with pytest.raises(Stopped, match='the same command resumes'):
    comparison.run(config, str(workdir), lambda: next(asked))
  assert not (workdir / 'result.json').exists()
  assert without_seconds(comparison.run(config, str(workdir))) == without_seconds(result)


@pytest.mark.full
def test_another_list_than_the_frozen_one_is_not_tested(copy, config):
  os.remove(copy / 'result.json')
  frozen = read_json(copy / 'test_list.json', 'test list')
  frozen['lora'][0]['weights'] = 'others'
  write_json(copy / 'test_list.json', frozen, 'test list')
  with pytest.raises(ValueError, match='was frozen with other structures'):
    comparison.run(config, str(copy))
