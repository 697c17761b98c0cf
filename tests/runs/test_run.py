"""What the stages of a run share: scores, predictions and pixels of its splits."""

import dataclasses

import numpy as np
import pytest
from tiny_runs import changed, context_of
from trees import randomized

from glora_jax.data import pipeline
from glora_jax.data.examples import Part
from glora_jax.runs.backbone import Model


@pytest.fixture(scope='module')
def runs(run_config, tmp_path_factory):
  """Runs whose images are on the device, and streamed; both with a test set of four classes."""
  prepared = {}
  for name, most in (('resident', 2**30), ('streamed', 0)):
    config = changed(run_config, data__max_resident=most)
    run = context_of(config, tmp_path_factory.mktemp(name))
    examples = run.task.open('test')
    few = Part(examples, np.flatnonzero(examples.labels < 4))
    splits = {**run.task.splits, 'few': few}
    run.task = dataclasses.replace(run.task, splits=splits, masked=('few',))
    run.variables = {**run.variables, 'params': randomized(run.variables['params'])}
    prepared[name] = run
  return prepared


@pytest.fixture(scope='module')
def predictions(runs):
  """What the smallest structure answers, by run and split."""
  return {
    name: {
      split: run.predict(Model(run.adapted.fix(smallest(run)), run.variables), split)
      for split in ('test', 'few')
    }
    for name, run in runs.items()
  }


def smallest(run):
  return np.zeros((len(run.adapted.spec), 5), np.int8)


def test_predictions_of_a_stream_are_those_of_the_arrays(runs, predictions):
  for name, run in runs.items():
    assert isinstance(run.data('test').images, pipeline.Stream) == (name == 'streamed')
  for split in ('test', 'few'):
    ours, theirs = (predictions[name][split] for name in ('resident', 'streamed'))
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-5)


def test_scores_count_what_predictions_get_right_with_a_splits_own_classes(runs, predictions):
  answers = predictions['streamed']
  assert answers['few'].classes.max() < 4 < answers['test'].classes.max()
  for name, run in runs.items():
    correct, _ = run.score(run.variables, smallest(run)[None], 'few')
    answers = predictions[name]['few'].classes
    assert (answers == run.data('few').labels).sum() == correct[0]
