"""What the stages of a run share: scores and answers, of resident and of streamed images."""

import dataclasses

import numpy as np
import pytest
from tiny_runs import changed, context_of
from trees import randomized

from glora_jax.vision.data import image, pipeline
from glora_jax.vision.data.task import Files, Part, Task
from glora_jax.vision.models import weights
from glora_jax.vision.runs import evaluation
from glora_jax.vision.runs.backbone import Model


@pytest.mark.parametrize('most', [2**30, 0], ids=['resident', 'streamed'])
@pytest.mark.parametrize('given, share', [(None, 0.5), ('squash', None)])
def test_images_become_square_as_the_weights_say_where_the_config_does_not(
  given, share, most, run_config, tmp_path
):
  model, params, metadata = weights.load(run_config.model.weights)
  path = str(tmp_path / 'cropped.safetensors')
  weights.save(path, model, params, {**metadata, 'resize': 'crop', 'crop': 0.5})
  config = changed(run_config, model__weights=path, data__resize=given, data__max_resident=most)
  config.data.cache = str(tmp_path / 'cache')
  run = context_of(config, tmp_path / 'run')
  expected = image.resize(run.task.open('train')[0].image(), 8, share)
  np.testing.assert_array_equal(run.images.pixels('train', np.array([0]))[0], expected)
  assert run.metadata['resize'] == ('crop' if share else 'squash')


def test_streamed_images_have_the_scores_and_answers_of_those_on_the_device(run_config, tmp_path):
  """Also where only some of the classes count."""
  found = []
  for most in (2**30, 0):
    run = context_of(changed(run_config, data__max_resident=most), tmp_path / str(most))
    examples = run.task.open('test')
    few = Part(examples, np.flatnonzero(examples.labels < 4))
    task = dataclasses.replace(run.task, splits={**run.task.splits, 'few': few}, masked=('few',))
    images = dataclasses.replace(run.images, task=task)
    variables = {**run.variables, 'params': randomized(run.variables['params'])}
    run = dataclasses.replace(run, images=images, variables=variables)
    smallest = np.zeros((len(run.adapted.spec), 5), np.int8)
    model = Model(run.adapted.fix(smallest), run.variables)
    assert isinstance(run.images.split('test').images, pipeline.Stream) == (most == 0)
    test, masked = (evaluation.predict(run, model, split) for split in ('test', 'few'))
    assert masked.classes.max() < 4 < test.classes.max()
    correct, _ = evaluation.score(run, run.variables, smallest[None], 'few')
    assert (masked.classes == few.labels).sum() == correct[0]
    found.append((test, masked))
  for resident, streamed in zip(*found, strict=True):
    np.testing.assert_array_equal(resident.classes, streamed.classes)
    np.testing.assert_allclose(resident.probabilities, streamed.probabilities, rtol=1e-5)


@pytest.mark.parametrize(
  'train_on, images, resident',
  [
    (['train'], 16, ['train', 'val', 'test']),
    (['train'], 15, ['train', 'val']),  # each of the three has fewer
    (['train'], 7, ['val']),
    (['train', 'train+val'], 19, ['train', 'train+val']),
    (['train', 'train+val'], 26, ['train', 'train+val', 'val', 'test']),
  ],
)
def test_splits_that_stay_on_the_devices_fit_together(train_on, images, resident):
  counts = {'train': 8, 'val': 2, 'test': 6}
  splits = {split: Files(['x.png'] * number, [0] * number) for split, number in counts.items()}
  task = Task('pets', ('cat', 'dog'), splits, origin='a test')
  room = images * 4 * 4 * 3
  assert pipeline.choose_resident(pipeline.Images(task, 4), train_on, room) == resident
