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
from glora_jax.vision.runs import experiment, job
from glora_jax.vision.runs.backbone import load_backbone
from glora_jax.vision.runs.config import check_config
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.fitting import choose_prior, fit_batches
from glora_jax.vision.runs.settings import (
  AllocationSettings,
  ModelSettings,
  RunSettings,
  TrainingSettings,
)
from glora_jax.vision.runs.stage import keys_of
from glora_jax.vision.runs.workdir import LOCK, Stopped, freeze_test_list


def prepared(config, workdir):
  workdir.mkdir()
  with job.begin(check_config(config), stages_of(config), str(workdir), never) as context:
    return context


def fitted(settings, counts=None):
  """Settings with batches that images fill."""
  splits = [split for stage in experiment.stages_of(settings) for split in stage.splits]
  return fit_batches(settings, splits, counts or COUNTS, None)


COUNTS = {'train': 18, 'val': 4, 'test': 4, 'train+val': 22}


def test_a_batch_that_the_images_do_not_fill_shrinks_and_says_so(caplog):
  found = fitted(RunSettings())
  assert 'training.batch_size=64 is more than the 18 training images' in caplog.text
  assert (found.training.batch_size, found.finetuning.batch_size) == (18, 18)
  accumulating = RunSettings(training=TrainingSettings(accumulate=4))
  assert fitted(accumulating).training.batch_size == 16
  paths = RunSettings(sampling=Sampling(paths=5))
  assert fitted(paths).training.batch_size == 15
  assert fitted(RunSettings(), {**COUNTS, 'train': 64}) == RunSettings()


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


def test_a_run_notes_that_an_epoch_has_few_steps_or_a_batch_is_smaller_than_asked_for(
  run_config, photos, tmp_path, caplog
):
  context = prepared(changed(run_config, task=f'folder:{photos}'), tmp_path / 'run')
  *_, note = context.task.notes
  assert note.startswith('16 training images in batches of 16: 1 step an epoch; ')
  assert note in caplog.text
  config = changed(run_config, task=f'folder:{photos}', training__batch_size=64)
  notes = context_of(config, tmp_path / 'large').task.notes
  assert any(note.startswith('training.batch_size=64 is more than the') for note in notes)


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
  right = changed(wrong, model__weights=run_config.model.weights)
  with pytest.raises(Stopped, match='before the stage supernet'):
    experiment.run(right, str(workdir), stop=always)
  assert ',a/' in (workdir / 'images.csv').read_text()
  (workdir / 'notes.txt').write_text('mine')
  with pytest.raises(Stopped):  # other images: nothing has been trained on the first ones
    experiment.run(run_config, str(workdir), stop=always)
  assert ',a/' not in (workdir / 'images.csv').read_text()
  assert (workdir / 'notes.txt').read_text() == 'mine'
  assert read_json(workdir / 'config.json')['task'] == 'digits'


def test_stages_of_images_that_have_changed_run_again_until_the_test(
  run_config, photos, tmp_path, caplog
):
  config = changed(run_config, task=f'folder:{photos}')
  workdir = tmp_path / 'run'

  def start_training():
    with pytest.raises(Stopped, match='supernet'):
      experiment.run(config, str(workdir), stop=(workdir / 'supernet').exists)

  start_training()
  key = read_json(workdir / 'supernet' / 'stage.json')['key']
  Image.new('L', (9, 9)).save(min((photos / 'a').iterdir()))
  start_training()
  assert 'the images are not those of the last start (1 changed; a/' in caplog.text
  assert 'run again: supernet' in caplog.text
  freeze_test_list(workdir, {'version': '1', 'result': 'search', 'structures': {}})
  for path in (photos / 'b').iterdir():
    Image.new('L', (9, 9)).save(path)
  with pytest.raises(ValueError, match=r'test images were read \(10 changed; b/'):
    experiment.run(config, str(workdir))
  assert read_json(workdir / 'supernet' / 'stage.json')['key'] == key


TRAININGS = ['training/linear', 'training/lora']


@pytest.mark.parametrize(
  'fields, again',
  [
    ({}, {'test': [], 'val': [*TRAININGS, 'search', 'finetune']}),
    ({'protocol': 'paper'}, {'test': ['search']}),
    (
      {'structure': 'gradient'},
      {'test': [], 'val': [*TRAININGS, 'training/gradient']},
    ),
  ],
)
def test_a_changed_image_runs_again_what_uses_its_split_and_nothing_more(
  fields, again, run_config, photos, tmp_path
):
  config = changed(run_config, task=f'folder:{photos}', training__epochs=5, **fields)
  stages = [stage for stage in stages_of(config) if stage.has_folder]
  context = context_of(config, tmp_path / 'run')
  keys = keys_of(context, stages)
  for split, expected in {**again, 'train': [stage.name for stage in stages]}.items():
    Image.new('L', (9, 9)).save(context.task.open(split)[0].path)
    before, keys = keys, keys_of(context_of(config, tmp_path / 'run'), stages)
    assert [name for name in keys if keys[name] != before[name]] == expected


