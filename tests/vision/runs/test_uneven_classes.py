"""Runs on classes of different sizes: draws, weights in the loss, choices on validation images."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from label_lists import write_images
from tiny_runs import changed, context_of, stages_of

from glora_jax.training import loop
from glora_jax.training.losses import cross_entropy
from glora_jax.vision.data.task import Task
from glora_jax.vision.runs.settings import DataSettings, RunSettings, TrainingSettings
from glora_jax.vision.runs.stage import walk
from glora_jax.vision.runs.stages.training import Best, mix_of
from glora_jax.vision.runs.workdir import Stopped

LABELS = jnp.repeat(jnp.arange(3), jnp.array([6, 2, 1]))
LOGITS = jax.random.normal(jax.random.key(0), (9, 3))


def loss(labels=LABELS, **settings):
  """The loss of the images as a training with these settings has it."""
  task = Task('pets', ('ant', 'bee', 'cat'), {}, '')
  mix = mix_of(types.SimpleNamespace(settings=RunSettings(**settings), task=task), labels)
  targets = labels
  if mix is not None:
    _, targets = mix(jax.random.key(0), LOGITS, jax.nn.one_hot(labels, 3))
  return cross_entropy(LOGITS, targets)


def test_a_weighed_loss_is_the_mean_over_classes_and_right_answers_are_the_same():
  found, metrics = loss(data=DataSettings(balance='loss'))
  plain, expected = loss()
  losses = -jax.nn.log_softmax(LOGITS)[jnp.arange(9), LABELS]
  means = [losses[label == LABELS].mean() for label in range(3)]
  np.testing.assert_allclose(found, np.mean(means), rtol=1e-6)
  assert abs(found - plain) > 0.01
  assert metrics['accuracy'] == expected['accuracy']


def test_smoothing_gives_its_share_of_every_label_to_all_classes():
  found, _ = loss(training=TrainingSettings(label_smoothing=0.3))
  expected = 0.7 * loss()[0] - 0.3 * jax.nn.log_softmax(LOGITS).mean()
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_training_draws_its_images_by_class(run_config, tmp_path, monkeypatch):
  drawn, photos = [], tmp_path / 'photos'
  for label, number in (('ant', 40), ('bee', 20), ('cat', 10)):
    write_images(photos, [f'{label}/{n}.png' for n in range(number)])

  def minimize(*args, draw, **options):
    drawn.append(draw(jax.random.key(0), 0, 56))
    raise Stopped('here', '')

  config = changed(run_config, task=f'folder:{photos}', data__balance='sample')
  context = context_of(config, tmp_path / 'run')
  monkeypatch.setattr(loop, 'minimize', minimize)
  with pytest.raises(Stopped):
    walk(context, stages_of(config), until='training/linear')
  counts = np.bincount(context.task.open('train').labels[drawn[0]])
  assert np.ptp(counts) <= 1


def test_of_two_states_the_more_accurate_is_better_and_of_equal_ones_that_of_the_smaller_loss():
  first, *others = (
    Best(number, *found, 0) for number, found in enumerate([(0.5, 2), (0.5, 1), (0.5, 3), (0.6, 9)])
  )
  assert [int(first.better(other).trainable) for other in others] == [1, 0, 3]
