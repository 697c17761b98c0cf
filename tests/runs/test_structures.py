"""Structures that are not searched: read off a gradient, named or given, and trained alone."""

import dataclasses
import functools
import json
import os
import shutil
from typing import Any

import html_pages
import jax
import numpy as np
import pytest
from tiny_runs import changed, without_seconds

from glora_jax.files import read_arrays, read_json
from glora_jax.method.genomes import genome_to_json
from glora_jax.method.presets import preset
from glora_jax.models.classifier import Classifier
from glora_jax.records import read_lines
from glora_jax.reports import run_page, scoreboard, structure, suite_page
from glora_jax.runs import comparison, experiment
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import prepare
from glora_jax.runs.run import Place, Stream
from glora_jax.runs.stages import results, structures
from glora_jax.runs.stages.structures import allocate_shifts
from glora_jax.runs.stages.training import train
from glora_jax.runs.workdir import Stopped
from glora_jax.training.head_alone import HeadAlone

ONLY_OF_A_SEARCH = ('winner_supernet', 'finetuned', 'evaluations', 'hypervolume')


@pytest.fixture(scope='module')
def config(run_config):
  """The config of a run that reads its structure off a gradient."""
  config = changed(run_config, structure='gradient', presets=())
  config.allocation.update(head_epochs=1, folds=4, prior=None)
  config.training.update(epochs=5, warmup_epochs=1, batch_size=32, learning_rate=1e-2)
  return config


