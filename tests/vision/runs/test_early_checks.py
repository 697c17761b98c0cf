"""What a later stage needs is checked before the first; after a start that fails another works."""

import os
import shutil

import numpy as np
import pytest
from label_lists import write_images
from PIL import Image
from places import FIXTURES
from tiny_runs import changed, context_of, stages_of

from glora_jax.files import read_json
from glora_jax.search import transfer
from glora_jax.search.unit_scores import UnitScores
from glora_jax.training.sampling import Sampling
from glora_jax.vision.models import weights
from glora_jax.vision.runs import experiment
from glora_jax.vision.runs.backbone import load_backbone
from glora_jax.vision.runs.fitting import choose_prior, fit_batches
from glora_jax.vision.runs.settings import (
  AllocationSettings,
  ModelSettings,
  RunSettings,
  TrainingSettings,
)
from glora_jax.vision.runs.stage import keys_of
from glora_jax.vision.runs.workdir import LOCK, Stopped


def fitted(settings, counts=None):
  """Settings with batches that images fill."""
  splits = [split for stage in experiment.stages_of(settings) for split in stage.splits]
  return fit_batches(settings, splits, counts or COUNTS, None)


COUNTS = {'train': 18, 'val': 4, 'test': 4, 'train+val': 22}


def test_a_batch_that_the_images_do_not_fill_shrinks_and_says_so(caplog):
  assert fitted(RunSettings(), {**COUNTS, 'train': 64}) == RunSettings()
  assert not caplog.text
  found = fitted(RunSettings())
  assert 'training.batch_size=64 is more than the 18 training images' in caplog.text
  assert (found.training.batch_size, found.finetuning.batch_size) == (18, 18)
  for fields, expected in (
    ({'training': TrainingSettings(accumulate=4)}, 16),
    ({'sampling': Sampling(paths=5)}, 15),
  ):
    assert fitted(RunSettings(**fields)).training.batch_size == expected


@pytest.mark.parametrize('name, prior', [('embedded', 'transfer'), ('mine', 'shifts')])
def test_a_backbone_without_scores_of_other_tasks_borrows_from_shifts(name, prior):
  model, allocation = ModelSettings(weights=name), AllocationSettings(prior='transfer')
  settings = RunSettings(structure='gradient', model=model, allocation=allocation)
  assert choose_prior(settings).allocation.prior == prior


@pytest.fixture
def photos(tmp_path):
  """Ten images of each of two classes, of which a run trains on eight."""
  write_images(tmp_path / 'photos', [f'{name}/{n}.png' for n in range(10) for name in 'ab'])
  return tmp_path / 'photos'


def test_a_run_notes_that_an_epoch_has_few_steps(run_config, photos, tmp_path, caplog):
  context = context_of(changed(run_config, task=f'folder:{photos}'), tmp_path / 'run')
  *_, note = context.task.notes
  assert note.startswith('16 training images in batches of 16: 1 step an epoch; ')
  assert note in caplog.text


def test_decoded_images_are_kept_apart_from_those_of_the_task(run_config, photos, tmp_path):
  config = changed(run_config, task=f'folder:{photos}', data__cache=str(photos / 'cache'))
  with pytest.raises(ValueError, match=rf'data.cache={photos}/cache is in {photos}, whose folders'):
    experiment.run(config, str(tmp_path / 'run'))
  assert set(os.listdir(photos)) == {'a', 'b'}


def test_a_corrected_config_starts_where_the_first_start_failed(run_config, photos, tmp_path):
  """The images of the first one are forgotten; what a user put there since is not."""
  workdir = tmp_path / 'run'
  wrong = changed(run_config, task=f'folder:{photos}', model__weights='typo')
  with pytest.raises(FileNotFoundError, match='typo'):
    experiment.run(wrong, str(workdir))
  workdir.joinpath('notes.txt').write_text('mine')
  # Other images: nothing has been trained on the first ones.
  right = changed(wrong, model__weights=run_config.model.weights)
  for config, is_first in ((right, True), (run_config, False)):
    with pytest.raises(Stopped, match='before the stage supernet'):
      experiment.run(config, str(workdir), stop=always)
    assert (',a/' in (workdir / 'images.csv').read_text()) == is_first
  assert (workdir / 'notes.txt').read_text() == 'mine'
  assert read_json(workdir / 'config.json')['task'] == 'digits'


def keys_in(config, workdir):
  """The keys of the stages of a config's run."""
  context = context_of(config, workdir)
  return keys_of(context, [stage for stage in stages_of(context.settings) if stage.has_folder])


TRAININGS = ['training/linear', 'training/lora']


