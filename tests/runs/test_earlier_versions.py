"""What version 0.1.0 wrote opens.

That is a finished run with its adapter, folded model and training states, the code in its report,
and two runs that were killed, in training and in the search.

`tests/data/v0.1.0` was made by 0.1.0 itself, in a folder with `tiny.safetensors`. The config's
fields that are gone since were taken out.
"""

import logging
import os
import re
import shutil
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from places import ROOT

import glora_jax
from glora_jax.files import read_arrays, read_json, write_json
from glora_jax.models import weights
from glora_jax.models.classifier import Classifier
from glora_jax.records import read_lines
from glora_jax.runs import experiment
from glora_jax.runs.config import default_config
from glora_jax.runs.stages import evaluation
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import TrainState
from glora_jax.training.recipe import Recipe

WRITTEN = ROOT / 'tests' / 'data' / 'v0.1.0'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A copy of what 0.1.0 wrote, and the folder that this process is in, as 0.1.0 was."""
  shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def config_of_then():
  """The config as its file gives it today; 0.1.0's had these fields and the defaults of its day."""
  config = default_config()
  config.model.weights, config.data.dir = 'tiny.safetensors', 'tfds'
  config.budget, config.checkpoint_epochs = 1000, 1
  config.supernet.update(epochs=3, warmup_epochs=1, batch_size=16, learning_rate=1e-2)
  config.search.update(population=4, generations=2, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup_epochs=0, learning_rate=1e-3)
  return config


def metrics(workdir):
  return read_lines(workdir / 'metrics.jsonl', 'metrics', dict[str, Any])


def adapted_base():
  model, params, metadata = weights.load(WRITTEN / 'tiny.safetensors')
  images = jnp.zeros((1, metadata['image_size'], metadata['image_size'], 3))
  return glora_jax.adapt(model, images), params


def test_a_finished_run_is_read_and_not_run_again(folder):
  before = {path: path.stat().st_mtime_ns for path in (folder / 'finished').rglob('*.*')}
  assert experiment.run(config_of_then(), 'finished') == read_json(folder / 'finished/result.json')
  assert before == {path: path.stat().st_mtime_ns for path in (folder / 'finished').rglob('*.*')}


def test_another_config_is_still_refused_by_name(folder):
  config = config_of_then()
  config.supernet.learning_rate = 2e-2
  with pytest.raises(ValueError, match=r'supernet.learning_rate was 0.01 and is now 0.02'):
    experiment.run(config, 'finished')


def test_an_adapter_folds_to_the_folded_model():
  adapted, params = adapted_base()
  variables, genome = glora_jax.load_adapter(
    WRITTEN / 'finished/adapter.safetensors', adapted, params
  )
  assert genome.tolist() == read_json(WRITTEN / 'finished/genome.json')['genome']
  _, folded, _ = weights.load(WRITTEN / 'finished/folded')
  found = adapted.fold(variables, genome)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, folded)


def test_the_folded_model_names_its_classes():
  classifier = Classifier(str(WRITTEN / 'finished'))
  assert classifier.classes == tuple('0123456789')


def test_the_code_in_its_report_runs(folder, capsys):
  Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save('photo.jpg')
  code = re.search(r'```python\n(.*?)```', (folder / 'finished/report.md').read_text(), re.DOTALL)
  exec(code.group(1), {})
  assert capsys.readouterr().out.strip() in set('0123456789')


def test_a_test_list_of_whole_storage_is_still_the_frozen_one(tmp_path):
  now = {'winner': {'genome': [[0, 3, 0, 0, 0]], 'storage': 'cut', 'weights': 'of what is used'}}
  then = {'winner': {'genome': [[0, 3, 0, 0, 0]], 'weights': 'of all'}}
  run = types.SimpleNamespace(path=lambda name: str(tmp_path / name))
  write_json(run.path('test_list.json'), then)
  evaluation.freeze(run, now)
  assert read_json(run.path('test_list.json')) == now
  other = {'winner': {**now['winner'], 'weights': 'others'}}
  with pytest.raises(ValueError, match='was frozen with other subnets'):
    evaluation.freeze(run, other)
  write_json(run.path('test_list.json'), {'winner': {**then['winner'], 'genome': [[0] * 5]}})
  with pytest.raises(ValueError, match='was frozen with other subnets'):
    evaluation.freeze(run, now)


def test_a_training_state_opens(folder):
  adapted, params = adapted_base()
  trainable, _ = adapted.split(adapted.init(jax.random.key(0), params))
  optimizer = Recipe(epochs=3, batch_size=16, warmup_epochs=1).optimizer(800)
  template = TrainState(trainable, optimizer.init(trainable), 0)
  with TrainingCheckpoints(folder / 'finished' / 'supernet') as checkpoints:
    state = checkpoints.latest(template)
  assert state.step == 150
  assert jax.tree.structure(state.trainable) == jax.tree.structure(trainable)
  assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(state.trainable['glora']))


@pytest.mark.full
@pytest.mark.parametrize(
  'name, resumed',
  [
    ('killed_in_training', 'supernet: resumed at step 50'),
    ('killed_in_search', 'search: resumed after generation'),
  ],
)
def test_a_killed_run_goes_on_to_the_end(name, resumed, folder, caplog):
  caplog.set_level(logging.INFO)
  kept = metrics(folder / name)
  if name == 'killed_in_search':
    found = read_arrays(folder / name / 'search' / 'archive.npz')
  result = experiment.run(config_of_then(), name)
  assert resumed in caplog.text
  expected = read_json(folder / 'finished' / 'result.json')
  assert read_json(folder / name / 'result.json').keys() == expected.keys() | {'sha256'}
  assert result['evaluations'] == expected['evaluations']
  assert metrics(folder / name)[: len(kept)] == kept  # what was done is not done again
  then, now = metrics(folder / 'finished'), metrics(folder / name)
  assert [line['stage'] for line in now] == [line['stage'] for line in then]
  # Another machine rounds otherwise, and a tiny model learns little: the losses agree all the same.
  losses = [[line['loss'] for line in lines] for lines in (now, then)]
  np.testing.assert_allclose(*losses, rtol=2e-2)
  if name == 'killed_in_search':
    archive = read_arrays(folder / name / 'search' / 'archive.npz')
    for field, values in found.items():
      np.testing.assert_array_equal(archive[field][: len(values)], values)
  assert os.path.exists(folder / name / 'folded')