@pytest.fixture(scope='module')
def gradient_run(config, tmp_path_factory):
  """(workdir, result) of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('gradient') / 'run'
  return workdir, experiment.run(config, str(workdir))


@pytest.fixture
def prepared(config, gradient_run, tmp_path):
  """The run up to its structure, in a workdir of its own that has the same warm head."""
  workdir = tmp_path / 'prepared'
  shutil.copytree(gradient_run[0] / 'head', workdir / 'head')
  return prepare(check_config(config), str(workdir))


def test_the_result_has_all_keys_and_null_for_what_only_a_search_has(gradient_run):
  _, result = gradient_run
  assert result.keys() >= results.Result.__annotations__.keys()
  assert all(result[name] is None for name in ONLY_OF_A_SEARCH)
  assert result['structure'] == 'gradient'
  assert set(result['seconds']) == {
    'head',
    'structure',
    'baselines',
    'training',
    'test',
    'report',
  }
  assert 0 < result['winner']['params'] <= 1000
  assert result['winner']['val_accuracy'] is not None
  assert result['allocation'].items() >= {'budget': 1000, 'proposed': False, 'epochs': 3}.items()


def test_its_structure_is_the_one_that_was_written_before_training(gradient_run):
  workdir, result = gradient_run
  described = read_json(workdir / 'structure' / 'genome.json')
  assert described['genome'] == result['winner']['genome']
  assert described == read_json(workdir / 'genome.json')
  forms = {layer[tensor] for layer in described['layers'] for tensor in 'CD'}
  assert forms <= {'none', 'vector'}


def test_what_head_and_gradient_cost_the_training_has_less(gradient_run, config):
  workdir, _ = gradient_run
  lines = read_lines(workdir / 'metrics.jsonl', 'metrics', dict[str, Any])
  last = {line['stage']: line['epoch'] for line in lines}
  assert last == {'head': 1, 'baselines/linear': 5, 'training': 2}
  assert check_config(config).allocation.epochs() == 5 - last['training']


def test_its_report_says_where_it_pays_and_why(gradient_run):
  workdir, result = gradient_run
  page = html_pages.read(workdir)
  text = page.words()
  assert 'Structure and weights come from the training images alone' in text
  titles = ['layer', 'A vector', 'A LoRA', 'B LoRA', 'C vector', 'E vector']
  assert titles in page.rows()
  assert f'up to {result["budget"]:,} parameters' in text
  assert 'They count as 3 epochs' in text
  assert 'supernet' not in text


def test_its_folded_model_opens(gradient_run):
  workdir, result = gradient_run
  assert Classifier(str(workdir)).classes == tuple('0123456789')
  assert result['fold_max_abs_diff'] < 1e-4


def test_tables_of_runs_and_suites_read_its_result(gradient_run):
  _, result = gradient_run
  assert 'winner, gradient' in run_page.table(result)
  tasks = ['generalization/0', 'generalization/1']
  seeds = {task: {**result, 'task': task} for task in tasks}
  for row in seeds.values():
    others = dict.fromkeys(('v2', 'sketch', 'a', 'r'), 0.5)
    row['winner'] = {**row['winner'], 'other_test_accuracies': others}
    row['linear'] = {**row['linear'], 'other_test_accuracies': others}
  board = scoreboard.Board('generalization/all', tasks, seeds)
  rows = scoreboard.own_rows(board)
  assert [row.method for row in rows] == ['ours, gradient', 'ours, linear probe']
  told = suite_page.tell_protocol(board)
  assert told.startswith('The structures of ours were chosen without validation images')
  [agreement] = suite_page.agreements(board)
  assert 'another trains 100% in the same form' in agreement


def test_a_run_that_is_killed_in_its_structure_resumes_to_the_same_one(
  prepared, gradient_run, monkeypatch
):
  workdir, _ = gradient_run

  def be_killed(path, arrays, kind):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(structures, 'write_arrays', be_killed)
    with pytest.raises(KeyboardInterrupt):
      structures.find(prepared)
  found = structures.find(prepared)
  expected = read_arrays(workdir / 'structure' / 'allocation.npz')
  written = read_arrays(prepared.path('structure', 'allocation.npz'))
  assert found.genome.tolist() == expected['genome'].tolist()
  assert written.keys() == expected.keys()
  for name, values in expected.items():
    np.testing.assert_array_equal(written[name], values)


def test_a_gradient_that_is_noise_borrows_from_shifts_of_the_same_images(prepared, config):
  config = changed(config, allocation__prior='shifts')
  run = prepare(check_config(config), prepared.path('..', 'borrowing'))
  place = run.place('gradient')
  prior = allocate_shifts(run, place, budget=1000, key=run.key(Stream.PRIOR))
  again = allocate_shifts(run, place, budget=1000, key=run.key(Stream.PRIOR))
  np.testing.assert_array_equal(prior.genome, again.genome)
  assert prior.values.B_lora.shape[:2] == (4, len(place.adapted.spec))
  clear = dataclasses.replace(prior, signal=0.5)
  options = {'budget': 1000, 'key': run.key(Stream.STRUCTURE), 'folder': 'structure'}
  warm = Place(place.adapted, structures.train_head(run, place))
  found = structures.allocate_once(run, warm, **options, prior=clear)
  assert 0 < found.borrowed <= 1
  read = structures.allocate_once(run, warm, **options)
  assert read.borrowed == found.borrowed
  np.testing.assert_array_equal(read.genome, found.genome)
  result = {'protocol': 'honest', 'allocation': {'head_epochs': 1, 'epochs': 5}, 'seconds': {}}
  text = structure.tell_choice(found, result)
  assert 'of telling which way the same images were shifted' in text


def test_the_head_is_that_of_training_under_the_whole_model(config, tmp_path):
  config = changed(config, model__drop_path=0.0)
  found = []
  for name in ('alone', 'whole'):
    run = prepare(check_config(config), str(tmp_path / name))
    if name == 'alone':
      variables = structures.train_head(run, run.place('gradient'))
    else:
      training = structures.head_stage(run, run.place('gradient'))
      variables = train(run, dataclasses.replace(training, head=None), run.variables)
    found.append(variables['params']['head'])
  assert np.abs(found[0]['kernel']).max() > 0
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), *found)


def test_a_head_that_is_warm_and_a_structure_that_is_found_cost_nothing_again(
  prepared, gradient_run, monkeypatch
):
  workdir, _ = gradient_run
  shutil.copytree(workdir / 'structure', prepared.path('structure'))
  monkeypatch.setattr(HeadAlone, 'features', None)
  monkeypatch.setattr(structures, 'compile_ahead', None)
  assert structures.find(prepared).genome.tolist() == read_json(workdir / 'genome.json')['genome']


def test_a_structure_that_was_found_is_read(prepared, gradient_run, monkeypatch):
  workdir, _ = gradient_run
  shutil.copytree(workdir / 'structure', prepared.path('structure'))
  monkeypatch.setattr(structures, 'allocate', None)
  found = structures.find(prepared)
  assert found.genome.tolist() == read_json(workdir / 'genome.json')['genome']
  assert found.allocation.count_params() == read_json(workdir / 'genome.json')['params']
  # Its subnet is the base model with a warm head.
  images = prepared.preprocess(prepared.data('train').images[:4])
  start = jax.jit(found.place.adapted.fix(found.genome).apply)(found.variables, images)
  base = jax.jit(prepared.adapted.model.apply)({'params': found.variables['params']}, images)
  np.testing.assert_allclose(start, base, atol=1e-5)
  assert np.abs(found.variables['params']['head']['kernel']).max() > 0


@pytest.mark.full
def test_a_run_that_is_stopped_after_its_head_goes_on_to_the_same_result(
  config, gradient_run, tmp_path
):
  _, result = gradient_run
  asked = iter([False] * 2 + [True] * 100)
  workdir = tmp_path / 'stopped'
  with pytest.raises(Stopped, match='goes on from there'):
    experiment.run(config, str(workdir), lambda: next(asked))
  assert not (workdir / 'structure').exists()
  assert without_seconds(experiment.run(config, str(workdir))) == without_seconds(result)


@pytest.mark.parametrize('content', ['{"genome": [[0, 3, 0, 0, 0]]}', '[]', '{"layers": []}', '{'])
def test_a_file_without_a_genome_of_the_model_is_named(config, tmp_path, content):
  path = tmp_path / 'other.json'
  path.write_text(content)
  with pytest.raises(ValueError, match=r'other\.json.*'):
    experiment.run(changed(config, structure=str(path)), str(tmp_path / 'run'))


def test_a_genome_file_means_the_same_in_a_space_with_other_ranks(config, tmp_path):
  run = prepare(check_config(changed(config, structure='lora:2')), str(tmp_path))
  narrow = prepare(
    check_config(changed(config, structure='lora', space__ranks=(2,))), f'{tmp_path}/narrow'
  )
  expected = preset(narrow.adapted.spec, 'lora:2@qkv')
  path = tmp_path / 'genome.json'
  path.write_text(json.dumps(genome_to_json(narrow.adapted.spec, expected)))
  found = structures.named_genome(run.adapted.spec, str(path), budget=None)
  assert found.tolist() == preset(run.adapted.spec, 'lora:2@qkv').tolist()


def test_a_given_structure_is_kept_although_its_file_is_gone(config, tmp_path, monkeypatch):
  path = tmp_path / 'mine.json'
  monkeypatch.setenv('HOME', str(tmp_path))
  settings = changed(config, structure='~/mine.json')
  run = prepare(check_config(settings), str(tmp_path / 'run'))
  genome = preset(run.adapted.spec, 'lora:1@qkv')
  path.write_text(json.dumps(genome_to_json(run.adapted.spec, genome)))
  assert structures.find(run).genome.tolist() == genome.tolist()
  os.remove(path)
  assert structures.find(run).genome.tolist() == genome.tolist()


@pytest.mark.parametrize('number, folds, batch, devices', [(800, 8, 64, 1), (101, 4, 7, 2)])
def test_folds_are_equal_and_share_no_image(number, folds, batch, devices):
  indices = structures.fold_indices(jax.random.key(0), number, folds, batch, devices)
  assert len(np.unique(indices)) == indices.size
  assert indices.size > 0.8 * number
  assert len(indices) % folds == 0
  assert indices.shape[1] <= batch
  assert indices.shape[1] % devices == 0


@pytest.fixture(scope='module')
def search_with_rows(run_config, tmp_path_factory):
  """(workdir, result) of a search beside which a gradient's structure and a placed LoRA stand."""
  workdir = tmp_path_factory.mktemp('rows') / 'run'
  config = changed(run_config, presets=('gradient', 'lora:2@qkv', 'lora'), supernet__epochs=5)
  config.allocation.update(head_epochs=1, folds=4, prior=None)
  return workdir, experiment.run(config, str(workdir))