@pytest.mark.parametrize(
  'fields, again',
  [
    ({}, {'test': [], 'val': [*TRAININGS, 'search', 'finetune']}),
    ({'protocol': 'paper'}, {'test': ['search']}),
    ({'structure': 'gradient'}, {'test': [], 'val': [*TRAININGS, 'training/gradient']}),
  ],
)
def test_a_changed_image_runs_again_what_uses_its_split_and_nothing_more(
  fields, again, run_config, photos, tmp_path
):
  config = changed(run_config, task=f'folder:{photos}', training__epochs=5, **fields)
  task, keys = context_of(config, tmp_path / 'run').task, keys_in(config, tmp_path / 'run')
  for split, expected in {**again, 'train': [*keys]}.items():
    Image.new('L', (9, 9)).save(task.open(split)[0].path)
    before, keys = keys, keys_in(config, tmp_path / 'run')
    assert [name for name in keys if keys[name] != before[name]] == expected


def write_weights_and_scores(folder, config, number):
  """Two files, which depend on the number."""
  model, params, metadata = weights.load(config.model.weights)
  params['head']['bias'] = params['head']['bias'] + number
  weights.save(str(folder / 'weights'), model, params, metadata)
  spec = context_of(changed(config, structure='gradient'), folder / 'run').adapted.spec
  ranks = 1.0 + number * np.arange(len(spec))[:, None]
  scores = UnitScores(ranks[:, 0], ranks, ranks, ranks[:, 0], ranks[:, 0])
  transfer.write(folder / 'scores', spec, [scores])


@pytest.mark.parametrize(
  'structure, moved, again',
  [
    ('gradient', 'weights', ['head', 'gradient', 'structure', 'training/gradient']),
    ('gradient', 'scores', ['gradient', 'structure', 'training/gradient']),
    ('transfer', 'scores', ['structure', 'training/transfer']),
  ],
)
def test_a_moved_file_of_weights_or_scores_runs_nothing_again_and_another_one_what_reads_it(
  structure, moved, again, run_config, tmp_path
):
  config = changed(run_config, structure=structure, presets=None, training__epochs=5)
  for number, name in enumerate(('first', 'other')):
    write_weights_and_scores(tmp_path / name, config, number)
  shutil.copytree(tmp_path / 'first', tmp_path / 'moved')
  found = []
  for folder in ('first', 'moved', 'other'):
    paths = {name: str(tmp_path / 'first' / name) for name in ('weights', 'scores')}
    paths[moved] = str(tmp_path / folder / moved)
    fields = {'model__weights': paths['weights'], 'allocation__transfer': paths['scores']}
    found.append(keys_in(changed(config, **fields), tmp_path / 'run'))
  assert found[0] == found[1]
  assert [name for name, key in found[2].items() if found[0][name] != key] == again


def test_no_image_is_decoded_twice(run_config, photos, tmp_path, read):
  config = changed(run_config, task=f'folder:{photos}', train_on='train+val')
  images = context_of(config, tmp_path / 'run').images
  assert len(set(read)) == len(read) == 20
  whole, *parts = (images.split(split).images for split in ('train+val', 'train', 'val'))
  np.testing.assert_array_equal(whole, np.concatenate(parts))
  assert len(images.split('test').images) == 2
  assert len(read) == 20


def always():
  return True


def test_a_normalization_that_weights_do_not_say_comes_from_the_config(tmp_path, caplog):
  model, params, metadata = weights.load(weights.EMBEDDED_FILE)
  ours = str(tmp_path / 'ours')
  weights.save(ours, model, params, {'image_size': metadata['image_size']})
  with pytest.raises(ValueError, match=r'set model\.normalization'):
    load_backbone(ModelSettings(), ours, 3)
  theirs = shutil.copy(FIXTURES / 'timm_vit' / 'model.safetensors', tmp_path)
  for path, given, found in (
    (ours, 'clip', 'clip'),
    (theirs, 'clip', 'clip'),
    (theirs, None, 'inception'),
  ):
    assert not caplog.text
    settings = ModelSettings(num_heads=4 if path == theirs else None, normalization=given)
    assert load_backbone(settings, path, 3)[2]['normalization'] == found
  assert 'assuming' in caplog.text


def test_a_folder_of_another_model_is_found_before_the_last_stage(run_config, tmp_path):
  (tmp_path / LOCK).touch()
  weights.save(tmp_path / 'folded' / 'other.safetensors', *weights.load(weights.EMBEDDED_FILE))
  with pytest.raises(ValueError, match=r'another checkpoint \(other.safetensors'):
    experiment.run(run_config, str(tmp_path), stop=always)


@pytest.mark.parametrize(
  'side, name, is_noted', [(100, 'embedded', True), (99, 'embedded', False), (100, None, False)]
)
def test_the_small_backbone_is_said_to_suit_trials_of_photographs_only(
  side, name, is_noted, run_config, photos, tmp_path
):
  """Also if some of the images are small."""
  for path in [*photos.rglob('*.png')][::2]:
    Image.new('RGB', (120, side)).save(path)
  config = changed(run_config, task=f'folder:{photos}')
  config.model.weights = name or run_config.model.weights
  notes = context_of(config, tmp_path / 'run').task.notes
  assert ('weights=dinov2-S/14' in ' '.join(notes)) == is_noted