def write_weights_and_scores(folder, config, number):
  """Two files, which depend on the number."""
  model, params, metadata = weights.load(config.model.weights)
  params['head']['bias'] = params['head']['bias'] + number
  weights.save(str(folder / 'model.safetensors'), model, params, metadata)
  spec = context_of(config, folder / 'run').adapted.spec
  of_vectors = 1.0 + number * np.arange(len(spec))
  of_ranks = of_vectors[:, None]
  scores = UnitScores(of_vectors, of_ranks, of_ranks, of_vectors, of_vectors)
  transfer.write(folder / 'scores.json', spec, [scores])


@pytest.mark.parametrize(
  'structure, field, again',
  [
    ('gradient', 'model__weights', ['head', 'gradient', 'structure', 'training/gradient']),
    ('gradient', 'allocation__transfer', ['gradient', 'structure', 'training/gradient']),
    ('transfer', 'allocation__transfer', ['structure', 'training/transfer']),
  ],
)
def test_a_moved_file_of_weights_or_scores_runs_nothing_again_and_another_one_what_reads_it(
  structure, field, again, run_config, tmp_path
):
  config = changed(run_config, structure=structure, presets=None, training__epochs=5)
  for number, name in enumerate(('first', 'other')):
    write_weights_and_scores(tmp_path / name, changed(config, structure='gradient'), number)
  shutil.copytree(tmp_path / 'first', tmp_path / 'moved')
  found = []
  for place in ('first', 'moved', 'other'):
    folders = {'model__weights': 'first', 'allocation__transfer': 'first', field: place}
    names = {'model__weights': 'model.safetensors', 'allocation__transfer': 'scores.json'}
    paths = {name: str(tmp_path / folder / names[name]) for name, folder in folders.items()}
    context = context_of(changed(config, **paths), tmp_path / 'run')
    stages = [stage for stage in stages_of(context.settings) if stage.has_folder]
    found.append(keys_of(context, stages))
  first, moved, other = found
  assert moved == first
  assert [name for name in other if other[name] != first[name]] == again


def test_no_image_is_decoded_twice(run_config, photos, tmp_path, read):
  config = changed(run_config, task=f'folder:{photos}', train_on='train+val')
  found = context_of(config, tmp_path / 'run')
  assert len(set(read)) == len(read) == 20
  for first, *others in (('train+val', 'train', 'val'), ('test',)):
    parts = [np.asarray(found.images.split(split).images) for split in (first, *others)]
    np.testing.assert_array_equal(parts[0], np.concatenate(parts[1:] or parts))
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
  for given, found in ((None, 'inception'), ('clip', 'clip')):
    caplog.clear()
    settings = ModelSettings(num_heads=4, normalization=given)
    assert load_backbone(settings, theirs, 3)[2]['normalization'] == found
    assert ('assuming' in caplog.text) == (given is None)
  assert load_backbone(ModelSettings(normalization='clip'), ours, 3)[2]['normalization'] == 'clip'


def test_a_folder_of_another_model_is_found_before_the_last_stage(run_config, tmp_path):
  (tmp_path / LOCK).touch()
  weights.save(tmp_path / 'folded' / 'other.safetensors', *weights.load(weights.EMBEDDED_FILE))
  with pytest.raises(ValueError, match=r'another checkpoint \(other.safetensors'):
    experiment.run(run_config, str(tmp_path), stop=always)


@pytest.mark.parametrize(
  'side, name, is_noted',
  [(100, 'embedded', True), (99, 'embedded', False), (100, None, False)],
)
def test_the_small_backbone_is_said_to_suit_trials_of_photographs_only(
  side, name, is_noted, run_config, tmp_path
):
  """Also if some of the images are small."""
  for number in range(20):
    path = tmp_path / 'photos' / 'ab'[number % 2] / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (120, side if number % 4 < 2 else 8)).save(path)
  config = changed(run_config, task=f'folder:{tmp_path / "photos"}', training__batch_size=4)
  config.model.weights = name or run_config.model.weights
  notes = prepared(config, tmp_path / 'run').task.notes
  assert ('weights=dinov2-S/14' in ' '.join(notes)) == is_noted
