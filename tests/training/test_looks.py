"""What a training does between its steps: it measures, calls back, saves, stops; evaluate."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from comparing import assert_refused, assert_trees_equal
from numpy.testing import assert_allclose
from tiny import Stream, problem

import glora_jax

KEY = jax.random.key(4)
RECIPE = glora_jax.Recipe(epochs=3, batch_size=6, warmup=1 / 3, learning_rate=3e-2)
LORA = problem().adapted.fix('lora:2')
LOSS = glora_jax.classification()
FALLING = (3.0, 2.0, 2.5, 1.0)  # validation losses, of which the least comes after a wait


class Killed(BaseException):
  """In place of a signal."""


def fit(variables=None, recipe=RECIPE, **options):
  variables, options = variables or problem().variables, {'key': KEY, 'progress': False, **options}
  return glora_jax.fit(LORA, variables, LOSS, problem().data, recipe, **options)


def evaluate(variables, data, **options):
  return glora_jax.evaluate(LORA, variables, LOSS, data, **options)


def rising(*losses):
  """A validation that gives these losses, and then one."""
  values = itertools.chain(losses, itertools.repeat(max(losses)))
  return lambda variables: next(values)


@pytest.mark.parametrize('size', [5, 7, 24, 99])
def test_an_evaluation_is_the_mean_over_all_examples_however_they_are_cut(size):
  images, labels = problem().data
  variables = problem().variables
  outputs = LORA.apply(variables, images)
  losses = -jax.nn.log_softmax(outputs)[np.arange(len(labels)), labels]
  expected = {'loss': losses.mean(), 'accuracy': (outputs.argmax(-1) == labels).mean()}
  batches = [(images[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]
  for data in (problem().data, Stream([]), batches, iter(batches)):
    found = evaluate(variables, data, batch_size=size)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      assert_allclose(found[name], value, rtol=1e-5)


def test_a_callback_gets_the_means_since_the_last_and_what_was_measured_and_may_end_it():
  each, looks, held_out = [], [], tuple(rows[:10] for rows in problem().data)

  def note(step, metrics):
    looks.append((step, metrics))
    return step == 10

  fit(every=1, callback=lambda _, metrics: each.append(metrics['loss']))
  state = fit(every=5, validate=held_out, callback=note)
  assert [step for step, _ in looks] == [5, 10]
  assert_allclose(
    [metrics['loss'] for _, metrics in looks], [np.mean(each[:5]), np.mean(each[5:10])]
  )
  measured = evaluate(state.variables, held_out)
  assert_allclose(looks[-1][1]['val_loss'], measured['loss'], rtol=1e-5)
  assert_allclose(looks[-1][1]['val_accuracy'], measured['accuracy'])


def test_a_validation_may_be_a_function_and_several_runs_have_a_number_each():
  looks = []
  keys = jax.random.split(KEY)
  states = fit(
    [problem().variables] * 2,
    key=keys,
    validate=lambda variables: evaluate(variables, problem().data),
    callback=lambda step, metrics: looks.append(metrics['val_loss']),
  )
  assert [found.shape for found in looks] == [(2,)] * 3
  expected = [evaluate(variables, problem().data)['loss'] for variables in states.variables]
  assert_allclose(looks[-1], expected, rtol=1e-5)


@pytest.mark.parametrize('patience, best, steps', [(1, 4, 6), (2, 8, 12), (9, 8, 12)])
def test_patience_ends_a_training_and_keeps_its_best_state(patience, best, steps):
  seen = []
  found = fit(
    every=2,
    validate=rising(*FALLING),
    patience=patience,
    callback=lambda step, metrics: seen.append(step),
  )
  assert seen[-1] == steps
  assert_trees_equal(found, fit(every=best, callback=lambda *_: True))


@pytest.mark.parametrize('kill', range(1, 7))
@pytest.mark.parametrize('when', ['measuring', 'called back'])
def test_killed_at_any_look_a_training_with_patience_ends_alike(kill, when, tmp_path):
  """Also if it is killed after the best state, and called again when it has ended."""

  def losses(variables):
    return abs(float(evaluate(variables, problem().data)['loss']) - 0.8) / 3

  def measure(variables):
    if when == 'measuring' and len(looks) == kill - 1 and not resumed:
      raise Killed
    return losses(variables)

  def note(step, metrics):
    looks.append(step)
    if when == 'called back' and len(looks) == kill and not resumed:
      raise Killed
    return step == 10

  options, looks, resumed = {'every': 2, 'validate': measure, 'patience': 4}, [], True
  whole = fit(callback=note, **options)
  assert looks == [2, 4, 6, 8, 10]
  assert whole.step < 10
  looks, resumed = [], False
  try:
    fit(callback=note, save=tmp_path, **options)
  except Killed:
    looks, resumed = [], True
    assert_trees_equal(fit(callback=note, save=tmp_path, **options), whole)
    assert looks == [*range(2 * kill, 12, 2)]
  looks = []
  assert_trees_equal(fit(callback=note, save=tmp_path, **options), whole)
  assert not looks


def test_states_of_another_training_are_refused(tmp_path):
  fit(save=tmp_path)
  other = dataclasses.replace(RECIPE, learning_rate=0.5)
  assert_refused('learning_rate=0.03, here 0.5', fit, recipe=other, save=tmp_path)
  assert_refused('key=', fit, key=jax.random.key(5), save=tmp_path)
  assert_refused('scale_updates=None, here 0.5', fit, scale_updates=0.5, save=tmp_path)


@pytest.mark.parametrize(
  'call, named',
  [
    (lambda: fit(patience=2), 'patience=2 compares validation losses'),
    (lambda: fit(patience=0, validate=problem().data), 'patience=0'),
    (lambda: fit(every=0, callback=print), 'every=0'),
    (lambda: fit(callback=3), 'callback=3'),
    (lambda: fit(validate=3), 'validate=3 must be a data set'),
    (lambda: fit(validate=iter([problem().data])), 'must be a data set, a list of batches'),
    (
      lambda: fit([problem().variables] * 2, key=jax.random.split(KEY), save='states'),
      'leave patience and save out',
    ),
    (
      lambda: glora_jax.fit(
        problem().adapted,
        problem().variables,
        LOSS,
        problem().data,
        RECIPE,
        key=KEY,
        validate=problem().data,
      ),
      'this one is free',
    ),
    (lambda: evaluate(problem().variables, []), 'no examples'),
    (lambda: evaluate(problem().variables, problem().data, batch_size=0), 'batch_size=0'),
    (
      lambda: evaluate(problem().variables, (problem().images, problem().labels + 1)),
      'label 3 of example 2',
    ),
    (
      lambda: glora_jax.fit(
        LORA,
        problem().variables,
        LOSS,
        iter([problem().data] * 3),
        glora_jax.Recipe(steps=3),
        key=KEY,
        callback=print,
      ),
      "every='epoch', and the number of batches is unknown",
    ),
  ],
)
def test_what_a_look_cannot_use_is_refused(call, named):
  assert_refused(named, call)