@pytest.mark.full
def test_rows_beside_a_search_have_a_space_of_their_own(search_with_rows):
  workdir, result = search_with_rows
  assert list(result['presets']) == ['gradient', 'lora:2@qkv', 'lora']
  assert result['presets']['lora']['label'] == 'lora:4'
  assert 0 < result['presets']['gradient']['params'] <= 1000
  assert result['presets']['lora:2@qkv']['params'] == 2 * 2 * (16 + 48)
  assert result['evaluations'] == 12
  described = read_json(workdir / 'structure' / 'genome.json')
  assert described['params'] == result['presets']['gradient']['params']
  assert "The gradient's structure, in numbers" in html_pages.read(workdir).text


@pytest.mark.full
def test_a_search_finds_the_same_with_and_without_rows_beside_it(search_with_rows, run_config):
  workdir, result = search_with_rows
  config = changed(run_config, presets=('lora',), supernet__epochs=5)
  alone = experiment.run(config, str(workdir.parent / 'alone'))
  for name in ('winner', 'winner_supernet', 'linear', 'hypervolume'):
    assert alone[name] == result[name]
  assert alone['presets']['lora'] == result['presets']['lora']


@pytest.mark.slow
def test_a_comparison_trains_each_seeds_own_structure_within_each_budget(run_config, tmp_path):
  config = changed(run_config, job='compare', budget=None, presets=(), supernet__epochs=5)
  config.compare.update(methods=('gradient', 'lora:1@qkv'), budgets=(600, 900), seeds=2)
  config.compare.rate.update(gradient=1e-2)
  config.compare.rates = (1e-2,)
  config.allocation.update(head_epochs=1, folds=4, prior=None)
  result = comparison.run(config, str(tmp_path))
  rows = result['methods']
  assert rows.keys() == {'gradient-600', 'gradient-900', 'lora:1@qkv'}
  assert all(0 < row['params'] <= 600 for row in rows['gradient-600'])
  assert all(600 < row['params'] <= 900 for row in rows['gradient-900'])
  assert all(len(genomes) == 2 for genomes in result['structures'].values())
  text = html_pages.read(tmp_path).words()
  assert "the gradient's structure, at most 600" in text
  assert 'Of the tensors that one of 2 seeds trains' in text
  os.remove(tmp_path / 'result.json')
  os.remove(tmp_path / 'trained' / 'gradient-600-42.npz')
  again = comparison.run(config, str(tmp_path))
  assert again['structures'] == result['structures']
  assert [row['test_accuracy'] for row in again['methods']['gradient-600']] == [
    row['test_accuracy'] for row in rows['gradient-600']
  ]


@pytest.mark.slow
def test_a_linear_structure_is_its_own_probe(config, tmp_path):
  short = changed(config, structure='linear', training__epochs=1, training__warmup_epochs=0)
  result = experiment.run(short, str(tmp_path / 'run'))
  assert result['linear'].items() <= result['winner'].items()
  assert (result['winner']['params'], result['presets']) == (0, {})
  assert 'as accurate as the linear probe' in html_pages.read(tmp_path / 'run').text
