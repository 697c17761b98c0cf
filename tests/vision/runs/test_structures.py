"""Structures that are not searched: from a gradient, named or given, or the whole base."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from comparing import assert_refused
from tiny_runs import changed, context_of

from glora_jax.files import read_json, read_tensors
from glora_jax.method.genomes import genome_to_json
from glora_jax.method.presets import preset
from glora_jax.search import transfer
from glora_jax.search.allocate import allocate
from glora_jax.search.choice import choose
from glora_jax.training.fit import linear_probe
from glora_jax.training.losses import classification
from glora_jax.vision.data.pipeline import in_rows
from glora_jax.vision.files import read_lines
from glora_jax.vision.models.weights import EMBEDDED_TRANSFER
from glora_jax.vision.runs import experiment
from glora_jax.vision.runs.backbone import Stream
from glora_jax.vision.runs.config import check_config
from glora_jax.vision.runs.stage import walk
from glora_jax.vision.runs.stages import allocation, results
from glora_jax.vision.runs.stages.allocation import (
  allocate_shifts,
  equal_batches,
  head_recipe,
)
from glora_jax.vision.runs.workdir import Stopped


@pytest.fixture(scope='module')
def config(run_config):
  """The config of a run that reads its structure off a gradient."""
  config = changed(run_config, structure='gradient', presets=(), report__metric='balanced')
  config.allocation.update(head_epochs=1, prior=None)
  config.training.update(epochs=5, warmup=1 / 5, batch_size=32, learning_rate=1e-2)
  return config


@pytest.fixture(scope='module')
def structure_run(config, tmp_path_factory):
  """The workdir of a run that nothing disturbed, up to its structure."""
  workdir = tmp_path_factory.mktemp('gradient') / 'run'
  with pytest.raises(Stopped):
    experiment.run(config, str(workdir), (workdir / 'structure' / 'stage.json').exists)
  return workdir


@pytest.fixture(scope='module')
def gradient_run(structure_run, config):
  """(workdir, result) of this run, which goes on from there."""
  return structure_run, experiment.run(config, str(structure_run))


def found_by(context, stage='structure'):
  """The structure of a run, or the result of a stage before it."""
  return walk(context, experiment.stages_of(context.settings), until=stage)


@pytest.fixture
def prepared(config, structure_run, tmp_path):
  """The run up to its structure, in a workdir of its own that has the same warm head."""
  workdir = tmp_path / 'prepared'
  shutil.copytree(structure_run / 'head', workdir / 'head')
  return context_of(config, workdir)


def test_the_result_has_all_keys_and_the_structure_that_was_written_before_training(
  gradient_run, config
):
  workdir, result = gradient_run
  assert result.keys() >= results.ResultFile.__annotations__.keys()
  assert result['structure'] == 'gradient'
  assert {result[name] for name in ('finetuned', 'evaluations', 'hypervolume')} == {None}
  stages = ['head', 'gradient', 'structure', 'training', 'list', 'test']
  assert list(result['seconds']) == stages
  assert 0 < result['structures']['gradient']['params'] <= 1000
  assert result['allocation'].items() >= {'budget': 1000, 'proposed': False, 'epochs': 2}.items()
  described = read_json(workdir / 'structure' / 'genome.json')
  assert described['genome'] == result['structures']['gradient']['genome']
  forms = {layer[tensor] for layer in described['layers'] for tensor in 'CD'}
  assert forms <= {'none', 'vector'}
  for row in result['structures'].values():  # digits are nearly equally frequent
    assert 0 < abs(row['val_balanced_accuracy'] - row['val_accuracy']) < 0.05
  # What head and gradient cost, the training has less.
  lines = read_lines(workdir / 'metrics.jsonl', 'metrics', dict[str, Any])
  last = {line['stage']: line['epoch'] for line in lines}
  assert last == {'head': 1, 'training/linear': 5, 'training/gradient': 3}
  assert check_config(config).allocation.epochs() == 2


def test_a_run_that_is_killed_in_its_gradient_resumes_to_the_same_one(
  prepared, structure_run, monkeypatch
):
  def be_killed(path, arrays, kind, metadata):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(allocation, 'write_tensors', be_killed)
    with pytest.raises(KeyboardInterrupt):
      found_by(prepared)
  found = found_by(prepared)
  assert found.genome.tolist() == read_json(structure_run / 'structure' / 'genome.json')['genome']
  written, expected = (
    read_tensors(folder / 'gradient' / 'allocation.safetensors', 'allocation')[0]
    for folder in (pathlib.Path(prepared.workdir), structure_run)
  )
  jax.tree.map(np.testing.assert_array_equal, written, expected)


@pytest.mark.parametrize('resident', [2**32, 0])
def test_a_head_on_features_is_that_of_training_under_the_whole_model(config, tmp_path, resident):
  """Nothing is augmented or dropped, and images may be streamed."""
  fields = {'model__drop_path': 0.5, 'augment__erasing': 1.0, 'data__max_resident': resident}
  run = context_of(changed(config, **fields), tmp_path)
  place, data = run.place('gradient'), run.images.split('train')
  expected = linear_probe(
    place.adapted,
    place.variables,
    classification(lambda images, key: run.preprocess(images)),
    data if resident else data.images,
    head_recipe(run.settings),
    key=run.key(Stream.HEAD),
  )['params']
  found = found_by(run, 'head').variables['params']
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-5), found, expected)
  assert np.abs(found['head']['kernel']).max() > 1e-2


def test_shifts_of_streamed_images_are_the_prior_that_those_on_the_device_are(config, tmp_path):
  """Memory is no reason for another structure."""
  found = []
  for most in (2**30, 0):
    run = context_of(changed(config, data__max_resident=most), tmp_path / str(most))
    found.append(allocate_shifts(run))
  resident, streamed = found
  assert resident.signal == streamed.signal
  jax.tree.map(np.testing.assert_array_equal, resident.scores, streamed.scores)


def test_a_gradient_that_is_noise_borrows_from_shifts_of_the_same_images(
  prepared, config, monkeypatch
):
  run = context_of(changed(config, allocation__prior='shifts'), prepared.path('..', 'borrowing'))
  clear = dataclasses.replace(allocate_shifts(run), signal=0.5)
  monkeypatch.setattr(allocation, 'allocate_shifts', lambda context: clear)
  found, read = (found_by(run, 'gradient') for _ in range(2))
  assert 0 < found.borrowed == read.borrowed <= 1
  np.testing.assert_array_equal(read.genome, found.genome)


@pytest.mark.parametrize('budget', [None, 600])
def test_a_gradient_serves_every_budget_as_an_allocation_for_that_budget_alone_does(
  budget, structure_run, prepared
):
  shutil.copytree(structure_run / 'gradient', prepared.path('gradient'))
  found, warm = (found_by(prepared, stage) for stage in ('gradient', 'head'))
  batch_key, sketch_key = jax.random.split(prepared.key(Stream.STRUCTURE))
  split, batch_size = prepared.images.split('train'), prepared.settings.training.batch_size
  expected = allocate(
    warm.adapted,
    warm.variables,
    classification(prepared.preprocess),
    in_rows(split, equal_batches(batch_key, len(split.labels), batch_size)),
    budget=budget,
    key=sketch_key,
    progress=False,
  )
  chosen = allocation.choose_within(budget, found)
  assert chosen.genome.tolist() == expected.genome.tolist()
  assert (chosen.budget, chosen.proposed) == (expected.budget, expected.proposed)
  jax.tree.map(np.testing.assert_array_equal, chosen.variables, expected.variables)


def test_a_genome_file_is_of_any_ranks_and_is_kept_although_it_is_gone(
  config, tmp_path, monkeypatch
):
  narrow = changed(config, structure='lora', space__ranks=(2,), budget=None)
  spec = context_of(narrow, tmp_path / 'narrow').adapted.spec
  kept, other = (
    json.dumps(genome_to_json(spec, preset(spec, x))) for x in ('lora:2@qkv', 'linear')
  )
  path = tmp_path / 'mine.json'
  path.write_text(kept)
  monkeypatch.setenv('HOME', str(tmp_path))
  run = context_of(changed(config, structure='~/mine.json'), tmp_path / 'run')
  expected = preset(run.adapted.spec, 'lora:2@qkv').tolist()
  assert found_by(run).genome.tolist() == expected
  path.write_text(other)
  with pytest.raises(ValueError, match=r'mine\.json. has changed since this job began'):
    found_by(run)
  os.remove(path)
  assert found_by(run).genome.tolist() == expected


@pytest.mark.parametrize(
  'content, named',
  [
    (None, "x.json' is not a file"),
    ('[[0', 'x.json is damaged'),
    ('null', 'it holds None'),
    ('{"glora_jax": {"kind": "stage", "format": 1}}', 'is not a glora_jax genome file'),
    ('{"glora_jax": {"kind": "genome", "format": 999}}', 'by a later version'),
  ],
)
def test_a_file_without_a_genome_is_refused(config, tmp_path, content, named):
  path = tmp_path / 'x.json'
  if content is not None:
    path.write_text(content)
  kind = FileNotFoundError if content is None else ValueError
  config = changed(config, structure=str(path))
  assert_refused(named, context_of, config, tmp_path / 'run', kind=kind)


def test_scores_of_the_backbone_in_the_package_fill_a_budget(config, tmp_path):
  config = changed(config, structure='transfer', budget=5000, model__weights='embedded')
  run = context_of(config, tmp_path)
  scores = transfer.read(EMBEDDED_TRANSFER, run.adapted.spec).scores
  assert found_by(run).genome.tolist() == choose(run.adapted.spec, scores, 5000).tolist()


def test_a_file_of_transferred_scores_gives_the_same_structure(
  structure_run, prepared, config, tmp_path
):
  shutil.copytree(structure_run / 'gradient', prepared.path('gradient'))
  path = prepared.path('backbone.json')
  transfer.write(path, prepared.adapted.spec, [found_by(prepared).allocation.scores])
  config = changed(config, allocation__transfer=path, allocation__max_rank=3)
  run = context_of(changed(config, allocation__prior='transfer'), tmp_path / 'reading')
  prior = allocation.transfer_of(run)
  assert prior.scores.B_lora.shape[-1] == 3
  assert run.settings.allocation.epochs(borrowed=True) == 2
  run = context_of(changed(config, structure='transfer'), tmp_path / 'run')
  expected = choose(run.adapted.spec, prior.scores, 1000).tolist()
  for remove in (os.remove, str):
    assert found_by(run).genome.tolist() == expected
    remove(path)


@pytest.mark.parametrize('number, batch, devices', [(800, 64, 1), (101, 70, 2), (9, 8, 8)])
def test_batches_are_equal_and_share_no_image(number, batch, devices):
  indices = equal_batches(jax.random.key(0), number, batch, devices)
  assert len(np.unique(indices)) == indices.size > number - indices.shape[1]
  assert len(indices) >= min(8, number // devices)
  assert indices.shape[1] <= batch
  assert indices.shape[1] % devices == 0
