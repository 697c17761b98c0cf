"""What the stages of a run share: scores and answers, of resident and of streamed images."""

import dataclasses

import numpy as np
import pytest
from tiny_runs import changed, context_of
from trees import randomized

from glora_jax.vision.data import pipeline
from glora_jax.vision.data.examples import Part
from glora_jax.vision.runs.backbone import Model
from glora_jax.vision.runs.config import check_config
from glora_jax.vision.runs.context import choose_resident


def test_streamed_images_have_the_scores_and_answers_of_those_on_the_device(run_config, tmp_path):
  """Also where only some of the classes count."""
  found = []
  for most in (2**30, 0):
    run = context_of(changed(run_config, data__max_resident=most), tmp_path / str(most))
    examples = run.task.open('test')
    few = Part(examples, np.flatnonzero(examples.labels < 4))
    splits = {**run.task.splits, 'few': few}
    task = dataclasses.replace(run.task, splits=splits, masked=('few',))
    variables = {**run.variables, 'params': randomized(run.variables['params'])}
    run = dataclasses.replace(run, task=task, variables=variables)
    smallest = np.zeros((len(run.adapted.spec), 5), np.int8)
    model = Model(run.adapted.fix(smallest), run.variables)
    answers = {split: run.predict(model, split) for split in ('test', 'few')}
    assert isinstance(run.data('test').images, pipeline.Stream) == (most == 0)
    assert answers['few'].classes.max() < 4 < answers['test'].classes.max()
    correct, _ = run.score(run.variables, smallest[None], 'few')
    assert (answers['few'].classes == few.labels).sum() == correct[0]
    found.append(answers)
  for split, answers in found[0].items():
    np.testing.assert_array_equal(answers.classes, found[1][split].classes)
    np.testing.assert_allclose(answers.probabilities, found[1][split].probabilities, rtol=1e-5)


@pytest.mark.parametrize(
  'train_on, images, resident',
  [
    ('train', 16, {'train', 'val', 'test'}),
    ('train', 15, {'train', 'val'}),  # each of the three has fewer
    ('train', 7, {'val'}),
    ('train+val', 19, {'train', 'train+val'}),
    ('train+val', 26, {'train', 'val', 'test', 'train+val'}),
  ],
)
def test_splits_that_stay_on_the_devices_fit_together(run_config, train_on, images, resident):
  counts = {'train': 8, 'val': 2, 'test': 6, 'train+val': 10}
  config = changed(run_config, train_on=train_on, data__max_resident=images * 4 * 4 * 3)
  assert set(choose_resident(check_config(config), counts, 4)) == resident
