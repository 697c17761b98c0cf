"""How a run is prepared, and the line that it says of itself when it begins."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest
from label_lists import write_images
from tiny_runs import changed

import glora_jax
from glora_jax.files import read_json, write_json
from glora_jax.models.vit import ViT
from glora_jax.runs import lifecycle
from glora_jax.runs.workdir import claim_workdir


def test_the_line_about_a_run_counts_what_is_trained():
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2, dtype=jnp.bfloat16)
  images, key = jnp.zeros((1, 16, 16, 3)), jax.random.key(0)
  adapted = glora_jax.adapt(model, images)
  variables = jax.eval_shape(lambda: adapted.init(key, model.init(key, images)['params']))
  mesh = jax.make_mesh(
    (1, 1),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  heads = 12 * 3 + 3
  line = lifecycle.describe(adapted, variables, mesh)
  supports, params = (
    sum(leaf.size for leaf in jax.tree.leaves(variables[name])) for name in ('glora', 'params')
  )
  assert line.startswith(f'{jax.device_count()} x cpu, mesh: data 1, model 1; ')
  assert f'{supports:,} in supports, {heads} in heads (float32)' in line
  assert f'{params - heads:,} frozen (float32)' in line
  assert line.endswith('computed in bfloat16')


@pytest.fixture
def photos(tmp_path):
  """Ten images of each of two classes, of which a run trains on eight."""
  write_images(tmp_path / 'photos', [f'{name}/{n}.png' for n in range(10) for name in 'ab'])
  return tmp_path / 'photos'


def test_what_a_start_left_that_was_killed_before_its_config_is_made_anew(
  run_config, photos, tmp_path
):
  """Its split may be of other images than the next start has."""
  workdir = tmp_path / 'run'
  workdir.mkdir()
  (workdir / 'split.json').write_text('{"identity": "of other images"}')
  run = lifecycle.rehearse(changed(run_config, task=f'folder:{photos}'), str(workdir))
  assert read_json(workdir / 'split.json')['identity'] != 'of other images'
  assert len(run.task.open('train').labels) == 16


def test_folds_are_of_the_images_that_are_left(run_config, photos, tmp_path):
  options = {'structure': 'gradient', 'presets': (), 'data__skip_broken': True}
  config = changed(run_config, task=f'folder:{photos}', allocation__folds=16, **options)
  run = lifecycle.rehearse(config, str(tmp_path / 'whole'))
  path = run.task.open('train').name(0)
  with open(path, 'wb') as file:
    file.write(b'no image')
  with pytest.raises(ValueError, match=r'allocation\.folds=16 is more than the 15 training images'):
    lifecycle.rehearse(config, str(tmp_path / 'without'))


def test_what_a_finished_run_records_no_more_is_named(run_config, tmp_path, caplog):
  workdir = str(tmp_path / 'run')
  os.makedirs(os.path.join(workdir, 'profile'))
  claim_workdir(run_config, workdir)
  write_json(os.path.join(workdir, 'result.json'), {'task': 'digits', 'sha256': {}}, 'result')
  config = changed(run_config, watch__profile='search')
  finished = functools.partial(lifecycle.carry_out, stop=lifecycle.never, stages=None, shape=dict)
  sentence = "watch.profile='search' records nothing any more: this run is finished."
  assert finished(config, workdir)['task'] == 'digits'
  assert caplog.messages == [sentence]
  (tmp_path / 'run' / 'profile' / 'trace').write_text('')
  caplog.clear()
  finished(config, workdir)
  assert not caplog.messages
